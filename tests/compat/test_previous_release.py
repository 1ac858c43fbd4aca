"""A state directory that an earlier release left in the midst of a rollback is finished by this one, exactly once.

The archives were written by that release (see README.md). The clock goes on from the instant of the death, so that a run's
deadline means the same on whatever day this is tried; one test takes the clock of today.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from make_state import ENV, POINTS, SERVICE
from released import BEFORE_SWITCH, NAMES, SCHEMAS, GoingOn, digest_of, rows, unpacked

from rearguard.database import SCHEMA_VERSION, open_database
from rearguard.model.run import TERMINAL, RunState
from rearguard.officer import reporting, rollbacks, watching
from rearguard.officer.office import Office, open_office

OF_ONE_RUN = (
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
"""Every record of a rollback by hand that succeeded, as docs/reference/evidence.md lists them."""
ORDERS = dict(zip(POINTS, (1, 2, 1), strict=True))
"""Orders with the run's key: an effect that was not recorded is done again with the same key, one that was is not."""


def point_of(name: str) -> str:
    """The fault point at which an archive's process died."""
    return POINTS[[*NAMES].index(name) % len(POINTS)]


def the_run(office: Office) -> str:
    (found,) = rollbacks.list_runs(office)
    return found.id


@pytest.fixture(scope="module", params=NAMES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Which archive, and its state directory after this release has watched until the run ended. Read only."""
    state = unpacked(request.param, tmp_path_factory.mktemp("compat"))
    stop = threading.Event()
    patience = threading.Timer(60, stop.set)
    patience.start()

    def notify(name: str, _fields: dict[str, Any]) -> None:
        if name == "run_finished":
            stop.set()

    office = Office(
        state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=GoingOn(state)
    )
    try:
        assert watching.watch(office, stop, notify)
        office.deliver()
    finally:
        patience.cancel()
        office.close()
    return request.param, state


@pytest.mark.parametrize("name", NAMES)
def test_an_archive_holds_the_schema_of_its_release(name: str, tmp_path: Path) -> None:
    state = unpacked(name, tmp_path)
    assert rows(state, "SELECT value FROM meta WHERE key = 'schema_version'") == [(SCHEMAS[name.partition("/")[0]],)]


def test_the_schema_is_brought_up_to_date(finished: tuple[str, Path]) -> None:
    found = rows(finished[1], "SELECT value FROM meta WHERE key = 'schema_version'")
    assert found == [(str(SCHEMA_VERSION),)]


def test_the_run_succeeds_under_this_release(finished: tuple[str, Path]) -> None:
    with open_office(finished[1], write=False) as office:
        (run,) = rollbacks.list_runs(office)
    assert (run.state, run.reason) == (RunState.SUCCEEDED, "")


def test_each_record_of_the_run_stands_once(finished: tuple[str, Path]) -> None:
    with open_office(finished[1], write=False) as office:
        story = rollbacks.show(office, the_run(office))
    assert Counter(record.kind for record in story.records) == dict.fromkeys(OF_ONE_RUN, 1)


def test_the_chain_and_the_named_files_verify(finished: tuple[str, Path]) -> None:
    with open_office(finished[1], write=False) as office:
        assert reporting.verify_evidence(office).ok


def test_the_good_checkpoint_serves(finished: tuple[str, Path]) -> None:
    state = finished[1]
    assert (state / "serving").read_text(encoding="utf-8") == digest_of(state, "v1")


def test_orders_are_repeated_with_the_same_key_only_where_they_were_not_recorded(finished: tuple[str, Path]) -> None:
    name, state = finished
    with open_office(state, write=False) as office:
        key = f"{the_run(office)}:activate"
    orders = [json.loads(line) for line in (state / "orders.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [order["KEY"] for order in orders].count(key) == ORDERS[point_of(name)]


def test_the_place_is_free_again(finished: tuple[str, Path]) -> None:
    assert rows(finished[1], "SELECT open_run_id FROM places") == [(None,)]


def test_messages_of_the_earlier_release_are_delivered(finished: tuple[str, Path]) -> None:
    state = finished[1]
    with open_office(state, write=False) as office:
        run_id = the_run(office)
    lines = (state / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    assert f"{run_id}:begun" in [json.loads(line)["key"] for line in lines]


def test_the_report_renders(finished: tuple[str, Path]) -> None:
    with open_office(finished[1], write=False) as office:
        text = reporting.render(reporting.status_report(office), form="markdown")
        assert f"`rollback_log.json#{the_run(office)}`" in text


def rearguard(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *words, "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_reader_before_any_writer_says_that_the_state_is_older(tmp_path: Path) -> None:
    state = unpacked(BEFORE_SWITCH, tmp_path)
    done = rearguard(state, "runs", "list", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"], "rearguard run" in error["hint"]) == (75, "schema_older", True)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_taken_up_long_after_its_deadline_is_ended_and_lets_go_of_its_place(name: str, tmp_path: Path) -> None:
    """By a real process, with the clock of today: the archives are older than any deadline in them."""
    state = unpacked(name, tmp_path)
    command = [sys.executable, "-m", "rearguard.interfaces.cli", "watch", "--json", "--state", str(state)]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    patience = threading.Timer(60, watch.kill)
    patience.start()
    try:
        assert watch.stdout is not None
        for line in watch.stdout:
            if json.loads(line)["event"] == "run_finished":
                break
    finally:
        watch.send_signal(signal.SIGTERM)
        watch.communicate(timeout=60)
        patience.cancel()
    with open_office(state, write=False) as office:
        (run,) = rollbacks.list_runs(office)
        assert run.state in TERMINAL
        assert rollbacks.plan(office, service=SERVICE, env=ENV).refusals != ("another_run_open",)
        assert reporting.verify_evidence(office).ok
    assert (state / "serving").read_text(encoding="utf-8") == digest_of(state, "v1")
