"""The house: everything that may be slow, so that nothing slow stands between a breach and its rollback.

Each job is a row of a table and has a thread of its own, at most one at a time: a job that fails or hangs keeps no other
from running. How long ago each last succeeded is kept, for people and machines who ask.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rearguard.database import sql
from rearguard.engine.durable import Engine
from rearguard.errors import RearguardError
from rearguard.handoffs import outbox
from rearguard.model.run import TERMINAL, RunState
from rearguard.model.service import Place
from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer import approvals, deployment_end, rollbacks
from rearguard.officer.ballast import Ballast
from rearguard.officer.office import Office
from rearguard.officer.progress import Follower, StepDone
from rearguard.ports import Message
from rearguard.recovery import records
from rearguard.recovery.context import how_far, read_run, run_from_row
from rearguard.rules import schedule

HOUSEKEEPING_S = 0.5

Notify = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and fields, from any thread; for people and logs, never for decisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of the table."""

    name: str
    every_s: float
    work: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStanding:
    """How a job does."""

    name: str
    every_s: float
    succeeded_age_s: float
    """Seconds since its last success; since the house was opened when it has had none yet."""
    running_s: float | None
    """Seconds since it began; None while it waits for its turn."""
    failing: bool
    """True when its last end was a failure."""


class Housekeeper:
    """Runs the table. `turn` is called by one thread; `standing` by any."""

    def __init__(
        self, jobs: Iterable[Job], now: Callable[[], Instant], notify: Notify, allowed: Callable[[], bool]
    ) -> None:
        """`allowed` is asked before each job: an officer that was replaced while it hung does nothing more."""
        self._jobs = {job.name: job for job in jobs}
        self._now = now
        self._notify = notify
        self._allowed = allowed
        self._opened_ns = now().mono_ns
        self._began: dict[str, int] = {}
        self._succeeded: dict[str, int] = {}
        self._failing: set[str] = set()
        self._busy: set[str] = set()
        self._workers: dict[str, tuple[threading.Thread, threading.Semaphore]] = {}
        self._idle = threading.Condition()
        self._closed = False

    def add(self, job: Job) -> None:
        """One more row."""
        self._jobs = {**self._jobs, job.name: job}

    def turn(self) -> None:
        """Begin what is due and not still running."""
        now_ns = self._now().mono_ns
        periods = [schedule.Period(name=job.name, every_s=job.every_s) for job in self._jobs.values()]
        for name in schedule.due(periods, self._began, now_ns):
            with self._idle:
                if name in self._busy or self._closed:
                    continue
                self._busy.add(name)
            self._began[name] = now_ns
            self._worker(name).release()

    def standing(self) -> tuple[JobStanding, ...]:
        """How each job does, in the order of the table."""
        now_ns = self._now().mono_ns
        return tuple(
            JobStanding(
                name=job.name,
                every_s=job.every_s,
                succeeded_age_s=(now_ns - self._succeeded.get(job.name, self._opened_ns)) / NS_PER_S,
                running_s=(now_ns - self._began[job.name]) / NS_PER_S if job.name in self._busy else None,
                failing=job.name in self._failing,
            )
            for job in self._jobs.values()
        )

    def close(self, patience_s: float) -> None:
        """Begin nothing more, and wait for what runs; a job that hangs is left behind and dies with the process."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._busy, timeout=patience_s)
        for _, go in self._workers.values():
            go.release()

    def _worker(self, name: str) -> threading.Semaphore:
        """The semaphore of a job's thread, which is begun with its first turn and again if it died."""
        known = self._workers.get(name)
        if known is not None and known[0].is_alive():
            return known[1]
        go = threading.Semaphore(0)
        thread = threading.Thread(target=self._work, args=(self._jobs[name], go), name=f"house-{name}", daemon=True)
        self._workers[name] = (thread, go)
        thread.start()
        return go

    def _work(self, job: Job, go: threading.Semaphore) -> None:
        while go.acquire():
            if job.name not in self._busy:
                return  # woken up by `close`
            try:
                if self._allowed():
                    job.work()
                    self._succeeded[job.name] = self._now().mono_ns
                    self._failing.discard(job.name)
            except Exception as error:  # one job that cannot be done must not keep the others from being done
                self._failing.add(job.name)
                code = error.code if isinstance(error, RearguardError) else "internal"
                text = error.message if isinstance(error, RearguardError) else f"{type(error).__name__}: {error}"
                self._notify("housekeeping_failed", {"job": job.name, "code": code, "message": text})
            finally:
                with self._idle:
                    self._busy.discard(job.name)
                    self._idle.notify_all()


def table(office: Office, engine: Engine, notify: Notify, places: tuple[Place, ...], *more: Job) -> tuple[Job, ...]:
    """The jobs of every house, and those of this one."""

    def publish() -> None:
        office.publish()
        if office.unpublished is not None:
            raise office.unpublished

    def recover_runs() -> None:
        for run_id in engine.recover():
            notify("run_recovered", {"run_id": run_id})

    def conclude_orphans() -> None:
        for place in places:
            deployment_end.conclude_orphans(office, place)

    def tell_disk_full(free_bytes: int) -> None:
        now = office.clock.now()
        fields = {
            "state": str(office.state),
            "free_bytes": str(free_bytes),
            "next": f"free space on the disk of {office.state}; the reserve for one rollback has been used",
        }
        notify("disk_full", fields)
        message = Message(
            key=f"disk:{now.wall_ns}", title="the officer's disk is full", fields=fields, cause="disk", severity="page"
        )
        with office.database.transaction() as connection:
            outbox.post(connection, message, now)

    return (
        *more,
        Job(name="ballast", every_s=HOUSEKEEPING_S, work=Ballast(office.state, tell_disk_full).look),
        Job(name="outbox", every_s=HOUSEKEEPING_S, work=office.settle_messages),
        Job(name="approvals", every_s=HOUSEKEEPING_S, work=lambda: approvals.expire(office)),
        Job(name="failed_runs", every_s=HOUSEKEEPING_S, work=lambda: reap_errors(office, engine, notify)),
        Job(name="projection", every_s=HOUSEKEEPING_S, work=publish),
        Job(name="orphaned_deployments", every_s=HOUSEKEEPING_S, work=conclude_orphans),
        Job(name="abandoned_runs", every_s=HOUSEKEEPING_S, work=recover_runs),
    )


class RunNews:
    """Tells the steps and the ends of the runs that this officer took up, and knows which of them stand still."""

    def __init__(self, office: Office, engine: Engine, notify: Notify, since_ms: int) -> None:
        """Steps that ended before `since_ms` (Unix epoch) were another officer's and are not told."""
        self._office = office
        self._engine = engine
        self._notify = notify
        self._since_ms = since_ms
        self._followed: dict[str, Follower] = {}

    def follow(self, run_id: str) -> None:
        """From now on."""
        self._followed[run_id] = Follower(self._office.database, run_id, self._on_step, since_ms=self._since_ms)

    def tell(self) -> None:
        """What is new since the last call; one caller at a time."""
        for run_id, follower in list(self._followed.items()):
            # Before the look at the steps: an engine that is done with a run has noted all of them.
            at_work = self._engine.status(run_id) in rollbacks.UNDER_WAY
            follower.look()
            with self._office.database.reading() as connection:
                found = read_run(connection, run_id)
                finished = connection.execute(
                    sql("SELECT body FROM evidence WHERE run_id = :run AND kind = 'rollback_finished'"),
                    {"run": run_id},
                ).scalar()
            if at_work or found.state not in TERMINAL:
                continue
            del self._followed[run_id]
            figures = json.loads(finished) if finished else {}
            fields = {"run_id": run_id, "state": found.state.value, "rto_ms": figures.get("rto_achieved_ms")}
            self._notify("run_finished", {**fields, "place": str(found.place), "reason": found.reason})

    def _on_step(self, done: StepDone) -> None:
        self._notify("step_done", {"run_id": done.run_id, "step": done.step, "took_ms": done.took_ms})


def reap_errors(office: Office, engine: Engine, notify: Notify) -> None:
    """A run whose execution ended without its own last records lets go of its place here, and is failed."""
    with office.database.reading() as connection:
        rows = connection.execute(sql("SELECT * FROM runs WHERE state IN ('requested', 'running')")).all()
    for run_id in (run_from_row(row._mapping).id for row in rows):
        status = engine.ended_badly(run_id)
        if not status:
            continue
        with office.database.transaction() as connection:
            found = read_run(connection, run_id)
            if found.state in TERMINAL:
                continue
            if found.state is RunState.REQUESTED:
                records.move(connection, found, RunState.RUNNING)
                found = read_run(connection, run_id)
            failure = {"step": "engine", "state": "failed", "reason": f"engine_{status.lower()}", "message": status}
            state: dict[str, Any] = {**how_far(connection, run_id), "failure": failure}
            state.update(records.finish(office.recovery_context(), connection, found, state))
            records.close(office.recovery_context(), connection, found, state)
        notify("run_failed", {"run_id": run_id, "reason": status})
