"""The ladder: a restored checkpoint that breaches too is not the end of the run, and never the end of the service."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from gateway import Gateway
from stage import PLACE, Clients, Policy, Server, Stage, wait_until

from rearguard.checkpoints import registry
from rearguard.engine.faults import POINTS
from rearguard.model.run import TERMINAL, RunState
from rearguard.officer import reporting
from rearguard.recovery.rollback import step_names

SetStage = Callable[..., Stage]

POLICY = Policy(compliance="compliance: {drop_points: 2, baseline: 95}", recovery_s=1, deadline_s=40)
RUNGS_2 = tuple(name for name in step_names(2) if name.endswith("#2"))
ALWAYS = ("activate#2:after_effect",)
MATRIX = [
    pytest.param(f"{step}:{point}", id=f"{step}:{point}", marks=() if f"{step}:{point}" in ALWAYS else pytest.mark.long)
    for step in RUNGS_2
    for point in POINTS
    if not (step == "next#2" and point != "after_record")  # it has no effect outside
]


def bad_before_bad(stage: Stage) -> Clients:
    """v1 is right, v0 is often wrong, v2 raises on some inputs; the newest two are no good."""
    stage.deploy("v1")
    stage.deploy("v0")
    stage.arm()
    clients = stage.send_traffic()
    stage.deploy("v2")
    return clients


def assert_ends_on_v1(stage: Stage, clients: Clients) -> None:
    ended_ns = time.monotonic_ns()
    wait_until(lambda: len(clients.since(ended_ns)) >= 10, "clients go on")
    assert {(a.status, a.digest) for a in clients.since(ended_ns)} == {(200, stage.digest("v1"))}


def test_f10_a_target_that_breaches_too_is_left_for_the_next_in_the_same_run(
    server: Server, set_stage: SetStage
) -> None:
    """flagger#1898: rolled back onto a broken primary, and the healthy copy was deleted."""
    stage = set_stage(server, policy=POLICY, versions="v0,v1,v2")
    clients = bad_before_bad(stage)
    stage.force_breach()
    watcher = stage.watch_alive()
    run = stage.wait_for_end(60)
    assert watcher.end() == 0

    assert (len(stage.runs()), run.state, run.to_digest) == (1, RunState.SUCCEEDED, stage.digest("v1"))
    lost = stage.records("rung_lost")
    assert [(r.body["version"], r.body["rung"], r.body["reason"]) for r in lost] == [("v0", 1, "slo_still_breached")]
    switched = [r.body for r in stage.records("traffic_switched")]
    assert [(s["to_version"], s["key"]) for s in switched] == [
        ("v0", f"{run.id}:activate"),
        ("v1", f"{run.id}:activate#2"),
    ]
    assert switched[1]["epoch"] > switched[0]["epoch"]
    finished = stage.records("rollback_finished")[0].body
    assert (finished["rungs"], finished["tried"]) == (2, [stage.digest("v0")])
    assert sum(finished["parts_ms"].values()) == finished["rto_achieved_ms"]
    with stage.office(write=False) as office, office.database.reading() as connection:
        assert registry.quarantined(connection, PLACE) == {stage.digest("v2"), stage.digest("v0")}
    assert_ends_on_v1(stage, clients)


def test_at_the_end_of_the_ladder_the_run_stops_says_so_and_keeps_what_serves(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=POLICY, versions="v0,v1,v2")
    clients = bad_before_bad(stage)
    stage.damage("v1")
    stage.force_breach()
    watcher = stage.watch_alive()
    run = stage.wait_for_end(60)
    wait_until(lambda: [m for m in stage.messages() if "ladder_exhausted" in str(m["fields"])], "people are told")
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.FAILED, "ladder_exhausted")
    assert stage.server.serves()["digest"] == stage.digest("v0")
    with stage.office(write=False) as office, office.database.reading() as connection:
        # What breaks every version is most likely not the versions: only what was rolled back is quarantined.
        assert registry.quarantined(connection, PLACE) == {stage.digest("v2")}
    assert {a.status for a in clients.since(time.monotonic_ns() - 10**9)} == {200}
    told = [m for m in stage.messages() if "ladder_exhausted" in str(m["fields"])]
    assert len(told) == 1
    assert stage.open_run() is None


@pytest.mark.parametrize("point", MATRIX)
def test_an_officer_killed_on_the_second_rung_is_succeeded_by_one_that_finishes_it_once(
    server: Server, set_stage: SetStage, point: str
) -> None:
    stage = set_stage(server, policy=POLICY, versions="v0,v1,v2")
    clients = bad_before_bad(stage)
    stage.force_breach()
    first = stage.watch(fault=point)
    assert first.process.wait(40) == -signal.SIGKILL

    second = stage.watch_alive()
    run = stage.wait_for_end(60)
    assert second.end() == 0

    assert (len(stage.runs()), run.state, run.to_digest) == (1, RunState.SUCCEEDED, stage.digest("v1"))
    kinds = stage.kinds(run.id)
    assert (kinds["rung_lost"], kinds["traffic_switched"], kinds["rollback_finished"]) == (1, 2, 1)
    with stage.office(write=False) as office:
        assert reporting.verify_evidence(office).ok
    assert_ends_on_v1(stage, clients)


def test_the_steps_of_two_rungs_are_those_of_one_and_a_second_round() -> None:
    assert step_names(1) == ("lock", "freeze", "select", "verify", "activate", "probe", "window", "record", "close")
    assert step_names(2)[7:12] == ("next#2", "verify#2", "activate#2", "probe#2", "window#2")


def test_a_gateway_that_fails_for_a_moment_is_no_reason_to_leave_the_best_candidate(
    server: Server, set_stage: SetStage, gateway: Callable[[Server], Gateway]
) -> None:
    stage = set_stage(server, policy=POLICY, versions="v0,v1,v2")
    stage.deploy("v0")
    stage.deploy("v1")
    stage.arm()
    stage.send_traffic()
    stage.deploy("v2")
    between = gateway(server)
    between.refuse_loads(4)
    stage.point_target_at(between.port)
    stage.force_breach()
    watcher = stage.watch_alive()
    run = stage.wait_for_end(60)
    assert watcher.end() == 0
    assert (run.state, run.to_digest, between.refused) == (RunState.SUCCEEDED, stage.digest("v1"), 4)
    assert stage.records("rung_lost") == []
    with stage.office(write=False) as office, office.database.reading() as connection:
        assert registry.quarantined(connection, PLACE) == {stage.digest("v2")}


def test_a_target_that_drips_its_answers_does_not_hold_the_run_beyond_its_deadline(
    own_server: Server, set_stage: SetStage, gateway: Callable[[Server], Gateway]
) -> None:
    stage = set_stage(own_server, policy=Policy(recovery_s=1, deadline_s=8))
    stage.deploy("v1")
    stage.arm()
    stage.deploy("v2")
    between = gateway(own_server)
    between.drip_after_load = True
    stage.point_target_at(between.port)
    stage.force_breach()
    watcher = stage.watch_alive()
    run = stage.wait_for_end(40)
    assert watcher.end() == 0
    assert (run.state, run.reason) == (RunState.FAILED, "target_timeout")
    assert stage.open_run() is None


def test_a_pause_after_the_proof_and_before_the_order_keeps_traffic_where_it_is(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=Policy(recovery_s=1))
    bad_and_armed(stage)
    run_id = stage.force_breach()
    assert stage.watch(fault="verify:after_record").process.wait(40) == -signal.SIGKILL
    assert stage.cli("automation", "pause", "--reason", "mended by hand").returncode == 0
    before = stage.server.serves()
    watcher = stage.watch_alive()
    run = stage.wait_for_end(40)
    assert watcher.end() == 0
    assert (run.id, run.state, run.reason) == (run_id, RunState.CANCELLED, "automation_paused")
    assert stage.server.serves() == before
    assert stage.records("traffic_switched") == []


def test_an_incident_that_was_closed_before_its_run_began_is_not_rolled_back(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=Policy(recovery_s=1))
    bad_and_armed(stage)
    stage.force_breach()
    assert stage.cli("incident", "close", "R-1", "--false-positive").returncode == 0
    before = stage.server.serves()
    watcher = stage.watch_alive()
    wait_until(lambda: [r for r in stage.runs() if r.state in TERMINAL], "the run ends", 40)
    assert watcher.end() == 0
    assert stage.runs()[0].state in (RunState.CANCELLED, RunState.REFUSED)
    assert stage.server.serves() == before


def test_a_source_that_is_away_for_a_moment_does_not_end_the_proof(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server, policy=Policy(recovery_s=3, deadline_s=60))
    bad_and_armed(stage)
    stage.send_traffic()
    stage.force_breach()
    watcher = stage.watch_alive()
    wait_until(lambda: stage.records("golden_answered"), "v1 answers", 40)
    scores = stage.state / "scores.jsonl"
    scores.rename(stage.state / "scores.jsonl.1")
    scores.mkdir()  # not a regular file: telemetry_unreadable
    away_ns = time.monotonic_ns()
    wait_until(lambda: time.monotonic_ns() > away_ns + 10**9, "a second has passed", 5)
    scores.rmdir()
    run = stage.wait_for_end(60)
    assert watcher.end() == 0
    assert (run.state, run.reason) == (RunState.SUCCEEDED, "")


def bad_and_armed(stage: Stage) -> None:
    stage.deploy("v1")
    stage.arm()
    stage.deploy("v2")
