"""A run that an officer takes up after its deadline: what it was asked for may be over, so it moves nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import SERVICE
from conftest_ready import breach, office_at

from rearguard.errors import RefusedError
from rearguard.model.run import Run, RunState
from rearguard.officer import checkpoints, incidents, rollbacks
from rearguard.officer.office import Office
from rearguard.recovery import effects
from rearguard.recovery.context import read_run

LATE_S = 3600.0
"""The deadline of the place is 20 s."""


def asked(state: Path) -> str:
    """An officer wrote incident and run, and died."""
    with office_at(state) as office:
        run_id = breach(office)
    assert run_id is not None
    return run_id


def take_up(office: Office, run_id: str) -> Run:
    """What an officer does with a run that it finds."""
    engine = rollbacks.build_engine(office)
    engine.start()
    try:
        engine.submit(run_id)
        engine.wait(run_id)
    finally:
        engine.stop()
    with office.database.reading() as connection:
        return read_run(connection, run_id)


def began(office: Office, run_id: str) -> tuple[Run, dict[str, Any]]:
    """That run and its state when an officer died after it had proven v1."""
    with office.database.reading() as connection:
        run = read_run(connection, run_id)
    digest = checkpoints.find(office, service=SERVICE, version="v1").digest
    then = asdict(run.requested_at)
    candidate = {"digest": digest, "version": "v1", "stale": False}
    return run, {"begun_at": then, "t4": then, "epoch": 99, "to_digest": digest, "candidates": [candidate]}


def test_an_automatic_run_that_is_taken_up_after_its_deadline_moves_no_traffic(ready: Path) -> None:
    run_id = asked(ready)
    before = (ready / "serving").read_text(encoding="utf-8")
    with office_at(ready, LATE_S) as office:
        run = take_up(office, run_id)
        (incident,) = [i for i in incidents.list_incidents(office) if i.run_id == run_id]
    assert (run.state, run.reason, incident.state.value) == (RunState.REFUSED, "run_expired", "open")
    assert (ready / "serving").read_text(encoding="utf-8") == before


def test_the_next_breaching_window_asks_anew_at_once_after_a_run_that_expired(ready: Path) -> None:
    run_id = asked(ready)
    with office_at(ready, LATE_S) as office:
        take_up(office, run_id)
        again = breach(office)
    assert again not in (None, run_id)


def test_an_automatic_run_that_had_begun_is_refused_by_the_proof_after_its_deadline(ready: Path) -> None:
    run_id = asked(ready)
    with office_at(ready, LATE_S) as office:
        run, state = began(office, run_id)
        with pytest.raises(RefusedError) as refused:
            effects.verify_target(office.recovery_context(), run, state)
    assert refused.value.code == "run_expired"


def test_no_order_is_given_for_an_automatic_run_whose_proof_is_older_than_its_deadline(ready: Path) -> None:
    run_id = asked(ready)
    before = (ready / "serving").read_text(encoding="utf-8")
    with office_at(ready, LATE_S) as office:
        run, state = began(office, run_id)
        answer = effects.activate(office.recovery_context(), run, state)
    assert (answer["failure"]["state"], answer["failure"]["reason"]) == ("refused", "run_expired")
    assert (ready / "serving").read_text(encoding="utf-8") == before


def test_a_switch_that_was_made_before_the_officer_died_is_gone_on_with_after_the_deadline(ready: Path) -> None:
    run_id = asked(ready)
    with office_at(ready, LATE_S) as office:
        run, state = began(office, run_id)
        (ready / "serving").write_text(state["to_digest"], encoding="utf-8")
        answer = effects.activate(office.recovery_context(), run, state)
    assert "failure" not in answer
