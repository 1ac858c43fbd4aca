"""The outbox: one message a key, delivered to each channel until it takes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from rearguard.database import Database, open_database, sql
from rearguard.errors import ConfigError, DependencyError
from rearguard.handoffs.outbox import MAX_ATTEMPTS, deliver, post
from rearguard.ports import Channel, Message


class Inbox:
    """`ports.Channel` that is down for its first deliveries and keeps what it takes."""

    def __init__(self, down_for: int = 0) -> None:
        self.down_for = down_for
        self.taken: list[Message] = []

    def deliver(self, message: Message) -> None:
        if self.down_for > 0:
            self.down_for -= 1
            raise DependencyError("channel_down", "no answer")
        self.taken.append(message)


def message(key: str, **fields: str) -> Message:
    return Message(key=key, title=f"title of {key}", fields=fields)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(tmp_path)


def write(database: Database, *messages: Message) -> None:
    with database.transaction() as connection:
        for one in messages:
            post(connection, one)


def channels(**inboxes: Inbox) -> Mapping[str, Callable[[], Channel]]:
    return {name: (lambda inbox=inbox: inbox) for name, inbox in inboxes.items()}  # type: ignore[misc]


def row(database: Database, key: str) -> tuple[str, int, list[str], str]:
    with database.reading() as connection:
        found = connection.execute(sql("SELECT * FROM outbox WHERE key = :k"), {"k": key}).one()
    return found.state, found.attempts, json.loads(found.delivered), found.last_error


def test_a_message_arrives_as_it_was_written(database: Database) -> None:
    inbox = Inbox()
    write(database, message("R-1:observed", incident="R-1", next="rearguard rollback plan fraud"))
    deliver(database, channels(oncall=inbox))
    assert inbox.taken == [message("R-1:observed", incident="R-1", next="rearguard rollback plan fraud")]


def test_messages_arrive_in_the_order_of_writing(database: Database) -> None:
    inbox = Inbox()
    write(database, message("b"), message("a"), message("c"))
    deliver(database, channels(oncall=inbox))
    assert [m.key for m in inbox.taken] == ["b", "a", "c"]


def test_a_key_is_written_once_and_its_first_message_stands(database: Database) -> None:
    inbox = Inbox()
    write(database, message("a", n="1"), message("a", n="2"))
    deliver(database, channels(oncall=inbox))
    assert inbox.taken == [message("a", n="1")]


def test_a_message_that_was_delivered_is_not_delivered_again(database: Database) -> None:
    inbox = Inbox()
    write(database, message("a"))
    deliver(database, channels(oncall=inbox))
    deliver(database, channels(oncall=inbox))
    assert len(inbox.taken) == 1


def test_a_key_posted_again_after_its_delivery_stays_silent(database: Database) -> None:
    inbox = Inbox()
    for _ in range(2):
        write(database, message("a"))
        deliver(database, channels(oncall=inbox))
    assert len(inbox.taken) == 1


def test_a_channel_that_is_down_gets_the_message_when_it_is_back(database: Database) -> None:
    inbox = Inbox(down_for=2)
    write(database, message("a"))
    still_open = [deliver(database, channels(oncall=inbox)) for _ in range(3)]
    assert (still_open, len(inbox.taken)) == ([1, 1, 0], 1)


def test_a_retry_goes_only_to_the_channel_that_has_not_taken_it(database: Database) -> None:
    up, down = Inbox(), Inbox(down_for=1)
    write(database, message("a"))
    for _ in range(3):
        deliver(database, channels(up=up, down=down))
    assert (len(up.taken), len(down.taken)) == (1, 1)


def test_one_dead_channel_does_not_hold_back_the_others(database: Database) -> None:
    dead, living = Inbox(down_for=99), Inbox()
    write(database, message("a"), message("b"))
    deliver(database, channels(dead=dead, living=living))
    assert [m.key for m in living.taken] == ["a", "b"]


def test_an_open_message_says_what_stood_in_its_way(database: Database) -> None:
    write(database, message("a"))
    deliver(database, channels(oncall=Inbox(down_for=9)))
    assert row(database, "a") == ("open", 1, [], "oncall: no answer")


def test_a_channel_that_cannot_be_built_leaves_the_message_open(database: Database) -> None:
    def broken() -> Channel:
        raise ConfigError("adapter_unknown", "no adapter named 'pager'")

    write(database, message("a"))
    assert deliver(database, {"oncall": broken}) == 1


def test_without_channels_a_message_is_done_and_stays_readable(database: Database) -> None:
    write(database, message("a"))
    assert deliver(database, {}) == 0
    assert row(database, "a")[0] == "done"


def test_a_message_that_nobody_ever_takes_is_given_up_and_stays_readable(database: Database) -> None:
    write(database, message("a"))
    with database.transaction() as connection:
        connection.execute(sql("UPDATE outbox SET attempts = :n"), {"n": MAX_ATTEMPTS - 2})
    dead = channels(oncall=Inbox(down_for=9))
    assert [deliver(database, dead), deliver(database, dead), deliver(database, dead)] == [1, 0, 0]
    assert row(database, "a")[:2] == ("undelivered", MAX_ATTEMPTS)


def test_a_message_is_written_with_the_fact_or_not_at_all(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:  # noqa: PT012
        post(connection, message("a"))
        raise ZeroDivisionError
    inbox = Inbox()
    deliver(database, channels(oncall=inbox))
    assert inbox.taken == []
