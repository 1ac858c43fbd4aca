"""The database: schema, migrations, transactions, and the lock that says who the living officer is.

The only room besides the engine that knows SQLAlchemy. Rows are written by the rooms that own the nouns, through the
connection that they are given; a writer's transaction begins IMMEDIATE, so that reading the head of the evidence chain
and appending to it are one step. SQLite runs in WAL mode with `synchronous=FULL`: a committed record survives power loss.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError

from rearguard.errors import ConflictError, DependencyError, IntegrityError, NotFoundError

__all__ = ["Connection", "Database", "OfficerLock", "open_database", "open_read_only", "sql"]

DATABASE_NAME = "rearguard.db"
SCHEMA_VERSION = 1
_READING = "rearguard_reading"
"""Execution option of a connection that takes no write lock."""

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE evidence (
        id INTEGER PRIMARY KEY, ts TEXT NOT NULL, monotonic_ns TEXT NOT NULL, boot_id TEXT NOT NULL,
        run_id TEXT, service TEXT, env TEXT, kind TEXT NOT NULL, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL)""",
    "CREATE INDEX evidence_run ON evidence (run_id)",
    """CREATE TABLE places (
        service TEXT NOT NULL, env TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 0, open_run_id TEXT,
        armed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (service, env))""",
    """CREATE TABLE checkpoints (
        digest TEXT PRIMARY KEY, service TEXT NOT NULL, version TEXT NOT NULL, format TEXT NOT NULL, manifest TEXT NOT NULL,
        golden_sha256 TEXT NOT NULL, added_at TEXT NOT NULL, verified_at TEXT, load_ms INTEGER, failure TEXT NOT NULL DEFAULT '',
        receipt TEXT NOT NULL DEFAULT '', verified_record INTEGER, UNIQUE (service, version))""",
    """CREATE TABLE deployments (
        id INTEGER PRIMARY KEY, service TEXT NOT NULL, env TEXT NOT NULL, digest TEXT NOT NULL, version TEXT NOT NULL,
        source TEXT NOT NULL, state TEXT NOT NULL, started_at TEXT NOT NULL, baseline TEXT)""",
    "CREATE INDEX deployments_place ON deployments (service, env, id)",
    """CREATE TABLE incidents (
        n INTEGER PRIMARY KEY, service TEXT NOT NULL, env TEXT NOT NULL, trigger_name TEXT NOT NULL, digest TEXT NOT NULL,
        state TEXT NOT NULL, t0 TEXT NOT NULL, t1 TEXT NOT NULL, run_id TEXT, acked_by TEXT NOT NULL DEFAULT '',
        false_positive INTEGER NOT NULL DEFAULT 0, attached TEXT NOT NULL DEFAULT '[]')""",
    "CREATE UNIQUE INDEX incidents_one_open ON incidents (service, env) WHERE state = 'open'",
    """CREATE TABLE runs (
        id TEXT PRIMARY KEY, service TEXT NOT NULL, env TEXT NOT NULL, incident_id TEXT, from_digest TEXT, to_digest TEXT,
        wanted_digest TEXT, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', requested_by TEXT NOT NULL,
        requested_at TEXT NOT NULL, cancel_requested INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX runs_state ON runs (state)",
    """CREATE TABLE quarantine (
        service TEXT NOT NULL, env TEXT NOT NULL, digest TEXT NOT NULL, run_id TEXT NOT NULL, since TEXT NOT NULL,
        PRIMARY KEY (service, env, digest))""",
    """CREATE TABLE outbox (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, title TEXT NOT NULL, fields TEXT NOT NULL, delivered TEXT NOT NULL
        DEFAULT '[]', state TEXT NOT NULL DEFAULT 'open', attempts INTEGER NOT NULL DEFAULT 0, last_error TEXT NOT NULL DEFAULT '')""",
)


class Database:
    """A connection pool to one database."""

    def __init__(self, engine: sqlalchemy.Engine, path: Path, *, read_only: bool) -> None:
        self.engine = engine
        self.path = path
        self.read_only = read_only

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One writer's transaction: all of it commits, or nothing.

        Raises `DependencyError` `database_unavailable` when the disk is full, the file read-only or locked for too long.
        """
        try:
            with self.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise _wrapped(error, self.path) from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view; nothing is written, and no writer is kept waiting."""
        try:
            with self.engine.connect().execution_options(**{_READING: True}) as connection:
                yield connection
        except DBAPIError as error:
            raise _wrapped(error, self.path) from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _wrapped(error: DBAPIError, path: Path) -> Exception:
    text = str(error.orig)
    if "malformed" in text or "not a database" in text:
        return IntegrityError(
            "database_damaged", f"{path} is damaged: {text}", "restore the state directory, then `rearguard log verify`"
        )
    hint = "free space on the state directory's disk, or make it writable; nothing was half-written"
    return DependencyError("database_unavailable", f"{path}: {text}", hint)


def open_database(state: Path) -> Database:
    """Open the state directory's database for writing; creates folder and schema when absent.

    Raises `DependencyError` `state_not_writable`, `IntegrityError` `database_damaged` or `schema_newer`.
    """
    path = state / DATABASE_NAME
    try:
        state.mkdir(parents=True, exist_ok=True)
        raw = sqlite3.connect(path, timeout=30)
    except (OSError, sqlite3.Error) as error:
        raise DependencyError(
            "state_not_writable",
            f"cannot open {path}: {error}",
            "name a writable folder with --state or REARGUARD_STATE",
        ) from error
    try:
        # WAL before anything else: it persists in the file; one fdatasync a commit instead of four.
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA busy_timeout=30000")
        _migrate(raw, path)
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error) or "not a database" in str(error):
            raise IntegrityError(
                "database_damaged", f"{path}: {error}", "restore the state directory from a copy"
            ) from error
        raise DependencyError(
            "state_not_writable",
            f"cannot write {path}: {error}",
            "make the state directory writable and free space on its disk",
        ) from error
    finally:
        raw.close()
    engine = sqlalchemy.create_engine(sqlalchemy.URL.create("sqlite", database=str(path)), connect_args={"timeout": 30})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _begin_immediate)
    return Database(engine, path, read_only=False)


def open_read_only(state: Path) -> Database:
    """Open the database for reading only; works on a read-only folder (R47).

    Raises `NotFoundError` `state_absent` when there is none, `IntegrityError` `database_damaged` or `schema_newer`.
    """
    path = state / DATABASE_NAME
    if not path.exists():
        raise NotFoundError(
            "state_absent",
            f"no Rearguard state in {state}",
            "nothing is recorded yet: `rearguard checkpoint add` or `rearguard watch` creates it; "
            "or name the folder with --state",
        )
    # In a folder that we cannot write, SQLite cannot make its shared-memory file, so the file is read as immutable. Not so
    # when a write-ahead log lies beside it: it holds newer records, of a writer who may be alive under another user.
    # Root ignores permission bits, hence the mount's flag is asked too.
    frozen = not os.access(state, os.W_OK) or bool(os.statvfs(state).f_flag & os.ST_RDONLY)
    log = path.with_name(f"{path.name}-wal")
    mode = {"immutable": "1"} if frozen and not (log.exists() and log.stat().st_size) else {"mode": "ro"}
    address = sqlalchemy.URL.create("sqlite", database=f"file:{quote(str(path))}", query={**mode, "uri": "true"})
    database = Database(sqlalchemy.create_engine(address, connect_args={"timeout": 30}), path, read_only=True)
    try:
        with database.reading() as connection:
            version = connection.execute(sql("SELECT value FROM meta WHERE key = 'schema_version'")).scalar_one()
        _refuse_newer(version, path)
    except BaseException:
        database.close()
        raise
    return database


def _on_connect(raw: Any, _record: Any) -> None:
    raw.isolation_level = None  # transactions are begun by us, see `_begin_immediate`
    raw.execute("PRAGMA busy_timeout=30000")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("PRAGMA foreign_keys=ON")


def _begin_immediate(connection: Connection) -> None:
    reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _migrate(raw: sqlite3.Connection, path: Path) -> None:
    raw.isolation_level = None
    raw.execute("BEGIN IMMEDIATE")
    try:
        known = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'meta'").fetchone()
        if known is None:
            for statement in _SCHEMA:
                raw.execute(statement)
            raw.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        else:
            _refuse_newer(raw.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()[0], path)
        raw.execute("COMMIT")
    except BaseException:
        raw.execute("ROLLBACK")
        raise


def _refuse_newer(version: str, path: Path) -> None:
    if int(version) > SCHEMA_VERSION:
        raise IntegrityError(
            "schema_newer",
            f"{path} has schema {version}; this release knows up to {SCHEMA_VERSION}",
            "run the release that wrote it, or a newer one",
        )


class OfficerLock:
    """Exclusive right to run the engine on one state directory; it dies with the process.

    Two processes with one executor id would steal each other's runs, so the lock is taken before the engine starts.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "officer.lock"
        self._file: int | None = None

    def acquire(self) -> None:
        """Take it, or raise `ConflictError` `officer_alive`."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise ConflictError(
                "officer_alive",
                f"another officer (process {holder or 'unknown'}) works on {self._path.parent}",
                "stop it first, or leave the work to it",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
        self._file = handle

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def officer_alive(state: Path) -> bool:
    """True when a living process holds the officer's lock. Writes nothing, so it works on a read-only folder (R47).

    Those who only look share the lock, so that none of them is taken for an officer.
    """
    try:
        handle = os.open(state / "officer.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
