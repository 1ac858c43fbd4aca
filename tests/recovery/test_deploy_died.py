"""Two deploys at one place, and a deploy whose process dies while it waits for its proof."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from gateway import Gateway
from stage import ENV, PLACE, SERVICE, Server, Stage, wait_until

from rearguard.errors import ConflictError
from rearguard.officer import deployment_end, deployments, rollbacks

SetStage = Callable[..., Stage]
OpenGateway = Callable[[Server], Gateway]


def states(stage: Stage) -> list[tuple[str, str]]:
    """Version and state of each deployment, oldest first."""
    with stage.office(write=False) as office:
        return [(d.version, d.state) for d in deployments.list_deployments(office)]


def begin_deploy(stage: Stage, version: str) -> subprocess.Popen[bytes]:
    """`rearguard deploy` in a process of its own, once it waits for its proof."""
    words = ["-m", "rearguard.interfaces.cli", "deploy", SERVICE, version, "--state", str(stage.state)]
    process = stage.processes.start(words, out=stage.state / "deploy.out")
    wait_until(lambda: stage.server.serves()["digest"] == stage.digest(version), "it waits for its proof")
    assert states(stage)[-1] == (version, "activating")
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(5)


@pytest.fixture
def broken(own_server: Server, set_stage: SetStage, gateway: OpenGateway) -> tuple[Stage, Gateway]:
    """v1 serves, and a gateway answers every inference of the officer with 500."""
    stage = set_stage(own_server, versions="v0,v1,v2")
    stage.deploy("v1")
    opened = gateway(own_server)
    opened.breaks_inferences = True
    stage.point_target_at(opened.port)
    return stage, opened


def test_a_second_deploy_is_refused_while_the_first_one_lives(broken: tuple[Stage, Gateway]) -> None:
    stage, _ = broken
    begin_deploy(stage, "v2")
    done = stage.cli("deploy", SERVICE, "v0", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"], error["hint"]) == (
        75,
        "deployment_open",
        "wait for it: rearguard deployment list",
    )
    assert states(stage) == [("v1", "active"), ("v2", "activating")]


def test_a_deploy_that_lives_is_not_taken_for_dead_by_the_officer(broken: tuple[Stage, Gateway]) -> None:
    stage, opened = broken
    begin_deploy(stage, "v2")
    opened.breaks_inferences = False
    with stage.office() as office:
        deployment_end.conclude_orphans(office, PLACE)
    assert not [r for r in stage.records() if r.body.get("code") == "deploy_died"]


def test_a_killed_deploy_that_never_answered_is_failed_and_no_way_back(broken: tuple[Stage, Gateway]) -> None:
    stage, _ = broken
    kill(begin_deploy(stage, "v2"))
    with stage.office() as office:
        deployment_end.conclude_orphans(office, PLACE)
        plan = rollbacks.plan(office, service=SERVICE, env=ENV)
    assert states(stage) == [("v1", "active"), ("v2", "failed")]
    assert "v2" not in [c.checkpoint.version for c in plan.selection.candidates]


def test_a_killed_deploy_whose_version_answers_is_concluded_as_active(broken: tuple[Stage, Gateway]) -> None:
    stage, opened = broken
    kill(begin_deploy(stage, "v2"))
    opened.breaks_inferences = False
    with stage.office() as office:
        deployment_end.conclude_orphans(office, PLACE)
    assert states(stage) == [("v1", "ended"), ("v2", "active")]
    (found,) = stage.records("deployment_active")[1:]
    assert found.body["code"] == "deploy_died"


def test_a_deploy_does_not_wait_for_one_that_was_killed(broken: tuple[Stage, Gateway]) -> None:
    stage, opened = broken
    kill(begin_deploy(stage, "v2"))
    opened.breaks_inferences = False
    assert stage.cli("deploy", SERVICE, "v0").returncode == 0
    assert states(stage) == [("v1", "ended"), ("v2", "ended"), ("v0", "active")]


def test_a_deploy_that_was_concluded_by_somebody_else_is_not_told_of_a_rollback(
    broken: tuple[Stage, Gateway],
) -> None:
    stage, _ = broken
    kill(begin_deploy(stage, "v2"))
    with stage.office() as office:
        deployment_end.conclude_orphans(office, PLACE)
        (v2,) = [d for d in deployments.list_deployments(office) if d.version == "v2"]
        with pytest.raises(ConflictError) as overtaken:
            deployment_end.conclude(office, PLACE, v2.id, "run_x", "active", {})
    assert overtaken.value.code == "deployment_overtaken"
    assert (
        overtaken.value.message
        == "this deployment to digits/stage was taken for dead and concluded as failed meanwhile"
    )
