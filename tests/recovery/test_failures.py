"""What the officer does when a rollback meets the world: nothing proven, a dead target, silence, a second hand.

Each test runs the real parts: a watcher process, a model server, HTTP clients, the command line.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stage import ENV, PLACE, SERVICE, Policy, Server, Stage, free_port, wait_until

from rearguard.database import officer_alive, sql
from rearguard.edge import read_boot_id
from rearguard.model.breach import Trigger
from rearguard.model.run import TERMINAL, RunState
from rearguard.model.time import NS_PER_S
from rearguard.officer import automation, checkpoints, deployments, incidents, rollbacks

SetStage = Callable[..., Stage]


def breached(stage: Stage, bad: str = "v2") -> str:
    """`bad` serves and an incident is open for it with a run that a watcher will take up; the run's id."""
    stage.deploy(bad)
    stage.arm()
    return stage.force_breach()


def standing(stage: Stage, version: str) -> tuple[str, str]:
    """State and failure code of a checkpoint in the registry."""
    with stage.office(write=False) as office:
        row = next(r for r in checkpoints.list_checkpoints(office) if r.checkpoint.version == version)
    return row.state, row.checkpoint.failure


# --- nothing proven to roll back to -----------------------------------------------------------------------------------


def test_without_a_verified_checkpoint_a_run_is_refused_and_the_service_is_left_alone(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, versions="v2")
    stage.deploy("v2")
    stage.arm()
    clients = stage.send_traffic()
    before = server.serves()
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.REFUSED, "no_verified_checkpoint")
    assert stage.kinds(run.id)["rollback_refused"] == 1
    assert stage.open_run() is None
    report = stage.cli("report", "render", "--exit-code")
    assert (report.returncode, "Failed" in report.stdout) == (20, True)
    assert stage.cli("rollback", "run", SERVICE, "--execute").returncode == 30
    assert len(stage.runs()) == 1
    assert server.serves() == before
    assert {a.digest for a in clients.answers if a.status == 200} == {stage.digest("v2")}


def test_a_damaged_best_candidate_is_passed_over_and_loses_its_standing(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server, versions="v0,v1,v2")
    for version in ("v0", "v1", "v2"):
        stage.deploy(version)
    stage.damage("v1")
    stage.arm()
    stage.force_breach()
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert (run.state, run.to_digest) == (RunState.SUCCEEDED, stage.digest("v0"))
    assert server.serves()["digest"] == stage.digest("v0")
    assert standing(stage, "v1") == ("failed", "blob_altered")


def test_when_every_candidate_is_damaged_the_run_is_refused_and_the_registry_says_so(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    stage.damage("v1")
    breached(stage)
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.REFUSED, "no_verified_checkpoint")
    assert standing(stage, "v1") == ("failed", "blob_altered")
    assert server.serves()["digest"] == stage.digest("v2")


# --- the target does not answer ---------------------------------------------------------------------------------------


def test_a_run_whose_target_stays_down_fails_at_its_deadline_and_the_server_keeps_its_model(
    own_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(own_server, policy=Policy(deadline_s=4))
    stage.deploy("v1")
    breached(stage)
    own_server.kill()
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.FAILED, "target_unreachable")
    finished = stage.records("rollback_finished")[0]
    assert finished.body["failed_step"] == "activate"
    assert int(finished.monotonic_ns) >= run.requested_at.mono_ns + 4 * NS_PER_S, "it gave up before its deadline"
    own_server.restart()
    wait_until(lambda: own_server.serves()["ready"], "what answered before answers again")
    assert own_server.serves()["digest"] == stage.digest("v2")


def test_a_run_whose_target_comes_back_before_the_deadline_succeeds(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    stage.deploy("v1")
    breached(stage)
    own_server.kill()
    watcher = stage.watch()
    wait_until(lambda: stage.records("target_verified"), "the run comes to the switch")
    own_server.restart()
    clients = stage.send_traffic()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert run.state is RunState.SUCCEEDED
    assert own_server.serves()["digest"] == stage.digest("v1")
    assert {a.digest for a in clients.answers if a.status == 200} <= {stage.digest("v1"), stage.digest("v2")}
    switched_ns = int(stage.records("traffic_switched")[0].monotonic_ns)
    assert {(a.status, a.digest) for a in clients.since(switched_ns)} == {(200, stage.digest("v1"))}


def test_a_run_whose_target_hangs_fails_soon_after_its_deadline(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server, policy=Policy(deadline_s=10))  # a watcher that starts within it takes the run up
    stage.deploy("v1")
    breached(stage)
    own_server.process.send_signal(signal.SIGSTOP)
    watcher = stage.watch()
    run = stage.wait_for_end(deadline_s=22)
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.FAILED, "target_timeout")


# --- silence ----------------------------------------------------------------------------------------------------------


def test_silence_of_a_service_that_answers_probes_is_inconclusive_and_no_incident(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=Policy(no_data_after_s=1))
    stage.deploy("v1")
    stage.arm()
    clients = stage.send_traffic()
    watcher = stage.watch_alive()
    wait_until(lambda: watcher.events("digest_answers"), "traffic is seen")
    clients.stop()
    wait_until(lambda: watcher.events("telemetry_silent"), "silence is noticed")
    time.sleep(3)  # six turns of the prober, twice what would make a dead data plane an incident
    assert watcher.end() == 0

    (silent,) = stage.records("telemetry_silent")
    assert (silent.body["outcome"], silent.body["reason"]) == ("inconclusive", "no_data")
    assert (stage.records("incident_opened"), stage.runs()) == ([], ())


def test_silence_of_a_service_whose_data_plane_hangs_is_an_error_incident(
    own_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(own_server, policy=Policy(no_data_after_s=1))
    stage.deploy("v1")
    clients = stage.send_traffic()
    watcher = stage.watch_alive()
    wait_until(lambda: watcher.events("digest_answers"), "traffic is seen")
    clients.stop()
    own_server.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: watcher.events("incident_opened"), "the dead data plane is noticed")
    own_server.process.send_signal(signal.SIGCONT)
    assert watcher.end() == 0

    (incident,) = stage.records("incident_opened")
    assert (incident.body["trigger"], incident.body["rule"]) == ("errors", "data_plane_down")
    assert len(stage.records("telemetry_silent")) == 1


# --- incidents --------------------------------------------------------------------------------------------------------


def test_a_second_trigger_attaches_to_the_open_incident_and_its_run(server: Server, set_stage: SetStage) -> None:
    policy = Policy(compliance="compliance: {drop_points: 2, baseline: 97}", deadline_s=12)
    stage = set_stage(server, policy=policy, versions="v0,v1,v2")
    stage.deploy("v1")
    run_id = breached(stage, bad="v0")  # by the error trigger; that v0 is wrong is what the watcher finds
    stage.point_target_at(free_port())  # the run stays open: its target does not answer
    stage.send_traffic()
    watcher = stage.watch()
    wait_until(lambda: stage.records("incident_attached"), "the compliance breach is seen")
    assert watcher.end() == 0

    (attached,) = stage.records("incident_attached")
    assert (attached.run_id, attached.body["trigger"]) == (run_id, "compliance")
    with stage.office(write=False) as office:
        (incident,) = incidents.list_incidents(office)
    assert (incident.trigger, incident.attached) == (Trigger.ERRORS, (Trigger.COMPLIANCE,))
    assert [r.id for r in stage.runs()] == [run_id]


def test_a_place_that_is_not_armed_is_observed_and_left_alone(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    stage.deploy("v2")
    before = server.serves()
    clients = stage.send_traffic()
    watcher = stage.watch()
    wait_until(lambda: any("not armed" in m["title"] for m in stage.messages()), "people are told")
    assert watcher.end() == 0

    (withheld,) = stage.records("rollback_withheld")
    assert (withheld.body["reason"], withheld.body["would_restore"]) == ("observe", "v1")
    assert len(stage.records("incident_opened")) == 1
    assert stage.runs() == ()
    assert server.serves() == before
    assert {a.digest for a in clients.answers if a.status == 200} == {stage.digest("v2")}


def test_a_compliance_drop_below_the_baseline_frozen_at_the_rollout_is_named_and_rolled_back(
    server: Server, set_stage: SetStage
) -> None:
    policy = Policy(compliance="compliance: {drop_points: 2, baseline: measured, period: 60 s}")
    stage = set_stage(server, policy=policy, versions="v0,v1,v2")
    stage.deploy("v1")
    stage.arm()
    stage.send_traffic()
    time.sleep(3)  # labelled samples of v1 come in: a window of the gauge is two seconds
    watcher = stage.watch_alive()
    stage.deploy("v0")
    run = stage.wait_for_end()
    assert watcher.end() == 0

    with stage.office(write=False) as office:
        rollout = next(d for d in deployments.list_deployments(office) if d.version == "v0")
        (incident,) = incidents.list_incidents(office)
    assert rollout.compliance_baseline is not None
    assert 90 < rollout.compliance_baseline <= 100
    (opened,) = stage.records("incident_opened")
    assert incident.trigger is Trigger.COMPLIANCE
    assert float(opened.body["limit"]) == pytest.approx(float(rollout.compliance_baseline) - 2, abs=1e-5)
    assert (run.state, run.to_digest) == (RunState.SUCCEEDED, stage.digest("v1"))


# --- deployments ------------------------------------------------------------------------------------------------------


def test_a_rolled_back_checkpoint_is_not_deployed_again_until_it_is_released_with_a_reason(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    breached(stage)
    watcher = stage.watch()
    assert stage.wait_for_end().state is RunState.SUCCEEDED
    assert watcher.end() == 0

    refused = stage.cli("deploy", SERVICE, "v2")
    assert (refused.returncode, "quarantined" in refused.stderr) == (30, True)
    release = ("checkpoint", "release", "--service", SERVICE, "--version", "v2", "--env", ENV, "--reason")
    assert stage.cli(*release, " ").returncode == 30
    assert stage.cli("deploy", SERVICE, "v2").returncode == 30
    assert stage.cli(*release, "the encoder is fixed upstream").returncode == 0
    assert stage.cli("deploy", SERVICE, "v2").returncode == 0
    assert server.serves()["digest"] == stage.digest("v2")


def test_a_digest_that_answers_unannounced_opens_an_unregistered_deployment(
    own_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(own_server)
    stage.deploy("v1")
    stage.send_traffic()
    watcher = stage.watch_alive()
    wait_until(lambda: watcher.events("digest_answers"), "v1 is seen")
    parameters = {
        "digest": stage.digest("v2"),
        "version": "v2",
        "format": "sklearn-skops",
        "path": str(stage.prepared.sources["v2"]),
        "epoch": own_server.serves()["epoch"],
        "key": "somebody else",
    }
    status, _ = own_server.call("POST", f"/v2/repository/models/{SERVICE}/load", {"parameters": parameters})
    assert status == 200
    wait_until(lambda: watcher.events("deployment_unregistered"), "v2 is seen")
    assert watcher.end() == 0

    with stage.office(write=False) as office:
        newest = deployments.list_deployments(office)[-1]
    assert (newest.digest, newest.source, newest.state) == (stage.digest("v2"), "unregistered", "active")
    (record,) = stage.records("deployment_unregistered")
    assert record.body["before_digest"] == stage.digest("v1")


def test_the_last_answers_of_a_digest_that_was_switched_away_from_open_no_deployment(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    with stage.office() as office:
        seen_at = office.clock.now()  # v1 is seen, and before the watcher has looked it up, v2 is deployed
        stage.deploy("v2")
        settings = office.place(SERVICE, ENV)
        told = deployments.note_answering(office, settings, stage.digest("v1"), None, seen_at)
        later = deployments.note_answering(office, settings, stage.digest("v1"), None, seen_at.plus(60 * NS_PER_S))

    assert told is deployments.Answering.STRAGGLER
    assert later is deployments.Answering.UNREGISTERED
    assert len(stage.records("deployment_unregistered")) == 1


# --- proving the recovery ---------------------------------------------------------------------------------------------


def test_with_too_little_traffic_after_the_switch_golden_probes_decide(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    clients = stage.send_traffic()
    breached(stage)
    clients.stop()
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert run.state is RunState.SUCCEEDED
    (held,) = stage.records("window_held")
    assert held.body["judged_by"] == "golden_probes"
    assert held.body["samples"] >= 10


def test_without_traffic_and_with_too_few_probes_the_run_is_inconclusive(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server, policy=Policy(min_probes=1000, deadline_s=5))
    stage.deploy("v1")
    breached(stage)
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.INCONCLUSIVE, "too_few_samples")
    with stage.office(write=False) as office:
        (incident,) = incidents.list_incidents(office)
    assert incident.state.value == "open"


def test_killed_clients_and_a_rotated_log_do_not_break_the_window(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server, policy=Policy(recovery_s=3))
    traffic = stage.state / "traffic.json"
    traffic.write_text(json.dumps(stage.prepared.traffic), encoding="utf-8")
    stage.deploy("v1")
    breached(stage)
    first = start_clients(stage, traffic, "clients-1")
    watcher = stage.watch()
    wait_until(lambda: stage.records("golden_answered"), "the window begins")
    first.kill()
    first.wait()
    server.log.rename(server.log.with_suffix(".1"))
    start_clients(stage, traffic, "clients-2")
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert run.state is RunState.SUCCEEDED
    (held,) = stage.records("window_held")
    assert held.body["judged_by"] == "traffic"
    assert server.log.exists()


def start_clients(stage: Stage, traffic: Path, name: str) -> subprocess.Popen[bytes]:
    """The demo's clients as a process of their own, so that they can be killed."""
    spec = {
        "host": "127.0.0.1",
        "port": stage.server.port,
        "model": SERVICE,
        "service": SERVICE,
        "env": ENV,
        "clients": 2,
        "traffic": str(traffic),
        "scores": str(stage.state / "scores.jsonl"),
        "tally": str(stage.state / f"{name}.json"),
        "boot_id": read_boot_id(),
    }
    return stage.processes.start(["-m", "rearguard.demo.clients", json.dumps(spec)], out=stage.state / f"{name}.log")


# --- watchers ---------------------------------------------------------------------------------------------------------


def test_a_second_watch_on_the_same_state_is_refused_with_75(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    first = stage.watch_alive()
    second = stage.cli("watch", "--json", timeout_s=15)
    assert (second.returncode, "officer_alive" in second.stderr) == (75, True)
    assert first.process.poll() is None
    assert first.end() == 0


def test_a_watcher_that_is_told_to_end_in_a_run_exits_0_and_the_next_finishes_it_once(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=Policy(recovery_s=3))
    stage.deploy("v1")
    run_id = breached(stage)
    stage.send_traffic()
    first = stage.watch()
    wait_until(lambda: stage.records("golden_answered"), "the run is in its window")
    asked = time.monotonic()
    assert first.end() == 0
    assert time.monotonic() - asked < 3, "it waited for the run"
    assert not stage.records("window_held")
    second = stage.watch()
    run = stage.wait_for_end()
    assert second.end() == 0

    assert (run.id, run.state) == (run_id, RunState.SUCCEEDED)
    assert set(stage.kinds(run_id).values()) == {1}
    assert not officer_alive(stage.state)


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["lock:before_effect", "select:after_record", "verify:after_effect"])
def test_a_run_cancelled_before_traffic_moves_ends_cancelled_and_moves_nothing(
    server: Server, set_stage: SetStage, point: str
) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    run_id = breached(stage)
    before = server.serves()
    assert stage.watch(fault=point).process.wait(20) == -signal.SIGKILL
    cancelled = stage.cli("runs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    watcher = stage.watch_alive()
    run = stage.wait_for_end()
    wait_until(lambda: stage.done_steps(run_id)[-1:] == ("close.record",), "the engine has nothing left to do")
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.CANCELLED, "cancelled")
    assert (stage.kinds(run_id)["rollback_finished"], stage.kinds(run_id)["rollback_closed"]) == (1, 1)
    assert stage.open_run() is None
    assert server.serves() == before


def test_a_cancel_that_was_accepted_while_the_target_is_proven_is_honoured(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server, policy=Policy(max_age_s=2))  # stale at once: the proof then loads the model, for seconds
    stage.deploy("v1")
    run_id = breached(stage)
    before = server.serves()
    watcher = stage.watch()
    wait_until(lambda: stage.records("target_selected"), "the proof begins")
    with stage.office() as office:
        rollbacks.cancel(office, run_id, by="test")
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert run.state is RunState.CANCELLED
    assert server.serves() == before


def test_a_run_that_may_have_moved_traffic_cannot_be_cancelled(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    run_id = breached(stage)
    assert stage.watch(fault="activate:before_effect").process.wait(20) == -signal.SIGKILL
    refused = stage.cli("runs", "cancel", run_id)
    assert (refused.returncode, "run_past_cancel" in refused.stderr) == (75, True)
    watcher = stage.watch()
    assert stage.wait_for_end().state is RunState.SUCCEEDED
    assert watcher.end() == 0


# --- what a hostile reviewer found ------------------------------------------------------------------------------------


def test_an_open_incident_of_another_digest_does_not_keep_the_officer_from_acting(
    server: Server, set_stage: SetStage
) -> None:
    """A refused rollback leaves its incident open; the next bad version must still be rolled back."""
    stage = set_stage(server, versions="v0,v1,v2")
    stage.deploy("v0")
    stage.arm()
    refused = stage.force_breach()
    watcher = stage.watch_alive()
    wait_until(lambda: stage.kinds(refused)["rollback_closed"], "the first run is refused")
    stage.deploy("v1")
    stage.send_traffic()
    stage.deploy("v2")
    wait_until(lambda: len(stage.runs()) == 2 and stage.runs()[1].state in TERMINAL, "the second run ends")
    assert watcher.end() == 0

    assert [run.state for run in stage.runs()] == [RunState.REFUSED, RunState.SUCCEEDED]
    assert stage.records("incident_closed")[0].body == {
        "incident_id": "R-1",
        "false_positive": False,
        "by": "superseded",
    }
    assert server.serves()["digest"] == stage.digest("v1")


def test_a_place_that_is_armed_during_a_breach_is_rolled_back(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    stage.send_traffic()
    watcher = stage.watch()
    stage.deploy("v2")
    wait_until(lambda: stage.records("rollback_withheld"), "the breach is observed")
    stage.arm()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert (run.state, run.incident_id) == (RunState.SUCCEEDED, "R-1")


def test_a_candidate_without_its_golden_predictions_is_skipped(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server, versions="v0,v1,v2")
    for version in ("v0", "v1", "v2"):
        stage.deploy(version)
    with stage.office() as office:
        golden = checkpoints.find(office, service=SERVICE, version="v1").golden_sha256
        (office.store.blobs / golden).unlink()
    stage.arm()
    stage.force_breach()
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert run.state is RunState.SUCCEEDED
    assert server.serves()["digest"] == stage.digest("v0")


def test_disarming_ends_a_run_that_has_not_touched_traffic(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    breached(stage)
    assert stage.watch(fault="freeze:before_effect").process.wait(20) == -signal.SIGKILL
    with stage.office() as office:
        automation.set_armed(office, PLACE, armed=False, by="test")
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert run.state is RunState.CANCELLED
    assert server.serves()["digest"] == stage.digest("v2")


def test_a_run_that_waited_while_another_version_was_deployed_is_refused(server: Server, set_stage: SetStage) -> None:
    """It was asked for against v2; v1 serves now, and going back to v0 is not what anybody wants."""
    stage = set_stage(server, versions="v0,v1,v2")
    stage.deploy("v0")
    breached(stage)
    stage.deploy("v1")
    watcher = stage.watch()
    run = stage.wait_for_end()
    assert watcher.end() == 0

    assert (run.state, run.reason) == (RunState.REFUSED, "active_changed")
    assert server.serves()["digest"] == stage.digest("v1")


def test_answers_older_than_the_newest_deployment_open_no_deployment(own_server: Server, set_stage: SetStage) -> None:
    """A watcher that starts reads the log's past; a digest that answered before the switch does not answer now."""
    stage = set_stage(own_server, versions="v0,v1,v2")
    stage.deploy("v0")
    clients = stage.send_traffic()
    wait_until(lambda: len(clients.answers) >= 20, "v0 answers")
    clients.stop()
    with stage.office() as office, office.database.transaction() as connection:
        connection.execute(sql("DELETE FROM deployments"))  # as if nobody had announced v0
    stage.deploy("v1")
    watcher = stage.watch_alive()
    time.sleep(2)
    assert watcher.end() == 0

    assert stage.records("deployment_unregistered") == []
