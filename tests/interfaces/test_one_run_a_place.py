"""Several people, or a person and a breach, ask for a rollback of one place: one run is open at a time, and none is left over."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest_cli import ENV, PLACE, SERVICE
from conftest_ready import Start, breach, error_of, rearguard, start, until

from rearguard.database import OfficerLock
from rearguard.edge import SystemClock
from rearguard.model.run import Run, RunState
from rearguard.officer import incidents, rollbacks
from rearguard.officer.office import open_office

__all__ = ["start"]
WORDS = ("rollback", "run", SERVICE, "--env", ENV, "--execute", "--json", "--state")


@pytest.fixture
def officer(ready: Path) -> Iterator[OfficerLock]:
    """Somebody who holds the office, shows progress, and takes up nothing."""
    lock = OfficerLock(ready)
    lock.acquire(SystemClock().now())
    yield lock
    lock.release()


def runs(state: Path) -> tuple[Run, ...]:
    """Those that were asked for in the test."""
    with open_office(state, write=False) as office:
        return rollbacks.list_runs(office)[1:]


def asked(state: Path) -> str:
    """The run of a breach that nobody has taken up."""
    with open_office(state) as office:
        run_id = breach(office)
    assert run_id is not None
    return run_id


@pytest.mark.usefixtures("officer")
def test_a_rollback_by_hand_is_refused_while_another_run_waits_for_the_officer(ready: Path) -> None:
    run_id = asked(ready)
    done = rearguard(*WORDS, ready)
    assert error_of(done) == (30, "another_run_open")
    assert run_id in json.loads(done.stdout)["error"]["hint"]
    assert [run.id for run in runs(ready)] == [run_id]


def test_a_rollback_by_hand_without_an_officer_calls_off_what_nobody_has_begun(ready: Path) -> None:
    run_id = asked(ready)
    assert rearguard(*WORDS, ready).returncode == 0
    stray, by_hand = runs(ready)
    assert (stray.id, stray.state) == (run_id, RunState.CANCELLED)
    assert by_hand.state is RunState.SUCCEEDED


def test_a_run_whose_officer_left_before_it_began_is_called_off(
    ready: Path, officer: OfficerLock, start: Start
) -> None:
    process = start(*WORDS, ready)
    until(lambda: runs(ready), "it was asked for")
    officer.release()
    assert process.handle.wait(30) == 75
    error = json.loads(process.out.read_text(encoding="utf-8").splitlines()[-1])["error"]
    (run,) = runs(ready)
    assert (run.state, error["code"]) == (RunState.CANCELLED, "officer_died")
    assert (
        error["message"] == f"the officer left before it began {run.id}; the run is called off, and nothing was touched"
    )


def test_an_incident_whose_run_by_hand_was_never_begun_is_left_to_the_next_officer(ready: Path) -> None:
    with open_office(ready) as office:
        proposal = rollbacks.plan(office, service=SERVICE, env=ENV)
        first = breach(office)
        assert first is not None
        rollbacks.cancel(office, first, by="auto")
        run_id = rollbacks._request(office, proposal, None, "ops", in_office=True)
        with pytest.raises(rollbacks.ConflictError):
            rollbacks._left_alone(office, rollbacks.show(office, run_id).run)
        with office.database.reading() as connection:
            incident = incidents.open_at(connection, PLACE)
    assert incident is not None
    assert incident.run_id == first


def test_of_rollbacks_that_are_asked_for_at_once_one_is_done_and_none_is_left_over(ready: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *WORDS, str(ready)]
    with (tmp_path / "out").open("wb") as out:
        started = [subprocess.Popen(command, stdout=out, stderr=out) for _ in range(4)]
        codes = [process.wait(90) for process in started]
    states = [run.state for run in runs(ready)]
    assert states.count(RunState.SUCCEEDED) == 1
    assert set(states) <= {RunState.SUCCEEDED, RunState.CANCELLED}
    assert codes.count(0) == 1
