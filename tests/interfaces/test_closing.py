"""Closing an incident calls its rollback off, and what was closed is not opened again by the breach that was closed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE
from conftest_ready import Person, breach, error_of, office_at, rearguard, records

from rearguard.database import OfficerLock, sql
from rearguard.edge import SystemClock
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.incident import Incident
from rearguard.model.outcome import Outcome
from rearguard.model.run import RunState
from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer import approvals, automation, deployments, incidents, rollbacks
from rearguard.officer.incidents import Breach
from rearguard.officer.office import Office, open_office
from rearguard.recovery import records as records_of_steps
from rearguard.recovery.context import read_run


@pytest.fixture
def officer(ready: Path) -> Iterator[OfficerLock]:
    """Somebody who holds the office and shows progress."""
    lock = OfficerLock(ready)
    lock.acquire(SystemClock().now())
    yield lock
    lock.release()


def asked(state: Path) -> tuple[str, str]:
    """The run of a breach that no officer has taken up, and its incident."""
    with open_office(state) as office:
        run_id = breach(office)
        assert run_id is not None
        (found,) = [i for i in incidents.list_incidents(office) if i.run_id == run_id]
    return run_id, found.id


def row_of(state: Path, run_id: str) -> Any:
    with open_office(state, write=False) as office, office.database.reading() as connection:
        return connection.execute(sql("SELECT * FROM runs WHERE id = :id"), {"id": run_id}).one()


def messages(state: Path, cause: str) -> list[Any]:
    with open_office(state, write=False) as office, office.database.reading() as connection:
        rows = connection.execute(sql("SELECT * FROM outbox WHERE cause = :c ORDER BY id"), {"c": cause})
        return list(rows)


@pytest.mark.parametrize("words", [(), ("--false-positive",)])
def test_closing_an_incident_ends_its_waiting_run_when_no_officer_is_alive(ready: Path, words: tuple[str, ...]) -> None:
    run_id, incident_id = asked(ready)
    assert rearguard("incident", "close", incident_id, *words, "--by", "ana", "--state", ready).returncode == 0
    row = row_of(ready, run_id)
    assert (row.state, row.reason, row.cancel_requested) == ("cancelled", "cancelled", 1)


@pytest.mark.usefixtures("officer")
def test_closing_an_incident_asks_a_living_officer_to_end_its_waiting_run(ready: Path) -> None:
    run_id, incident_id = asked(ready)
    assert rearguard("incident", "close", incident_id, "--by", "ana", "--state", ready).returncode == 0
    row = row_of(ready, run_id)
    assert (row.state, row.cancel_requested) == ("requested", 1)
    (record,) = records(ready, "cancel_requested", run_id=run_id)
    assert record.body == {"by": "ana"}


def test_a_run_that_was_called_off_by_closing_cannot_be_approved(guarded: Path, tmp_path: Path) -> None:
    ana = Person(guarded, tmp_path, "ana")
    run_id, incident_id = asked(guarded)
    rearguard("incident", "close", incident_id, "--by", "bob", "--state", guarded)
    done = rearguard("approve", run_id, "--key", ana.private, "--state", guarded, "--json")
    assert error_of(done) == (75, "run_ended")


def test_closing_an_incident_resolves_the_page_that_asked_for_approval(guarded: Path) -> None:
    run_id, incident_id = asked(guarded)
    rearguard("incident", "close", incident_id, "--by", "bob", "--state", guarded)
    page = messages(guarded, f"approval:{run_id}")[-1]
    assert (page.action, json.loads(page.fields)["state"]) == ("resolve", "withdrawn")
    assert page.title == f"fraud/prod: approval request withdrawn: bob closed {incident_id}"


def test_a_pause_resolves_the_page_that_asked_for_approval(guarded: Path) -> None:
    run_id, _ = asked(guarded)
    rearguard("automation", "pause", "--reason", "audit", "--by", "eve", "--state", guarded)
    page = messages(guarded, f"approval:{run_id}")[-1]
    assert (page.action, page.title) == (
        "resolve",
        "fraud/prod: approval request withdrawn: eve paused automation: audit",
    )


def test_disarming_resolves_the_page_that_asked_for_approval(guarded: Path) -> None:
    run_id, _ = asked(guarded)
    rearguard("disarm", SERVICE, "--env", ENV, "--by", "eve", "--state", guarded)
    page = messages(guarded, f"approval:{run_id}")[-1]
    assert (page.action, page.title) == (
        "resolve",
        "fraud/prod: approval request withdrawn: eve disarmed fraud/prod",
    )


def test_a_cancelled_run_resolves_its_approval_page_as_cancelled(guarded: Path) -> None:
    run_id, _ = asked(guarded)
    rearguard("runs", "cancel", run_id, "--by", "eve", "--state", guarded)
    page = messages(guarded, f"approval:{run_id}")[-1]
    assert (page.action, json.loads(page.fields)["state"]) == ("resolve", "cancelled")


def test_an_expired_request_says_so_and_that_nothing_was_done(guarded: Path) -> None:
    run_id, incident_id = asked(guarded)
    with office_at(guarded, 16 * 60) as office:
        assert approvals.expire(office) == (run_id,)
    resolved = messages(guarded, f"approval:{run_id}")[-1]
    assert (resolved.action, json.loads(resolved.fields)["state"]) == ("resolve", "expired")
    assert resolved.title.endswith("nothing was done, v2 still serves")
    ended = messages(guarded, incident_id)[-1]
    assert (ended.severity, ended.title) == (
        "page",
        "fraud/prod: approval expired: no rollback was done, v2 still serves",
    )


# --- not opened again


def judged(office: Office, trigger: Trigger, t0: Instant, *also: Trigger) -> Breach:
    """What a watcher saw of v2: a breach of one trigger since `t0`, and of others in the same look."""
    now = office.clock.now()
    second = now.mono_ns // NS_PER_S
    with office.database.reading() as connection:
        active = deployments.newest(connection, PLACE)
    assert active is not None
    first = Judgement(
        trigger=trigger,
        digest=active.digest,
        outcome=Outcome.FAIL,
        reason="breach",
        window_start_s=second - 60,
        window_end_s=second,
        samples=200,
        exceedances=10,
        observed=Decimal("0.05"),
        limit=Decimal("0.01"),
        streak=2,
        first_bad_mono_ns=t0.mono_ns,
    )
    return Breach(
        place=PLACE,
        digest=active.digest,
        judgement=first,
        also=tuple(replace(first, trigger=other) for other in also),
        t0=t0,
        t1=now,
        telemetry=(),
        p95_ms=None,
    )


def closed(office: Office, since_s: int, *, by: str = "ana") -> Incident:
    """An incident of two triggers that began some seconds ago, closed now."""
    t0 = office.clock.now().plus(-since_s * NS_PER_S)
    found, _ = incidents.open_incident(office, judged(office, Trigger.ERRORS, t0, Trigger.LATENCY))
    return incidents.close(office, found.id, by=by, false_positive=True)


@pytest.mark.parametrize("trigger", [Trigger.ERRORS, Trigger.LATENCY])
def test_a_breach_that_began_before_its_incident_was_closed_is_not_opened_again(ready: Path, trigger: Trigger) -> None:
    with open_office(ready) as office:
        before = closed(office, 60)
        t0 = office.clock.now().plus(-30 * NS_PER_S)  # another run of bad observations than the incident's
        found, run_id = incidents.open_incident(office, judged(office, trigger, t0))
    assert (found.id, run_id) == (before.id, None)


def test_a_breach_that_began_after_the_closing_is_a_new_incident(ready: Path) -> None:
    with open_office(ready) as office:
        before = closed(office, 60)
        found, _ = incidents.open_incident(office, judged(office, Trigger.LATENCY, office.clock.now()))
    assert found.id != before.id


def test_a_trigger_that_the_closed_incident_did_not_have_is_a_new_incident(ready: Path) -> None:
    with open_office(ready) as office:
        before = closed(office, 60)
        t0 = office.clock.now().plus(-30 * NS_PER_S)
        found, _ = incidents.open_incident(office, judged(office, Trigger.COMPLIANCE, t0))
    assert found.id != before.id


def test_a_closing_of_another_boot_says_nothing_of_this_one(ready: Path) -> None:
    with open_office(ready) as office:
        before = closed(office, 60)
        t0 = replace(office.clock.now().plus(-30 * NS_PER_S), boot_id="another")
        found, _ = incidents.open_incident(office, judged(office, Trigger.LATENCY, t0))
    assert found.id != before.id


def test_an_incident_that_no_person_closed_does_not_keep_a_later_breach_away(ready: Path) -> None:
    """Closed when telemetry came back."""
    with open_office(ready) as office:
        automation.set_armed(office, PLACE, armed=False, by="ops")
        t0 = office.clock.now().plus(-60 * NS_PER_S)
        opened = replace(judged(office, Trigger.ERRORS, t0), note=incidents.DATA_PLANE_DOWN)
        before, _ = incidents.open_incident(office, opened)
        incidents.close_outage(office, PLACE)
        again = judged(office, Trigger.ERRORS, t0.plus(NS_PER_S))
        found, _ = incidents.open_incident(office, again)
    assert found.id != before.id


def test_a_run_that_was_called_off_leaves_the_place_free_for_a_rollback_by_hand(ready: Path) -> None:
    _, incident_id = asked(ready)
    rearguard("incident", "close", incident_id, "--by", "ana", "--state", ready)
    with open_office(ready) as office:
        done = rollbacks.run(office, service=SERVICE, env=ENV, to=None, by="ops")
    assert done.state is RunState.SUCCEEDED


# --- the page of what is over


def observed(state: Path) -> str:
    """An incident at a place that is not armed: people were paged, and no run was asked for."""
    rearguard("disarm", SERVICE, "--env", ENV, "--state", state)
    with open_office(state) as office:
        assert breach(office) is None
        return next(i.id for i in incidents.list_incidents(office) if i.state.value == "open")


def test_closing_an_incident_resolves_its_page(ready: Path) -> None:
    incident_id = observed(ready)
    rearguard("incident", "close", incident_id, "--by", "ana", "--state", ready)
    page, closed = messages(ready, incident_id)
    assert (page.severity, page.state) == ("page", "superseded")
    assert (closed.key, closed.action, closed.severity, closed.state) == (
        f"{incident_id}:closed",
        "resolve",
        "info",
        "open",
    )
    assert closed.title == f"fraud/prod: v2, Error Rate: {incident_id} closed, by ana"


def test_an_incident_that_another_version_supersedes_resolves_its_page(ready: Path) -> None:
    incident_id = observed(ready)
    with open_office(ready) as office:
        deployments.deploy(office, service=SERVICE, env=ENV, version="v1", by="ops")
        breach(office)
    closed = messages(ready, incident_id)[-1]
    assert (closed.action, json.loads(closed.fields)["reason"]) == ("resolve", "superseded")


def test_an_outage_that_is_over_resolves_its_page(ready: Path) -> None:
    rearguard("disarm", SERVICE, "--env", ENV, "--state", ready)
    with open_office(ready) as office:
        breach(office, note=incidents.DATA_PLANE_DOWN)
        (incident,) = [i for i in incidents.list_incidents(office) if i.state.value == "open"]
        incidents.close_outage(office, PLACE)
    closed = messages(ready, incident.id)[-1]
    assert (closed.action, json.loads(closed.fields)["reason"]) == ("resolve", "telemetry_back")


@pytest.mark.usefixtures("officer")
def test_what_a_called_off_run_says_after_its_incident_was_closed_opens_no_page_anew(ready: Path) -> None:
    run_id, incident_id = asked(ready)
    rearguard("incident", "close", incident_id, "--by", "ana", "--state", ready)
    with open_office(ready) as office, office.database.transaction() as connection:
        run = read_run(connection, run_id)
        failure = {"step": "lock", "state": "cancelled", "reason": "cancelled", "message": ""}
        records_of_steps.finish(office.recovery_context(), connection, run, {"failure": failure})
    assert [m.action for m in messages(ready, incident_id)] == ["resolve", "resolve"]
