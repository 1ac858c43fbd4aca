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
from pathlib import Path
from typing import Any

from dbos import DBOS, Serializer, SetWorkflowID, SQLAlchemyDatasource

from rearguard.database import Connection, Database, OfficerLock, sql
from rearguard.engine import faults

APPLICATION_VERSION = "rollback-v1"
"""Pinned: derived from source by default, a new release would strand the runs of the old one. Raised only when the
order of recorded steps changes incompatibly."""
_QUEUE = "rollbacks"
_POLL_S = 0.1
"""A recovered run comes back to our own queue at this pace; the engine's internal queue would cost a second."""

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
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"a {type(value).__name__} cannot be stored")


class Steps:
    """What the body of a run works through."""

    def __init__(self, datasource: Any) -> None:
        self._datasource = datasource

    def effect(self, step: str, act: Callable[[], Result]) -> Result:
        """Do something outside. At least once: after a crash in between it is called again."""

        def body() -> Result:
            faults.reach(step, "before_effect")
            result = act()
            faults.reach(step, "after_effect")
            return result

        return dict(DBOS.run_step({"name": f"{step}.effect"}, body))

    def record(self, step: str, write: Callable[[Connection], Result]) -> Result:
        """Write to the database. Exactly once: the transaction holds the engine's own note of the step."""

        def body() -> Result:
            return write(self._datasource.sql_session().connection())

        result = dict(self._datasource.run_tx_step({"name": f"{step}.record"}, body))
        faults.reach(step, "after_record")
        return result


class Engine:
    """The living officer's engine; at most one per state directory, guarded by `OfficerLock`."""

    def __init__(
        self, database: Database, state: Path, body: Callable[[Steps, str], Result], stopping: threading.Event
    ) -> None:
        """`stopping` is set when the engine has stopped recording: a body that waits must then give up at once."""
        self._lock = OfficerLock(state)
        self._database = database
        self._url = f"sqlite:///{database.path}"
        self._body = body
        self._stopping = stopping
        self._workflow: Any = None
        self._in_flight = 0
        self._landed = threading.Condition()

    def start(self) -> None:
        """Take the lock, launch, and resume every run that a dead process left behind.

        Raises `ConflictError` `officer_alive`.
        """
        self._lock.acquire()
        logging.getLogger("dbos").setLevel(logging.ERROR)
        serializer = _JsonSerializer()
        datasource = SQLAlchemyDatasource.create(self._url, engine=self._database.engine, serializer=serializer)
        steps = Steps(datasource)

        def rollback(run_id: str) -> Result:
            with self._flight():
                return self._body(steps, run_id)

        DBOS(
            config={
                "name": "rearguard",
                "system_database_url": self._url,
                "executor_id": "officer",
                "application_version": APPLICATION_VERSION,
                "notification_listener_polling_interval_sec": _POLL_S,
                "scheduler_polling_interval_sec": 60.0,
                "log_level": "ERROR",
                "serializer": serializer,
            }
        )
        self._workflow = DBOS.workflow(name="rollback")(rollback)
        DBOS.launch()
        DBOS.register_queue(_QUEUE, worker_concurrency=16, polling_interval_sec=_POLL_S)

    def submit(self, run_id: str) -> None:
        """Begin a run; a second call with the same id attaches to the first."""
        with SetWorkflowID(run_id):
            DBOS.enqueue_workflow(_QUEUE, self._workflow, run_id)

    def wait(self, run_id: str) -> Result:
        """Block until the run ended and return its result."""
        return dict(DBOS.retrieve_workflow(run_id).get_result())

    def status(self, run_id: str) -> str:
        """The engine's word for where the run stands (`SUCCESS`, `PENDING`, `ERROR`, ...), or empty."""
        found = DBOS.get_workflow_status(run_id)
        return str(found.status) if found else ""

    @contextlib.contextmanager
    def _flight(self) -> Iterator[None]:
        with self._landed:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._landed:
                self._in_flight -= 1
                self._landed.notify_all()

    def stop(self, *, patience_s: float = 5.0) -> bool:
        """Hand over: nothing more is recorded, runs in flight stay durable and continue with the next officer.

        The lock is given back only once no run of ours is executing any more. Returns False when one still is after
        `patience_s` (an order to a target cannot be called back): the lock then dies with this process, which must end.
        """
        with contextlib.suppress(Exception):
            DBOS.destroy(workflow_completion_timeout_sec=0, destroy_registry=True)
        self._stopping.set()
        with self._landed:
            landed = self._landed.wait_for(lambda: self._in_flight == 0, timeout=patience_s)
        if landed:
            self._lock.release()
        return landed


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
