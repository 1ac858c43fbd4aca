"""An officer that hangs, as people see it: it holds the office and has shown no progress for longer than its lease."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest_cli import ENV, SERVICE, Lived

from rearguard.database import LEASE_S
from rearguard.edge import SystemClock
from rearguard.errors import ConflictError
from rearguard.interfaces.cli.main import cli
from rearguard.model.time import NS_PER_S
from rearguard.officer import checkpoints, overview, rollbacks, setup
from rearguard.officer.office import open_office

Beat = Callable[[float], None]


@pytest.fixture
def officer(copy: Lived) -> Iterator[Beat]:
    """Holds the office of the copied state; called with seconds, its last beat was so long ago."""
    handle = os.open(copy.state / "officer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX)

    def beat(ago_s: float) -> None:
        now = SystemClock().now()
        line = f"4242 {now.boot_id} {now.mono_ns - int(ago_s * NS_PER_S)}".ljust(95) + "\n"
        os.pwrite(handle, line.encode(), 0)

    yield beat
    os.close(handle)


def status(state: Path) -> str:
    return CliRunner().invoke(cli, ["status", "--state", str(state)]).stdout.splitlines()[0]


def test_status_tells_alive_from_hung(copy: Lived, officer: Beat) -> None:
    officer(0)
    assert status(copy.state) == "officer: alive (process 4242)"
    officer(LEASE_S + 85)
    assert status(copy.state) == "officer: hung since 100 s (process 4242); `rearguard run` takes over"


def test_status_without_an_officer(copy: Lived) -> None:
    assert status(copy.state) == "officer: not running (start it: rearguard run)"


def test_a_hung_officer_is_not_alive_for_a_program(copy: Lived, officer: Beat) -> None:
    officer(LEASE_S + 5)
    with open_office(copy.state, write=False) as office:
        found = overview.overview(office)
    assert (found.officer_alive, found.officer.state, found.officer.pid) == (False, "hung", 4242)


def test_the_doctor_says_that_no_officer_is_alive(copy: Lived) -> None:
    with open_office(copy.state) as office:
        (none,) = [check for check in setup.doctor(office) if check.name == "officer"]
    assert (none.outcome.value, "rearguard run" in none.hint) == ("inconclusive", True)


def test_the_doctor_says_how_the_officer_stands(copy: Lived, officer: Beat) -> None:
    found = []
    for ago_s in (0.0, LEASE_S + 5):
        officer(ago_s)
        with open_office(copy.state) as office:
            found.append([check for check in setup.doctor(office) if check.name == "officer"])
    (living,), (hung,) = found
    assert (living.outcome.value, living.hint) == ("pass", "")
    assert (hung.outcome.value, "4242" in hung.message, "rearguard run" in hung.hint) == ("fail", True, True)


def test_who_waits_for_a_rollback_gives_up_on_an_officer_that_hangs(copy: Lived, officer: Beat) -> None:
    officer(0)
    with open_office(copy.state) as office:
        checkpoints.release(office, service=SERVICE, version="v2", env=ENV, reason="mended", by="test")
        hangs = threading.Event()

        def begun(_run_id: str) -> None:
            officer(LEASE_S + 5)
            hangs.set()

        with pytest.raises(ConflictError) as refused:
            rollbacks.run(office, service=SERVICE, env=ENV, to="v2", by="test", progress=begun)
    assert hangs.is_set()
    assert (refused.value.code, "rearguard run" in refused.value.hint) == ("officer_hung", True)
