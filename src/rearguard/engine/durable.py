"""Durable runs on DBOS: start once, survive the death of the process, record exactly once.

A run is a function of its id that does its work through `Steps`: an *effect* touches the outside and is at-least-once
(the effect in flight when the process died runs again), a *record* is one database transaction that commits together
with the engine's own note that the step is done, so it happens exactly once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbos import DBOS, Serializer, SetWorkflowID, SQLAlchemyDatasource

from rearguard.database import Connection, Database, OfficerLock, Presence, make_way, sql
from rearguard.engine import faults
from rearguard.errors import ConflictError, RearguardError
from rearguard.model.time import NS_PER_MS, Instant

APPLICATION_VERSION = "rollback-v1"
"""Pinned: derived from source by default, a new release would strand the runs of the old one. Raised only when the
order of recorded steps changes incompatibly."""
_QUEUE = "rollbacks"
_POLL_S = 0.1
"""A recovered run comes back to our own queue at this pace; the engine's internal queue would cost a second."""
_IDLE_NS = 3_000_000_000
_STORAGE_ERRORS = (
    "OperationalError",
    "DatabaseError",
    "DBAPIError",
    "database_unavailable",
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Input/output error",
)
"""An execution that ended with one of these was ended by the disk, not by the rollback: it goes on when the disk does."""

Result = dict[str, Any]


class _JsonSerializer(Serializer):
    """The engine's default is pickle: whoever can write the database could run code."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, sort_keys=True, default=_error_text)

    def deserialize(self, serialized_data: str) -> Any:
        return json.loads(serialized_data)

    def name(self) -> str:
        return "rearguard_json"


def _error_text(value: Any) -> Any:
    if isinstance(value, RearguardError):
        return f"{type(value).__name__} {value.code}: {value.message}"
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"a {type(value).__name__} cannot be stored")


class HandOver(BaseException):
    """This officer stops in the middle of a step. Not an `Exception`: nobody may record it as the step's outcome."""


class Steps:
    """What the body of a run works through."""

    def __init__(self, datasource: Any, database: Database, lock: OfficerLock) -> None:
        self._datasource = datasource
        self._database = database
        self._lock = lock

    def effect(self, step: str, act: Callable[[], Result]) -> Result:
        """Do something outside. At least once: after a crash in between it is called again.

        Raises `HandOver` in an officer that was frozen and has been replaced.
        """

        def body() -> Result:
            if not self._lock.held():
                raise HandOver
            faults.reach(step, "before_effect")
            result = act()
            faults.reach(step, "after_effect")
            return result

        return dict(DBOS.run_step({"name": f"{step}.effect"}, body))

    def record(self, step: str, write: Callable[[Connection], Result]) -> Result:
        """Write to the database. Exactly once: the transaction holds the engine's own note of the step."""

        def body() -> Result:
            connection = self._datasource.sql_session().connection()
            try:
                self._database.check_office(connection)
            except ConflictError:
                raise HandOver from None
            return write(connection)

        result = dict(self._datasource.run_tx_step({"name": f"{step}.record"}, body))
        faults.reach(step, "after_record")
        return result


def _ended_by_disk(error: object) -> bool:
    return any(mark in str(error) for mark in _STORAGE_ERRORS)


class Engine:
    """The living officer's engine; at most one per state directory, guarded by `OfficerLock`."""

    def __init__(
        self,
        database: Database,
        state: Path,
        body: Callable[[Steps, str], Result],
        stopping: threading.Event,
        now: Callable[[], Instant],
        *,
        settings_sha256: str = "",
        playbook_sha256: str = "",
    ) -> None:
        """`stopping` is set when the engine has stopped recording: a body that waits must then give up at once.

        The digests name the files that this officer works with, for whoever looks at it from outside.
        """
        self._lock = OfficerLock(state)
        self._state = state
        self._now = now
        self._files = {"settings_sha256": settings_sha256, "playbook_sha256": playbook_sha256}
        self._database = database
        self._url = f"sqlite:///{database.path}"
        self._body = body
        self._stopping = stopping
        self._workflow: Any = None
        self._executor = ""
        self._in_flight: list[str] = []
        self._idle: dict[str, int] = {}
        """Runs of ours that were pending and not executed, and since when; monotonic."""
        self._landed = threading.Condition()

    def start(self) -> Presence | None:
        """Take the office, launch, and resume every run that a dead or hung process left behind.

        Returns the hung officer that was replaced, if any. Raises `ConflictError` `officer_alive`, `DependencyError`;
        `DatabaseBusyError` while somebody else keeps everybody from writing: a hung officer is then left in office.
        """
        make_way(self._state, self._now())
        replaced = self._lock.acquire(self._now())
        try:
            generation = self._database.take_office(self._now(), **self._files)
        except BaseException:
            self._lock.release()
            raise
        # An id of its own for each generation: two processes with one id would steal each other's runs.
        self._executor = f"officer-{generation}"
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        serializer = _JsonSerializer()
        datasource = SQLAlchemyDatasource.create(self._url, engine=self._database.engine, serializer=serializer)
        steps = Steps(datasource, self._database, self._lock)

        def rollback(run_id: str) -> Result:
            with self._flight(run_id):
                return self._body(steps, run_id)

        DBOS(
            config={
                "name": "rearguard",
                "system_database_url": self._url,
                "executor_id": self._executor,
                "application_version": APPLICATION_VERSION,
                "notification_listener_polling_interval_sec": _POLL_S,
                "scheduler_polling_interval_sec": 60.0,
                "log_level": "CRITICAL",
                "serializer": serializer,
            }
        )
        self._workflow = DBOS.workflow(name="rollback")(rollback)
        DBOS.launch()
        DBOS.register_queue(_QUEUE, worker_concurrency=16, polling_interval_sec=_POLL_S)
        self.recover()
        return replaced

    def beat(self, now: Instant) -> None:
        """Show that this officer makes progress."""
        self._lock.beat(now)

    def held(self) -> bool:
        """False once another officer has taken over: this process must end and touch nothing."""
        return self._lock.held()

    def recover(self) -> tuple[str, ...]:
        """Take up again every run that nobody executes: of officers before this one, and of ours that a full disk ended.

        Safe at any time: this officer is the only one, so what it does not execute itself is executed by nobody. Runs
        of another engine version are left alone, see `stranded`. Returns the ids that were given back to the queue.
        """
        with self._landed:
            busy = tuple(self._in_flight)
        with self._database.reading() as connection:
            rows = connection.execute(
                sql(
                    "SELECT workflow_uuid AS id, status, executor_id, error FROM workflow_status "
                    "WHERE status IN ('PENDING', 'ERROR') AND application_version = :version"
                ),
                {"version": APPLICATION_VERSION},
            ).all()
            self._idle = {run_id: at for run_id, at in self._idle.items() if run_id not in busy}
            found = [row.id for row in rows if row.id not in busy and self._is_resumable(row)]
        if not found:
            return ()
        with self._database.transaction() as connection:
            for run_id in found:
                # A step that the disk did not let us note failed with that as its outcome: it is done again.
                connection.execute(
                    sql("DELETE FROM operation_outputs WHERE workflow_uuid = :id AND error IS NOT NULL"), {"id": run_id}
                )
                connection.execute(
                    sql(
                        "UPDATE workflow_status SET status = 'ENQUEUED', owner_xid = NULL, started_at_epoch_ms = NULL, "
                        "error = NULL, completed_at = NULL, queue_name = COALESCE(queue_name, :queue) "
                        "WHERE workflow_uuid = :id AND status IN ('PENDING', 'ERROR')"
                    ),
                    {"queue": _QUEUE, "id": run_id},
                )
        return tuple(found)

    def _is_resumable(self, row: Any) -> bool:
        if row.status == "PENDING":
            # A run of ours that was dequeued a moment ago may not have reached its body yet.
            return bool(row.executor_id != self._executor) or self._idle_twice(row.id)
        return _ended_by_disk(row.error)

    def submit(self, run_id: str) -> None:
        """Begin a run; a second call with the same id attaches to the first."""
        with SetWorkflowID(run_id):
            DBOS.enqueue_workflow(_QUEUE, self._workflow, run_id)

    def executing(self) -> tuple[str, ...]:
        """Ids of the runs whose body is being worked through by a thread of this process."""
        with self._landed:
            return tuple(self._in_flight)

    def wait(self, run_id: str) -> Result:
        """Block until the run ended and return its result."""
        return dict(DBOS.retrieve_workflow(run_id).get_result())

    def status(self, run_id: str) -> str:
        """The engine's word for where the run stands (`SUCCESS`, `PENDING`, `ERROR`, ...), or empty."""
        found = DBOS.get_workflow_status(run_id)
        return str(found.status) if found else ""

    def ended_badly(self, run_id: str) -> str:
        """The engine's word when it gave a run up for good, else empty. Not for what `recover` takes up again."""
        with self._database.reading() as connection:
            row = connection.execute(
                sql("SELECT status, error FROM workflow_status WHERE workflow_uuid = :id"), {"id": run_id}
            ).first()
        if row is None or row.status not in ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"):
            return ""
        return "" if row.status == "ERROR" and _ended_by_disk(row.error) else str(row.status)

    @contextlib.contextmanager
    def _flight(self, run_id: str) -> Iterator[None]:
        with self._landed:
            self._in_flight.append(run_id)
        try:
            yield
        finally:
            with self._landed:
                self._in_flight.remove(run_id)
                self._landed.notify_all()

    def _idle_twice(self, run_id: str) -> bool:
        """True when a run of ours was not executed at the look before either."""
        now_ns = self._now().mono_ns
        since_ns = self._idle.setdefault(run_id, now_ns)
        return now_ns - since_ns > _IDLE_NS

    def stop(self, *, patience_s: float = 5.0) -> bool:
        """Hand over: nothing more is recorded, runs in flight stay durable and continue with the next officer.

        The lock is given back only once no run of ours is executing any more. Returns False when one still is after
        `patience_s` (an order to a target cannot be called back): the lock then dies with this process, which must end.
        """
        with contextlib.suppress(Exception):
            DBOS.destroy(workflow_completion_timeout_sec=0, destroy_registry=True)
        self._stopping.set()
        with self._landed:
            landed = self._landed.wait_for(lambda: not self._in_flight, timeout=patience_s)
        if landed:
            self._database.leave_office()
            self._lock.release()
        return landed


def stranded(database: Database) -> tuple[str, ...]:
    """Ids of runs that were begun by a release with another order of steps: this one can neither finish nor drop them."""
    with database.reading() as connection:
        if not connection.execute(sql("SELECT 1 FROM sqlite_master WHERE name = 'workflow_status'")).first():
            return ()
        rows = connection.execute(
            sql(
                "SELECT workflow_uuid AS id FROM workflow_status WHERE status IN ('PENDING', 'ENQUEUED', 'DELAYED') "
                "AND application_version IS NOT NULL AND application_version != :version ORDER BY created_at"
            ),
            {"version": APPLICATION_VERSION},
        )
        return tuple(str(row.id) for row in rows)


def step_history(database: Database, run_id: str) -> tuple[dict[str, Any], ...]:
    """The engine's own notes of a run's steps, oldest first: name, started and completed (epoch ms), error."""
    with database.reading() as connection:
        if not connection.execute(sql("SELECT 1 FROM sqlite_master WHERE name = 'operation_outputs'")).first():
            return ()
        rows = connection.execute(
            sql(
                "SELECT function_id, function_name, error, started_at_epoch_ms, completed_at_epoch_ms "
                "FROM operation_outputs WHERE workflow_uuid = :id ORDER BY function_id"
            ),
            {"id": run_id},
        )
        return tuple(dict(row._mapping) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A run as the engine keeps it."""

    status: str
    """The engine's word: `ENQUEUED`, `PENDING`, `SUCCESS`, `ERROR`, `CANCELLED`, `MAX_RECOVERY_ATTEMPTS_EXCEEDED`."""
    version: str | None
    """Engine version that it was begun with; only an officer of the same one can finish it."""
    executor: str | None
    """`officer-N`: the officer that took it up last."""
    recovery_attempts: int
    """How often its execution was begun."""


def run_execution(database: Database, run_id: str) -> Execution | None:
    """A run's row in the engine; None when the engine has never heard of it."""
    with database.reading() as connection:
        if not _has_engine_tables(connection):
            return None
        row = connection.execute(
            sql(
                "SELECT status, application_version, executor_id, recovery_attempts FROM workflow_status "
                "WHERE workflow_uuid = :id"
            ),
            {"id": run_id},
        ).first()
    if row is None:
        return None
    return Execution(
        status=str(row.status),
        version=row.application_version,
        executor=row.executor_id,
        recovery_attempts=int(row.recovery_attempts or 0),
    )


def give_up(connection: Connection, run_id: str, now: Instant) -> bool:
    """Inside a writer's transaction: no officer of any release takes this run up again.

    Returns False, and changes nothing, unless the run is one of `stranded`.
    """
    if not _has_engine_tables(connection):
        return False
    changed = connection.execute(
        sql(
            "UPDATE workflow_status SET status = 'CANCELLED', completed_at = :now, updated_at = :now "
            "WHERE workflow_uuid = :id AND status IN ('PENDING', 'ENQUEUED', 'DELAYED') "
            "AND application_version IS NOT NULL AND application_version != :version"
        ),
        {"now": now.wall_ns // NS_PER_MS, "id": run_id, "version": APPLICATION_VERSION},
    )
    return changed.rowcount == 1


def _has_engine_tables(connection: Connection) -> bool:
    """False before the first officer: the engine makes its tables when it starts."""
    return bool(connection.execute(sql("SELECT 1 FROM sqlite_master WHERE name = 'workflow_status'")).first())
