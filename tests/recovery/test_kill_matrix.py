"""A watcher killed at any fault point of a rollback leaves a run that the next watcher finishes exactly once.

The watcher really dies by SIGKILL, in the middle of real traffic. The points are those that the engine derives from the
list of steps, so a new step is in this matrix by itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from stage import Clients, Policy, Server, Stage, wait_until

from rearguard.database import officer_alive
from rearguard.engine.faults import fault_points
from rearguard.model.run import RunState
from rearguard.model.settings import STEP_NAMES
from rearguard.officer import reporting

DETECTED = ("activate",)
"""Steps whose points are reached through a breach that the watcher itself detects in the traffic."""
ALWAYS = ("activate", "record")
"""Steps at whose points every run of the suite kills; at the others only `make test-long` does."""

OF_ONE_RUN = (
    "incident_opened",
    "rollback_started",
    "deployments_frozen",
    "target_selected",
    "target_verified",
    "traffic_switched",
    "golden_answered",
    "window_held",
    "rollback_finished",
    "incident_closed",
    "rollback_closed",
)
"""Every record of a rollback that succeeded."""

MATRIX = [
    pytest.param(point, id=point, marks=() if point.split(":")[0] in ALWAYS else pytest.mark.long)
    for point in fault_points(STEP_NAMES)
]


def bad_deployment(stage: Stage) -> Clients:
    """v2, which raises on some inputs, answers real traffic; v1 was there before it."""
    stage.deploy("v1")
    stage.arm()
    return stage.send_traffic()


@pytest.mark.parametrize("point", MATRIX)
def test_f06_a_run_whose_watcher_is_killed_is_finished_once(
    server: Server, set_stage: Callable[..., Stage], point: str
) -> None:
    stage = set_stage(server, policy=Policy(recovery_s=1))
    clients = bad_deployment(stage)
    if point.split(":")[0] in DETECTED:
        first = stage.watch_alive(fault=point)
        stage.deploy("v2")
    else:
        stage.deploy("v2")
        stage.force_breach()
        first = stage.watch(fault=point)
    assert first.process.wait(20) == -signal.SIGKILL
    assert not officer_alive(stage.state)

    second = stage.watch_alive()
    run = stage.wait_for_end()
    assert second.end() == 0

    assert (len(stage.runs()), run.state) == (1, RunState.SUCCEEDED)
    assert stage.kinds(run.id) == dict.fromkeys(OF_ONE_RUN, 1)
    with stage.office(write=False) as office:  # as `rearguard log verify`
        assert reporting.verify_evidence(office).ok
    assert stage.records("deployment_unregistered") == []
    assert stage.open_run() is None
    assert not officer_alive(stage.state)
    started = next(r for r in stage.records("rollback_started"))
    assert stage.server.serves()["epoch"] == started.body["epoch"]
    ended_ns = time.monotonic_ns()
    wait_until(lambda: len(clients.since(ended_ns)) >= 10, "clients go on")
    assert {(a.status, a.digest) for a in clients.since(ended_ns)} == {(200, stage.digest("v1"))}
