"""Opening the database, and its transactions.

The only room besides the engine that knows SQLAlchemy. Rows are written by the rooms that own the nouns, through the
connection that they are given; a writer's transaction begins IMMEDIATE, so that reading the head of the evidence chain
and appending to it are one step. SQLite runs in WAL mode with `synchronous=FULL`: a committed record survives power loss.
"""

from __future__ import annotations

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

from rearguard.database.lock import busy, write_lock_holders
from rearguard.database.schema import migrate, refuse_other
from rearguard.errors import ConflictError, DependencyError, IntegrityError, NotFoundError
from rearguard.model.time import Instant

__all__ = ["DATABASE_NAME", "Connection", "Database", "open_database", "open_read_only", "sql"]

DATABASE_NAME = "rearguard.db"
WAIT_S = 30.0
"""For somebody else's transaction; before `database_unavailable`."""
OFFICE_WAIT_S = 5.0
"""The same for the officer: a good deal less than its lease, so that one that waits for the database is not taken for one
that hangs. Chosen."""
_READING = "rearguard_reading"
"""Execution option of a connection that takes no write lock."""


class Database:
    """A connection pool to one database."""

    def __init__(self, engine: sqlalchemy.Engine, path: Path, *, read_only: bool) -> None:
        self.engine = engine
        self.path = path
        self.read_only = read_only
        self._generation: int | None = None
        self._wait_s = WAIT_S
        if not read_only:
            event.listen(engine, "begin", self._begin)

    def _begin(self, connection: Connection) -> None:
        if connection.get_execution_options().get(_READING, False):
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout={int(self._wait_s * 1000)}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One writer's transaction: all of it commits, or nothing.

        Raises `DependencyError` `database_unavailable` when the disk is full or the file read-only, `DatabaseBusyError` of
        the same code when somebody else had it locked for too long (30 s; 5 s in office), `ConflictError`
        `officer_superseded` when this process was the officer and another one has taken over.
        """
        try:
            with self.engine.begin() as connection:
                self.check_office(connection)
                yield connection
        except DBAPIError as error:
            raise _wrapped(error, self.path) from error

    def take_office(self, now: Instant, *, settings_sha256: str = "", playbook_sha256: str = "") -> int:
        """From here on this process writes as the officer; returns its generation, which fences the ones before it.

        The digests are those of the files that it read and works with; empty: not told.
        """
        self._wait_s = OFFICE_WAIT_S
        with self.transaction() as connection:
            row = connection.execute(
                sql(
                    "INSERT INTO officer (id, generation, pid, boot_id, since, settings_sha256, playbook_sha256) "
                    "VALUES (1, 1, :pid, :boot, :since, :settings, :playbook) "
                    "ON CONFLICT (id) DO UPDATE SET generation = generation + 1, pid = :pid, boot_id = :boot, "
                    "since = :since, settings_sha256 = :settings, playbook_sha256 = :playbook RETURNING generation"
                ),
                {
                    "pid": os.getpid(),
                    "boot": now.boot_id,
                    "since": now.rfc3339_ms(),
                    "settings": settings_sha256,
                    "playbook": playbook_sha256,
                },
            ).one()
        self._generation = int(row.generation)
        return self._generation

    def leave_office(self) -> None:
        """This process writes as anybody again; it goes on to be as impatient as an officer."""
        self._generation = None

    def check_office(self, connection: Connection) -> None:
        """Inside a writer's transaction. Raises `ConflictError` `officer_superseded`: nothing of it may be committed."""
        if self._generation is None:
            return
        newest = connection.execute(sql("SELECT generation FROM officer")).scalar()
        if newest != self._generation:
            raise ConflictError(
                "officer_superseded",
                f"officer {newest} has taken over from officer {self._generation} (this process, {os.getpid()})",
                "nothing was written; this process was hung for longer than its lease, and must end",
            )

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
    if "is locked" in text:
        return busy(path, text, write_lock_holders(path))
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
        migrate(raw, path)
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
        refuse_other(int(version), path)
    except BaseException:
        database.close()
        raise
    return database


def _on_connect(raw: Any, _record: Any) -> None:
    raw.isolation_level = None  # transactions are begun by us, see `Database._begin`
    raw.execute(f"PRAGMA busy_timeout={int(WAIT_S * 1000)}")
    raw.execute("PRAGMA synchronous=FULL")
    raw.execute("PRAGMA foreign_keys=ON")
