"""What the steps of a run work with, and the small readings that several of them share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.checkpoints import retired
from rearguard.checkpoints.registry import decode_instant
from rearguard.checkpoints.store import ContentStore
from rearguard.database import Connection, Database, sql
from rearguard.engine.durable import HandOver
from rearguard.errors import DependencyError, NotFoundError
from rearguard.evidence.log import read
from rearguard.model.run import Run, RunState
from rearguard.model.service import Digest, Place
from rearguard.model.settings import PlaceSettings, Playbook, Settings
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.ports import Clock, Target
from rearguard.watch.feed import Feed


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryContext:
    """Everything outside that a run touches, handed in."""

    database: Database
    state: Path
    settings: Settings
    playbook: Playbook
    clock: Clock
    store: ContentStore
    target_of: Callable[[Place], Target]
    feed_of: Callable[[Place], Feed]
    stopping: threading.Event
    """Set when this officer hands over: whoever waits gives up, and the successor does the step again."""
    held: Callable[[], bool] = lambda: True
    """False once another officer has taken over while this one was hung."""

    def still_in_office(self) -> None:
        """Right before an act outside. Raises `HandOver` when another officer has taken this run over."""
        if not self.held():
            raise HandOver

    def pause(self, seconds: float) -> None:
        """Wait. Raises `HandOver` instead when this officer is stopping."""
        if self.stopping.is_set():
            raise HandOver
        self.clock.sleep(seconds)

    def place_settings(self, place: Place) -> PlaceSettings:
        """Settings of the run's place. Raises `NotFoundError` `place_unknown` when it left the file since."""
        found = self.settings.find(place)
        if found is None:
            raise NotFoundError("place_unknown", f"{place} is not declared in {self.settings.file}", "declare it again")
        return found


def read_run(connection: Connection, run_id: str) -> Run:
    """The run's row. Raises `NotFoundError` `run_unknown`."""
    row = connection.execute(sql("SELECT * FROM runs WHERE id = :id"), {"id": run_id}).first()
    if row is None:
        raise NotFoundError("run_unknown", f"no run {run_id}", "see `rearguard runs list`")
    return run_from_row(row._mapping)


def run_from_row(row: Any) -> Run:
    """A row of `runs` as a value."""
    return Run(
        id=row["id"],
        place=Place(service=row["service"], env=row["env"]),
        incident_id=row["incident_id"],
        from_digest=Digest(row["from_digest"]) if row["from_digest"] else None,
        to_digest=Digest(row["to_digest"]) if row["to_digest"] else None,
        state=RunState(row["state"]),
        reason=row["reason"],
        requested_by=row["requested_by"],
        requested_at=decode_instant(row["requested_at"]),
    )


def how_far(connection: Connection, run_id: str) -> dict[str, Any]:
    """What a run's own records say of how far it came, for whoever has to end it without the engine's notes."""
    known: dict[str, Any] = {}
    for record in read(connection, run_id=run_id):
        if record.kind == "target_verified":
            known.update(to_digest=record.body["digest"], to_version=record.body["version"])
        elif record.kind == "traffic_switched":
            known["activated_at"] = record.ts
    return known


def waited_too_long(context: RecoveryContext, connection: Connection, run: Run, since: Instant) -> bool:
    """True when a run that has not moved traffic has stood still since `since` for longer than its deadline.

    Never of one that was approved meanwhile: its approval has an expiry of its own.
    """
    settings = context.settings.find(run.place)
    deadline_s = settings.recovery.deadline_s if settings else 0
    if elapsed(since, context.clock.now()).ns <= deadline_s * NS_PER_S:
        return False
    return connection.execute(sql("SELECT 1 FROM approvals WHERE run_id = :id"), {"id": run.id}).first() is None


def raise_epoch(connection: Connection, place: Place) -> int:
    """The next epoch of a place: from here on orders with a lower one are refused."""
    row = connection.execute(
        sql(
            "INSERT INTO places (service, env, epoch) VALUES (:service, :env, 1) "
            "ON CONFLICT (service, env) DO UPDATE SET epoch = epoch + 1 RETURNING epoch"
        ),
        {"service": place.service, "env": place.env},
    ).one()
    return int(row.epoch)


def version_of(connection: Connection, digest: str | None) -> str | None:
    """The label of a digest, also of one that was retired; None when the registry never knew it."""
    if digest is None:
        return None
    found = connection.execute(sql("SELECT version FROM checkpoints WHERE digest = :d"), {"d": digest}).scalar()
    return str(found) if found is not None else retired.version_of(connection, digest)


class Deadline:
    """How long a run may still try."""

    def __init__(self, clock: Clock, since: Instant, seconds: float) -> None:
        self._clock = clock
        self._since = since
        self._ns = int(seconds * NS_PER_S)

    def remaining_s(self) -> float:
        """Seconds that are left; zero when it has passed."""
        return max(0, self._ns - elapsed(self._since, self._clock.now()).ns) / NS_PER_S

    def passed(self) -> bool:
        """True when nothing more may be tried."""
        return elapsed(self._since, self._clock.now()).ns >= self._ns


def keep_trying(
    pause: Callable[[float], None], deadline: Deadline, act: Callable[[], None], *, first_pause_s: float = 0.05
) -> None:
    """Call `act` until it raises nothing; pauses double up to two seconds.

    Raises the last `DependencyError` once the deadline has passed; any other error at once.
    """
    pause_s = first_pause_s
    while True:
        try:
            act()
            return
        except DependencyError:
            if deadline.passed():
                raise
        pause(pause_s)
        pause_s = min(2.0, pause_s * 2)
