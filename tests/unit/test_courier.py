"""Couriers: back-off per channel that a restart keeps, nobody waits for another, nothing is given up or lost."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rearguard.database import Database, open_database, sql
from rearguard.errors import ConfigError, DependencyError
from rearguard.handoffs import courier
from rearguard.handoffs.courier import Courier, Couriers, back_off_s, deliver_once
from rearguard.handoffs.outbox import post
from rearguard.model.time import NS_PER_S, Instant
from rearguard.ports import Channel, Message


class SetClock:
    """`ports.Clock` that stands still until it is advanced."""

    def __init__(self, boot_id: str = "boot") -> None:
        self.at = Instant(wall_ns=1_800_000_000 * NS_PER_S, mono_ns=1_000 * NS_PER_S, boot_id=boot_id)

    def now(self) -> Instant:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at = self.at.plus(int(seconds * NS_PER_S))


class Inbox:
    """`ports.Channel` that is down for its first deliveries, never takes some keys, and keeps what it takes."""

    def __init__(self, down_for: int = 0, never: tuple[str, ...] = ()) -> None:
        self.down_for = down_for
        self.never = never
        self.tried = 0
        self.taken: list[str] = []

    def deliver(self, message: Message) -> None:
        self.tried += 1
        if self.down_for > 0 or message.key in self.never:
            self.down_for -= 1
            raise DependencyError("channel_down", "no answer")
        self.taken.append(message.key)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(tmp_path)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def write(database: Database, *keys: str) -> None:
    now = SetClock().now()
    with database.transaction() as connection:
        for key in keys:
            post(connection, Message(key=key, title=key, fields={}), now)


def one(database: Database, clock: SetClock, inbox: Channel, *, declared: tuple[str, ...] = ("oncall",)) -> Courier:
    return Courier("oncall", lambda: inbox, database=database, clock=clock, declared=frozenset(declared))


def row(database: Database, key: str) -> tuple[str, int, list[str], str]:
    with database.reading() as connection:
        found = connection.execute(sql("SELECT * FROM outbox WHERE key = :k"), {"k": key}).one()
    return found.state, found.attempts, json.loads(found.delivered), found.last_error


def refuse_writing(database: Database, *, refused: bool) -> None:
    """As a full disk: reading works, writing does not."""
    raw = database.engine.raw_connection()
    raw.cursor().execute(f"PRAGMA query_only={'ON' if refused else 'OFF'}")
    raw.close()


def wait_until(claim: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_back_off_doubles_from_one_second_to_five_minutes() -> None:
    assert [back_off_s(n) for n in range(12)] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert back_off_s(10_000) == 300


def test_a_channel_that_is_down_is_tried_at_the_end_of_each_back_off_and_not_before(
    database: Database, clock: SetClock
) -> None:
    write(database, "a")
    inbox = Inbox(down_for=99)
    subject = one(database, clock, inbox)
    tried_at_s = []
    for second in range(40):
        before = inbox.tried
        for _ in range(3):
            subject.turn()
        if inbox.tried > before:
            assert inbox.tried == before + 1
            tried_at_s.append(second)
        clock.sleep(1)
    assert tried_at_s == [0, 1, 3, 7, 15, 31]


def test_a_success_resets_the_back_off(database: Database, clock: SetClock) -> None:
    write(database, "a")
    inbox = Inbox(down_for=3)
    subject = one(database, clock, inbox)
    tried_at_s = []
    for second in range(12):
        if second == 8:
            write(database, "b")
            inbox.down_for = 1
        before = inbox.tried
        subject.turn()
        tried_at_s += [second] * (inbox.tried - before)
        clock.sleep(1)
    assert (inbox.taken, tried_at_s) == (["a", "b"], [0, 1, 3, 7, 8, 9])


def test_a_restart_keeps_the_back_off(database: Database, clock: SetClock) -> None:
    write(database, "a")
    inbox = Inbox(down_for=3)
    for _ in range(3):
        one(database, clock, inbox).turn(even_if_waiting=True)
    again = one(database, clock, inbox)
    clock.sleep(3)
    again.turn()
    assert inbox.taken == []
    clock.sleep(1)
    again.turn()
    assert inbox.taken == ["a"]


def test_a_back_off_of_another_boot_with_a_wall_clock_far_ahead_ends(database: Database) -> None:
    write(database, "a")
    before = SetClock("before")
    before.sleep(10**6)
    inbox = Inbox(down_for=1)
    one(database, before, inbox).turn()
    one(database, SetClock("after"), inbox).turn()
    assert inbox.taken == ["a"]


def test_clearing_the_back_off_lets_the_channel_be_tried_at_once(database: Database, clock: SetClock) -> None:
    write(database, "a")
    inbox = Inbox(down_for=4)
    subject = one(database, clock, inbox)
    for _ in range(4):
        subject.turn(even_if_waiting=True)
    with database.transaction() as connection:
        assert courier.clear_back_off(connection) == ("oncall",)
    subject.turn()
    assert inbox.taken == ["a"]


def test_a_message_that_is_never_taken_stays_open_with_its_error(database: Database, clock: SetClock) -> None:
    write(database, "a")
    subject = one(database, clock, Inbox(down_for=2_000))
    for _ in range(1_100):
        subject.turn()
        clock.sleep(300)
    assert row(database, "a") == ("open", 1_100, [], "oncall: no answer")


def test_one_message_that_the_receiver_never_takes_does_not_keep_it_from_the_others(
    database: Database, clock: SetClock
) -> None:
    write(database, "a", "b", "c")
    inbox = Inbox(never=("a",))
    subject = one(database, clock, inbox)
    for _ in range(10):
        subject.turn()
        clock.sleep(1)
    assert inbox.taken == ["b", "c"]


def test_messages_arrive_oldest_first(database: Database, clock: SetClock) -> None:
    write(database, "b", "a", "c")
    inbox = Inbox()
    one(database, clock, inbox).drain()
    assert inbox.taken == ["b", "a", "c"]


def test_a_channel_that_cannot_be_built_leaves_the_message_open(database: Database, clock: SetClock) -> None:
    def broken() -> Channel:
        raise ConfigError("adapter_unknown", "no adapter named 'pager'")

    write(database, "a")
    assert deliver_once(database, clock, {"oncall": broken}) == 1
    assert row(database, "a")[3] == "oncall: no adapter named 'pager'"


def test_a_foreign_channel_that_raises_anything_is_only_down(database: Database, clock: SetClock) -> None:
    class Foreign:
        def deliver(self, message: Message) -> None:
            raise ZeroDivisionError(message.key)

    write(database, "a")
    one(database, clock, Foreign()).turn()
    assert row(database, "a") == ("open", 1, [], "oncall: ZeroDivisionError: a")


def test_one_dead_channel_does_not_hold_back_the_others(database: Database, clock: SetClock) -> None:
    write(database, "a", "b")
    dead, living = Inbox(down_for=99), Inbox()
    assert deliver_once(database, clock, {"dead": lambda: dead, "living": lambda: living}) == 2
    assert (living.taken, dead.tried) == (["a", "b"], 1)


def test_a_process_that_ends_soon_tries_a_channel_that_is_being_left_alone_once(
    database: Database, clock: SetClock
) -> None:
    write(database, "a")
    inbox = Inbox(down_for=1)
    assert [deliver_once(database, clock, {"oncall": lambda: inbox}) for _ in range(2)] == [1, 0]


def test_while_the_database_cannot_be_written_a_message_is_delivered_once_and_noted_later(
    database: Database, clock: SetClock
) -> None:
    write(database, "a", "b")
    inbox = Inbox()
    subject = one(database, clock, inbox)
    refuse_writing(database, refused=True)
    for _ in range(6):
        with contextlib.suppress(DependencyError):
            subject.turn()
    assert inbox.taken == ["a", "b"]
    refuse_writing(database, refused=False)
    subject.turn()
    assert [row(database, key)[0] for key in ("a", "b")] == ["done", "done"]
    assert inbox.taken == ["a", "b"]


def test_while_the_database_cannot_be_written_a_dead_channel_is_left_alone_all_the_same(
    database: Database, clock: SetClock
) -> None:
    write(database, "a")
    inbox = Inbox(down_for=99)
    subject = one(database, clock, inbox)
    refuse_writing(database, refused=True)
    for _ in range(5):
        with pytest.raises(DependencyError):
            subject.turn()
    assert inbox.tried == 1


def test_an_officer_that_was_replaced_delivers_nothing_and_its_courier_ends(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    write(database, "a")
    database.take_office(clock.now())
    successor = open_database(tmp_path)
    successor.take_office(clock.now())
    told: list[str] = []
    inbox = Inbox()
    everybody = Couriers(database, clock, {"oncall": lambda: inbox}, lambda _, fields: told.append(fields["code"]))
    everybody.run("oncall", threading.Event(), lambda: None)
    assert (inbox.taken, told) == ([], ["officer_superseded"])


def test_a_courier_whose_database_fails_tells_it_once_and_goes_on(database: Database, clock: SetClock) -> None:
    write(database, "a")
    stop, told, beats = threading.Event(), [], []
    inbox = Inbox()
    everybody = Couriers(database, clock, {"oncall": lambda: inbox}, lambda _, fields: told.append(fields["code"]))

    def beat() -> None:
        beats.append(1)
        if len(beats) == 4:
            stop.set()

    refuse_writing(database, refused=True)
    everybody.run("oncall", stop, beat)
    assert (inbox.taken, told, len(beats)) == (["a"], ["database_unavailable"], 4)


def test_a_cry_reaches_every_channel_without_a_record_and_once_in_ten_minutes(
    database: Database, clock: SetClock
) -> None:
    boxes = {"oncall": Inbox(), "other": Inbox()}
    builders: dict[str, Callable[[], Channel]] = {
        "oncall": lambda: boxes["oncall"],
        "broken": lambda: Inbox(down_for=9),
        "other": lambda: boxes["other"],
    }
    everybody = Couriers(database, clock, builders, lambda *_: None)
    cried = []
    for wait_s in (0, 599, 1):
        clock.sleep(wait_s)
        cried.append(everybody.cry("disk full", {}, cause="database"))
    assert cried == [True, False, True]
    assert everybody.cry("something else", {})
    wait_until(lambda: all(len(box.taken) == 3 for box in boxes.values()), "three cries arrive at each")
    with database.reading() as connection:
        assert connection.execute(sql("SELECT COUNT(*) FROM outbox")).scalar() == 0


def test_who_ends_next_waits_until_the_channels_took_its_cry(database: Database, clock: SetClock) -> None:
    inbox, asked = Inbox(), threading.Event()

    class Slow:
        def deliver(self, message: Message) -> None:
            asked.wait(30)
            inbox.deliver(message)

    everybody = Couriers(database, clock, {"oncall": Slow}, lambda *_: None)
    everybody.cry("damaged", {})
    threading.Timer(0.2, asked.set).start()
    everybody.await_cries()
    assert len(inbox.taken) == 1


def test_a_cry_does_not_wait_for_a_channel_that_hangs(database: Database, clock: SetClock) -> None:
    release = threading.Event()

    class Hanging:
        def deliver(self, message: Message) -> None:
            release.wait(30)

    everybody = Couriers(database, clock, {"oncall": Hanging}, lambda *_: None)
    started = time.monotonic()
    assert everybody.cry("disk full", {})
    assert time.monotonic() - started < 5
    release.set()
