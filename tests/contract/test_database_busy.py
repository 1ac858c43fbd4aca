"""Somebody holds the database's write lock: whoever does not hold it is left alone, and nobody waits beyond a lease."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rearguard.database import (
    DATABASE_NAME,
    LEASE_S,
    Database,
    connection,
    lock,
    make_way,
    open_database,
    sql,
    write_lock_holders,
)
from rearguard.edge import SystemClock
from rearguard.errors import DatabaseBusyError
from rearguard.model.time import NS_PER_S

OFFICER = """
import sqlite3, sys
from pathlib import Path
from rearguard.database import OfficerLock
from rearguard.edge import SystemClock

lock = OfficerLock(Path(sys.argv[1]))
lock.acquire(SystemClock().now())
database = sqlite3.connect(Path(sys.argv[1]) / "rearguard.db", isolation_level=None)
database.execute(sys.argv[2])
database.execute("SELECT * FROM meta").fetchall()
print("ready", flush=True)
sys.stdin.readline()
"""
LATER_NS = int((LEASE_S + 5) * NS_PER_S)
"""After its only beat: an officer of ours counts as hung by then."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(tmp_path)
    yield database
    database.close()


@pytest.fixture
def writer(database: Database) -> Iterator[sqlite3.Connection]:
    """This process, in the midst of a transaction; not through the officer's pool."""
    raw = sqlite3.connect(database.path, isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    yield raw
    raw.close()


def officer(state: Path, begin: str) -> subprocess.Popen[str]:
    """A process that holds the office, has the database open, and has begun a transaction."""
    words = [sys.executable, "-c", OFFICER, str(state), begin]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    """Let it go on to its end; its exit code."""
    process.communicate("\n", timeout=20)
    return process.returncode


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_FROZEN_WRITER_S", 0.1)


def test_a_hung_officer_that_does_not_hold_the_write_lock_is_not_killed(
    tmp_path: Path, writer: sqlite3.Connection
) -> None:
    hung = officer(tmp_path, "BEGIN")
    with pytest.raises(DatabaseBusyError) as refused:
        make_way(tmp_path, SystemClock().now().plus(LATER_NS))
    assert end(hung) == 0
    assert refused.value.code == "database_unavailable"
    assert str(os.getpid()) in refused.value.hint  # who holds it


def test_a_hung_officer_that_holds_the_write_lock_is_killed(tmp_path: Path, database: Database) -> None:
    hung = officer(tmp_path, "BEGIN IMMEDIATE")
    make_way(tmp_path, SystemClock().now().plus(LATER_NS))
    assert hung.wait(20) == -9
    end(hung)


def test_who_only_reads_does_not_hold_the_write_lock(database: Database) -> None:
    with database.reading() as reader:
        reader.execute(sql("SELECT * FROM meta")).all()
        assert write_lock_holders(database.path) == ()


def test_who_writes_holds_the_write_lock(database: Database, writer: sqlite3.Connection) -> None:
    assert write_lock_holders(database.path) == (os.getpid(),)


def test_looking_who_holds_the_write_lock_does_not_let_go_of_it(database: Database, writer: sqlite3.Connection) -> None:
    """As opening and closing the file would, by the rules of POSIX locks."""
    write_lock_holders(database.path)
    other = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
    )
    tried = subprocess.run(
        [sys.executable, "-c", other, str(database.path)], capture_output=True, text=True, check=False
    )
    assert "database is locked" in tried.stderr


def test_an_officer_waits_for_the_database_a_good_deal_less_than_its_lease(database: Database) -> None:
    database.take_office(SystemClock().now())
    with database.transaction() as writing:
        wait_ms = writing.execute(sql("PRAGMA busy_timeout")).scalar_one()
    assert 0 < wait_ms / 1000 <= LEASE_S / 2


def test_a_database_that_somebody_else_writes_to_is_busy_and_not_broken(
    database: Database, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OFFICE_WAIT_S", 0.05)
    with pytest.raises(DatabaseBusyError) as refused:
        database.take_office(SystemClock().now())
    assert refused.value.code == "database_unavailable"
    assert DATABASE_NAME in refused.value.message
