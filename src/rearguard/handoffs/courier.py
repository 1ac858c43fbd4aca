"""Couriers: one thread per channel takes open messages to it, off every other path.

A channel that does not take a message is left alone for 1 s, then 2, 4 ... up to 300 s; the count stands in the database,
so a restart keeps it, and a success resets it. A receiver that hangs costs one attempt per back-off and keeps nobody
waiting: not another channel, not the housekeeper, not a rollback. Delivery is at least once: a crash between the
channel's yes and our note repeats it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.database import Connection, Database, sql
from rearguard.errors import DependencyError, RearguardError
from rearguard.handoffs import outbox
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.ports import Channel, Clock, Message

POLL_S = 0.25
"""How soon a courier sees a new message. Chosen."""
MAX_BACK_OFF_S = 300
CRY_PATIENCE_S = 10.0
"""So long a process that must end waits for its last page to be taken: about as long as a channel may take. Chosen."""
CRY_EVERY_S = 600
"""The same cause is cried at most once in so long. Chosen."""

Notify = Callable[[str, dict[str, Any]], None]
Builders = Mapping[str, Callable[[], Channel]]


def back_off_s(failures: int) -> int:
    """Seconds to leave a channel alone after so many failures in a row: 1, 2, 4 ... 256, 300, 300 ..."""
    return min(MAX_BACK_OFF_S, 1 << min(failures - 1, 9)) if failures > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a channel has been answering."""

    failures: int = 0
    """In a row; 0 after a success."""
    retry_at: Instant | None = None
    last_error: str = ""

    def due(self, now: Instant) -> bool:
        """True when it may be tried.

        A wait longer than any back-off is not believed: after a reboot with another wall clock it would never end.
        """
        if self.retry_at is None:
            return True
        left_ns = elapsed(now, self.retry_at).ns
        return left_ns <= 0 or left_ns > MAX_BACK_OFF_S * NS_PER_S


def standing_of(connection: Connection, channel: str) -> Standing:
    """As the database says."""
    row = connection.execute(
        sql("SELECT failures, retry_at, last_error FROM channels WHERE name = :name"), {"name": channel}
    ).first()
    if row is None:
        return Standing()
    retry_at = decode_instant(row.retry_at) if row.retry_at else None
    return Standing(failures=row.failures, retry_at=retry_at, last_error=row.last_error)


def clear_back_off(connection: Connection) -> tuple[str, ...]:
    """Let every channel be tried at once; returns the names of those that were being left alone."""
    rows = connection.execute(sql("SELECT name FROM channels WHERE failures > 0 ORDER BY name")).all()
    connection.execute(sql("UPDATE channels SET failures = 0, retry_at = NULL"))
    return tuple(row.name for row in rows)


def _write_standing(connection: Connection, channel: str, standing: Standing) -> None:
    connection.execute(
        sql(
            "INSERT INTO channels (name, failures, retry_at, last_error) VALUES (:name, :failures, :at, :error) "
            "ON CONFLICT (name) DO UPDATE SET failures = :failures, retry_at = :at, last_error = :error"
        ),
        {
            "name": channel,
            "failures": standing.failures,
            "at": encode_instant(standing.retry_at) if standing.retry_at else None,
            "error": standing.last_error,
        },
    )


class Courier:
    """Takes messages to one channel; used by one thread."""

    def __init__(
        self, name: str, build: Callable[[], Channel], *, database: Database, clock: Clock, declared: frozenset[str]
    ) -> None:
        self.name = name
        self._build = build
        self._database = database
        self._clock = clock
        self._declared = declared
        self._channel: Channel | None = None
        self._after = 0
        """The last message that was tried. The next one comes first, so that one message that the receiver never
        takes does not keep it from the others."""
        self._taken: list[int] = []
        """Taken by the channel and not noted yet: never handed over again by this process, also while the disk is full."""
        self._refused: dict[int, str] = {}
        self._standing: Standing | None = None
        """As it is while the database cannot be written; None: as the database says."""

    def turn(self, *, even_if_waiting: bool = False) -> bool:
        """Deliver the next message if the channel may be tried; True when it took one.

        A database that cannot be written does not keep a message from being delivered. Raises `DependencyError` when it
        could not be read or written, `ConflictError` `officer_superseded`.
        """
        trouble = self._note()
        now = self._clock.now()
        with self._database.reading() as connection:
            self._database.check_office(connection)
            standing = self._standing or standing_of(connection, self.name)
            waiting = None
            if even_if_waiting or standing.due(now):
                waiting = outbox.next_for(connection, self.name, after=self._after, without=self._taken)
        took = False
        if waiting is not None:
            self._after = waiting.id
            error = self._hand_over(waiting.message)
            took = not error
            if took:
                self._taken.append(waiting.id)
                self._standing = Standing()
            else:
                self._refused[waiting.id] = f"{self.name}: {error}"
                failures = standing.failures + 1
                retry_at = self._clock.now().plus(back_off_s(failures) * NS_PER_S)
                self._standing = Standing(failures=failures, retry_at=retry_at, last_error=error)
            trouble = self._note()
        if trouble is not None and not took:
            raise trouble
        return took

    def drain(self) -> None:
        """Deliver until nothing waits or the channel does not take one. Raises as `turn`."""
        while self.turn(even_if_waiting=True):
            continue

    def _note(self) -> DependencyError | None:
        """Write down what happened, also what could not be written before; the error when it cannot be."""
        if self._standing is None:
            return None
        try:
            with self._database.transaction() as connection:
                for message_id in self._taken:
                    outbox.note_taken(connection, message_id, self.name, self._declared)
                for message_id, error in self._refused.items():
                    outbox.note_refused(connection, message_id, error)
                _write_standing(connection, self.name, self._standing)
        except DependencyError as error:
            return error
        self._taken.clear()
        self._refused.clear()
        self._standing = None
        return None

    def _hand_over(self, message: Message) -> str:
        """Empty when the channel took it, else why not."""
        try:
            if self._channel is None:
                self._channel = self._build()
            self._channel.deliver(message)
        except RearguardError as failure:
            return failure.message
        except Exception as failure:  # an adapter of somebody else; it must not end the thread
            return f"{type(failure).__name__}: {failure}"
        return ""


class Couriers:
    """All couriers of one officer."""

    def __init__(self, database: Database, clock: Clock, channels: Builders, notify: Notify) -> None:
        """`notify` is called from several threads, for people and logs."""
        self._database = database
        self._clock = clock
        self._channels = dict(channels)
        self._notify = notify
        self._at_work = {name: threading.Lock() for name in self._channels}
        self._cried: dict[str, Instant] = {}
        self._crying = threading.Lock()
        self._criers: list[threading.Thread] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Of the channels: each wants a thread that calls `run`."""
        return tuple(self._channels)

    def run(self, name: str, stop: threading.Event, beat: Callable[[], None]) -> None:
        """Deliver to one channel until `stop` is set or another officer has taken over; `beat` after each look."""
        declared = frozenset(self._channels)
        build = self._channels[name]
        courier = Courier(name, build, database=self._database, clock=self._clock, declared=declared)
        told = ""
        while not stop.is_set():
            took = False
            try:
                with self._at_work[name]:
                    took = courier.turn()
                told = ""
            except RearguardError as error:
                if error.code != told:
                    told = error.code
                    self._notify("courier_failed", {"channel": name, "code": error.code, "message": error.message})
                if error.code == "officer_superseded":
                    return
            beat()
            if not took:
                stop.wait(POLL_S)

    def rest(self, patience_s: float) -> None:
        """After `stop`: wait for deliveries under way, so that the next officer does not repeat them."""
        end_ns = self._clock.now().mono_ns + int(patience_s * NS_PER_S)
        for lock in self._at_work.values():
            if lock.acquire(timeout=max(0.0, (end_ns - self._clock.now().mono_ns) / NS_PER_S)):
                lock.release()

    def cry(self, title: str, fields: dict[str, str], *, cause: str = "") -> bool:
        """Last resort, when the database cannot be written: hand a page straight to every channel, without a record.

        Returns at once, and False when this cause was cried less than `CRY_EVERY_S` ago.
        """
        now, cause = self._clock.now(), cause or title
        with self._crying:
            before = self._cried.get(cause)
            if before is not None and elapsed(before, now).ns < CRY_EVERY_S * NS_PER_S:
                return False
            self._cried[cause] = now
        key = f"cry:{cause}:{now.wall_ns // NS_PER_S}"
        message = Message(key=key, title=title, fields=fields, cause=cause, severity="page", action="open")
        for name, build in self._channels.items():
            arguments = (name, build, message)
            crier = threading.Thread(target=self._cry_to, args=arguments, name=f"cry-{name}", daemon=True)
            crier.start()
            self._criers = [*(other for other in self._criers if other.is_alive()), crier]
        return True

    def await_cries(self) -> None:
        """For a process that ends next: give the channels time to take what was cried."""
        end_ns = self._clock.now().mono_ns + int(CRY_PATIENCE_S * NS_PER_S)
        for crier in self._criers:
            crier.join(timeout=max(0.0, (end_ns - self._clock.now().mono_ns) / NS_PER_S))

    def _cry_to(self, name: str, build: Callable[[], Channel], message: Message) -> None:
        try:
            build().deliver(message)
        except Exception as error:  # foreign code, and there is nobody else to tell
            self._notify("courier_failed", {"channel": name, "code": "cry_failed", "message": str(error)})


def deliver_once(
    database: Database, clock: Clock, channels: Builders, *, declared: frozenset[str] | None = None
) -> int:
    """Try each channel once, also one that is being left alone; returns how many messages are still open.

    `declared` are all channels, by default these: a message is done once each of them took it, tried here or not.
    """
    declared = frozenset(channels) if declared is None else declared
    outbox.settle(database, declared)
    for name, build in channels.items():
        Courier(name, build, database=database, clock=clock, declared=declared).drain()
    with database.reading() as connection:
        return outbox.count_open(connection)
