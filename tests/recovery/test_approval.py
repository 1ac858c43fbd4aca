"""A place that asks a second person before a rollback, with a real watcher, a real model server and real traffic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from stage import Server, Stage, wait_until

from rearguard.model.run import Run, RunState

SetStage = Callable[..., Stage]


def guard(stage: Stage, *, expires_s: int) -> None:
    """Require approval in the settings, before any watcher reads them."""
    file = stage.state / "rearguard.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.count("        recovery:") == 1
    section = f"        approval: {{required: true, expires: {expires_s} s}}\n        recovery:"
    file.write_text(text.replace("        recovery:", section), encoding="utf-8")


def enroll(stage: Stage, folder: Path, name: str) -> Path:
    """A person with a key; the private one."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    public.write_text(stage.cli("key", "new", name, "--out", str(private)).stdout, encoding="utf-8")
    assert stage.cli("key", "enroll", name, str(public), "--by", "admin").returncode == 0
    return private


def waiting_run(stage: Stage) -> Run:
    """The run that the watcher asked for, once people were paged about it."""

    def paged() -> Run | None:
        runs = stage.runs()
        found = [m for m in stage.messages() if runs and m["key"] == f"{runs[-1].id}:approval"]
        return runs[-1] if found else None

    run: Run = wait_until(paged, "somebody is asked to approve", 40)
    return run


def test_a_breach_waits_for_its_approval_and_then_rolls_back(
    own_server: Server, set_stage: SetStage, tmp_path: Path
) -> None:
    stage = set_stage(own_server)
    guard(stage, expires_s=300)
    key = enroll(stage, tmp_path, "ana")
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    watcher = stage.watch_alive()
    stage.send_traffic()
    run = waiting_run(stage)
    before = own_server.serves()["digest"], stage.kinds(run.id)["rollback_started"], run.state
    approved = stage.cli("approve", run.id, "--key", str(key))
    ended = stage.wait_for_end(60)
    assert watcher.end() == 0

    assert before == (stage.digest("v2"), 0, RunState.REQUESTED)
    assert approved.returncode == 0, approved.stderr
    assert (ended.id, ended.state, ended.to_digest) == (run.id, RunState.SUCCEEDED, stage.digest("v1"))
    assert own_server.serves()["digest"] == stage.digest("v1")
    kinds = stage.kinds(run.id)
    assert (kinds["approval_requested"], kinds["rollback_approved"], kinds["traffic_switched"]) == (1, 1, 1)
    order = [r.kind for r in stage.records() if r.run_id == run.id]
    assert order.index("rollback_approved") < order.index("rollback_started")
    assert json.loads(stage.cli("log", "verify", "--json").stdout)["ok"] is True


def test_without_approval_nothing_moves_until_the_run_expires(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    guard(stage, expires_s=5)
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    before = own_server.serves()
    watcher = stage.watch_alive()
    clients = stage.send_traffic()
    run = waiting_run(stage)
    ended = stage.wait_for_end(60)
    assert watcher.end() == 0

    assert (ended.id, ended.state, ended.reason) == (run.id, RunState.REFUSED, "approval_expired")
    assert own_server.serves() == before
    assert {a.digest for a in clients.answers if a.status == 200} == {stage.digest("v2")}
    kinds = stage.kinds(run.id)
    assert (kinds["rollback_started"], kinds["traffic_switched"], kinds["rollback_refused"]) == (0, 0, 1)
    assert stage.open_run() is None
