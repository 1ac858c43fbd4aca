"""A run that was begun with an engine version that nobody runs is shown as stranded, with the command that mends it.

The state directories are those of a killed rollback (README.md); the engine's own row is given a version that no release
has had.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from make_state import ENV, SERVICE
from released import AFTER_PROOF, BEFORE_SWITCH, digest_of, rows, unpacked

from rearguard.database import open_database
from rearguard.model.run import RunState
from rearguard.officer import overview, reporting, rollbacks, setup, standing, watching
from rearguard.officer.office import open_office
from rearguard.officer.standing import Standing

MENDED = ("run_mended", "rollback_finished", "rollback_closed")


def strand(state: Path) -> str:
    """Make the only run one of an unknown release; returns its id."""
    open_database(state).close()
    raw = sqlite3.connect(state / "rearguard.db")
    with raw:
        raw.execute("UPDATE workflow_status SET application_version = 'rollback-v0'")
    raw.close()
    ((run_id,),) = rows(state, "SELECT id FROM runs")
    return run_id


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A run that was killed before traffic moved, stranded."""
    found = unpacked(BEFORE_SWITCH, tmp_path)
    strand(found)
    return found


def run_of(state: Path) -> str:
    return rows(state, "SELECT id FROM runs ORDER BY rowid")[0][0]


def rearguard(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *words, "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("words", [("runs", "list"), ("runs", "show", "RUN"), ("status",), ("doctor",)], ids=" ".join)
def test_whoever_looks_is_told_the_command_that_mends_it(state: Path, words: tuple[str, ...]) -> None:
    run_id = run_of(state)
    said = rearguard(state, *(run_id if word == "RUN" else word for word in words)).stdout
    assert "stranded" in said
    assert f"rearguard runs mend {run_id} --reason TEXT" in said


def test_the_doctor_fails_a_stranded_run(state: Path) -> None:
    with open_office(state) as office:
        assert [c.outcome.value for c in setup.doctor(office) if c.name == f"run {run_of(state)}"] == ["fail"]


def watched(state: Path, until: str) -> list[tuple[str, dict[str, Any]]]:
    """Events of a watch that ends with one of these."""
    stop, seen = threading.Event(), []
    patience = threading.Timer(20, stop.set)

    def notify(name: str, fields: dict[str, Any]) -> None:
        seen.append((name, fields))
        if name == until:
            stop.set()

    patience.start()
    with open_office(state) as office:
        watching.watch(office, stop, notify)
        office.deliver()
    patience.cancel()
    return seen


def test_an_officer_that_cannot_finish_it_pages_and_leaves_it_alone(state: Path) -> None:
    run_id = run_of(state)
    events = watched(state, "run_stranded")
    assert [fields["run_id"] for name, fields in events if name == "run_stranded"] == [run_id]
    assert rows(state, "SELECT state FROM runs") == [("running",)]
    messages = [json.loads(line) for line in (state / "messages.jsonl").read_text(encoding="utf-8").splitlines()]
    (told,) = [m for m in messages if m["key"] == f"{run_id}:stranded"]
    assert told["fields"]["next"] == f"rearguard runs mend {run_id} --reason TEXT"


def test_mending_ends_it_as_failed_and_lets_go_of_its_place(state: Path) -> None:
    run_id = run_of(state)
    before = len(rows(state, "SELECT 1 FROM evidence"))
    done = rearguard(state, "runs", "mend", run_id, "--reason", "release gone", "--by", "ops", "--json")
    assert (done.returncode, json.loads(done.stdout)["state"], json.loads(done.stdout)["reason"]) == (
        0,
        "failed",
        "stranded",
    )
    assert rows(state, "SELECT open_run_id FROM places") == [(None,)]
    assert rows(state, "SELECT status FROM workflow_status") == [("CANCELLED",)]
    with open_office(state, write=False) as office:
        records = rollbacks.show(office, run_id).records
        assert tuple(r.kind for r in records if r.id > before) == MENDED
        (mended,) = [r for r in records if r.kind == "run_mended"]
        assert mended.body == {"by": "ops", "reason": "release gone", "engine_version": "rollback-v0"}
        assert reporting.verify_evidence(office).ok


def test_people_are_told_that_a_mended_run_ended(state: Path) -> None:
    run_id = run_of(state)
    with open_office(state) as office:
        standing.mend(office, run_id, by="ops", reason="release gone")
    found = rows(state, "SELECT fields FROM outbox WHERE key = ?", f"{run_id}:ended")
    assert [json.loads(fields)["reason"] for (fields,) in found] == ["stranded"]


def test_a_new_run_can_begin_and_succeed_after_the_mend(state: Path) -> None:
    with open_office(state) as office:
        standing.mend(office, run_of(state), by="ops", reason="release gone")
    with open_office(state) as office:
        run = rollbacks.run(office, service=SERVICE, env=ENV, to=None, by="ops")
        assert run.state is RunState.SUCCEEDED
    assert (state / "serving").read_text(encoding="utf-8") == digest_of(state, "v1")


def test_a_mend_notes_the_switch_that_the_stranded_run_had_recorded(tmp_path: Path) -> None:
    state = unpacked(AFTER_PROOF, tmp_path)
    run_id = strand(state)
    with open_office(state) as office:
        standing.mend(office, run_id, by="ops", reason="release gone")
        assert overview.overview(office).places[0].version == "v1"
        (finished,) = [r for r in rollbacks.show(office, run_id).records if r.kind == "rollback_finished"]
    assert finished.body["to_digest"] == digest_of(state, "v1")


def test_a_run_is_mended_while_an_officer_is_alive(state: Path) -> None:
    run_id = run_of(state)
    codes: list[int] = []
    stop = threading.Event()

    def notify(name: str, _fields: dict[str, Any]) -> None:
        if name == "run_stranded":
            codes.append(rearguard(state, "runs", "mend", run_id, "--reason", "release gone").returncode)
            stop.set()

    with open_office(state) as office:
        watching.watch(office, stop, notify)
    assert codes == [0]
    with open_office(state, write=False) as office:
        kinds = Counter(record.kind for record in rollbacks.show(office, run_id).records)
    assert {kind: kinds[kind] for kind in MENDED} == dict.fromkeys(MENDED, 1)


def refused(state: Path, run_id: str) -> tuple[int, str]:
    done = rearguard(state, "runs", "mend", run_id, "--reason", "try", "--json")
    return done.returncode, json.loads(done.stdout)["error"]["code"]


def test_a_run_that_an_officer_can_finish_is_not_mended(tmp_path: Path) -> None:
    state = unpacked(BEFORE_SWITCH, tmp_path)
    open_database(state).close()
    assert refused(state, run_of(state)) == (75, "run_not_stranded")


def test_a_run_that_ended_is_not_mended(state: Path) -> None:
    with open_office(state) as office:
        standing.mend(office, run_of(state), by="ops", reason="release gone")
    assert refused(state, run_of(state)) == (75, "run_ended")


def test_a_mend_without_a_reason_is_refused(state: Path) -> None:
    done = rearguard(state, "runs", "mend", run_of(state), "--reason", " ", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (30, "reason_missing")


def test_a_run_that_a_living_officer_of_another_release_took_up_is_not_stranded(state: Path) -> None:
    """As the database shows it while that officer is at work: the office is held, and the run is its own."""
    run_id = run_of(state)
    with open_office(state) as office:
        engine = rollbacks.build_engine(office)
        engine.start()
        try:
            ((generation,),) = rows(state, "SELECT generation FROM officer")
            raw = sqlite3.connect(state / "rearguard.db")
            with raw:
                raw.execute("UPDATE workflow_status SET executor_id = ?", (f"officer-{generation}",))
            raw.close()
            assert standing.stranded_runs(office) == ()
            assert refused(state, run_id) == (75, "run_not_stranded")
        finally:
            engine.stop()
        assert standing.stranded_runs(office) == (run_id,)


def test_a_run_that_waits_because_no_officer_is_alive_is_shown_as_such(tmp_path: Path) -> None:
    state = unpacked(BEFORE_SWITCH, tmp_path)
    open_database(state).close()
    with open_office(state, write=False) as office:
        (run,) = rollbacks.list_runs(office)
        assert standing.standings(office, (run,))[run.id].standing is Standing.WAITS_FOR_OFFICER
    assert "waits for officer: rearguard " in rearguard(state, "runs", "list").stdout
    assert "waits for officer: rearguard " in rearguard(state, "status").stdout


def test_a_run_that_the_engine_has_never_heard_of_is_taken_up(tmp_path: Path) -> None:
    """It was asked for, and whoever asked died before an engine had it."""
    state = unpacked(BEFORE_SWITCH, tmp_path)
    open_database(state).close()
    raw = sqlite3.connect(state / "rearguard.db")
    with raw:
        for table in ("operation_outputs", "workflow_inputs", "workflow_input", "workflow_status"):
            if raw.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
                raw.execute(f"DELETE FROM {table}")
        raw.execute("UPDATE runs SET state = 'requested', requested_by = 'auto'")
    raw.close()
    events = watched(state, "run_finished")
    assert [fields["run_id"] for name, fields in events if name == "run_finished"] == [run_of(state)]
