"""The outbox: one message a key, at most one open a cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rearguard.database import Database, open_database, sql
from rearguard.evidence.log import read
from rearguard.handoffs import outbox
from rearguard.handoffs.outbox import Waiting, post
from rearguard.model.time import Instant
from rearguard.ports import Message

NOW = Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=5_000_000_000, boot_id="boot")


def message(key: str, cause: str = "", action: str = "open", **fields: str) -> Message:
    return Message(key=key, title=f"title of {key}", fields=fields, cause=cause, action=action)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(tmp_path)


def write(database: Database, *messages: Message) -> None:
    with database.transaction() as connection:
        for one in messages:
            post(connection, one, NOW)


def states(database: Database) -> dict[str, str]:
    with database.reading() as connection:
        return {row.key: row.state for row in connection.execute(sql("SELECT key, state FROM outbox ORDER BY id"))}


def waiting(database: Database, channel: str = "oncall", *, after: int = 0) -> Waiting | None:
    with database.reading() as connection:
        return outbox.next_for(connection, channel, after=after)


def take(database: Database, channel: str = "oncall", declared: tuple[str, ...] = ("oncall",)) -> Message:
    """As a courier: the next message, noted as taken."""
    found = waiting(database, channel)
    assert found is not None
    with database.transaction() as connection:
        outbox.note_taken(connection, found.id, channel, declared)
    return found.message


def test_a_key_is_written_once_and_its_first_message_stands(database: Database) -> None:
    write(database, message("a", n="1"), message("a", n="2"))
    assert take(database).fields == {"n": "1"}
    assert waiting(database) is None


def test_a_key_posted_again_after_its_delivery_stays_silent(database: Database) -> None:
    write(database, message("a"))
    take(database)
    write(database, message("a"))
    assert waiting(database) is None


def test_a_key_posted_again_supersedes_nothing(database: Database) -> None:
    write(database, message("a", "R-1"), message("b", "R-1"), message("a", "R-1"))
    assert states(database) == {"a": "superseded", "b": "open"}


def test_an_older_open_message_of_the_cause_is_superseded(database: Database) -> None:
    write(database, message("a", "R-1"), message("b", "R-2"), message("c", "R-1"))
    assert states(database) == {"a": "superseded", "b": "open", "c": "open"}


def test_a_message_without_cause_is_its_own_cause(database: Database) -> None:
    write(database, message("a"), message("b"))
    assert states(database) == {"a": "open", "b": "open"}
    assert take(database).cause == "a"


def test_a_channel_that_had_nothing_of_the_cause_gets_the_newest_only(database: Database) -> None:
    write(database, message("a", "R-1"), message("b", "R-1", "update"))
    taken = take(database)
    assert (taken.key, taken.action) == ("b", "open")
    assert waiting(database) is None


def test_a_channel_that_knows_the_cause_gets_the_newer_one_as_an_update(database: Database) -> None:
    write(database, message("a", "R-1"))
    take(database, declared=("oncall", "other"))
    write(database, message("b", "R-1"))
    assert take(database, "oncall", ("oncall", "other")).action == "update"
    assert take(database, "other", ("oncall", "other")).action == "open"


def test_a_resolve_is_told_as_such_also_to_a_channel_that_knew_nothing(database: Database) -> None:
    write(database, message("a", "R-1"), message("b", "R-1", "resolve"))
    assert take(database).action == "resolve"


def test_after_a_resolve_the_cause_is_opened_anew(database: Database) -> None:
    for key, action in (("a", "open"), ("b", "resolve")):
        write(database, message(key, "grey", action))
        take(database)
    write(database, message("c", "grey"))
    assert take(database).action == "open"


def test_a_message_that_arrives_after_it_was_superseded_counts_as_known(database: Database) -> None:
    write(database, message("a", "R-1"))
    under_way = waiting(database)
    assert under_way is not None
    write(database, message("b", "R-1"))
    with database.transaction() as connection:
        outbox.note_taken(connection, under_way.id, "oncall", ("oncall",))
    assert states(database)["a"] == "superseded"
    assert take(database).action == "update"


def test_a_message_is_done_when_every_declared_channel_took_it(database: Database) -> None:
    write(database, message("a"))
    both = ("oncall", "other")
    take(database, "oncall", both)
    assert states(database) == {"a": "open"}
    take(database, "other", both)
    assert states(database) == {"a": "done"}


def test_the_oldest_message_comes_first_and_after_a_tried_one_the_next(database: Database) -> None:
    write(database, message("b"), message("a"), message("c"))
    keys = [waiting(database, after=n).message.key for n in (0, 1, 2, 3)]  # type: ignore[union-attr]
    assert keys == ["b", "a", "c", "b"]


def test_what_was_taken_and_could_not_be_noted_is_not_offered_again(database: Database) -> None:
    write(database, message("a"), message("b"))
    with database.reading() as connection:
        found = outbox.next_for(connection, "oncall", without=[1])
    assert found is not None
    assert found.message.key == "b"


def test_without_channels_messages_are_done_and_stay_readable(database: Database) -> None:
    write(database, message("a"))
    outbox.settle(database, ())
    assert states(database) == {"a": "done"}


def test_a_message_that_waited_only_for_a_channel_that_left_the_file_is_done(database: Database) -> None:
    write(database, message("a"), message("b"))
    take(database, "oncall", ("oncall", "gone"))
    outbox.settle(database, ("oncall",))
    assert states(database) == {"a": "done", "b": "open"}


def test_a_message_is_written_with_the_fact_or_not_at_all(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:  # noqa: PT012
        post(connection, message("a"), NOW)
        raise ZeroDivisionError
    assert waiting(database) is None


def test_the_messages_of_an_incident_are_acknowledged_together_and_recorded_once_each(database: Database) -> None:
    write(
        database,
        message("a", "R-1", service="fraud", env="prod", run_id="run_1"),
        message("b", "approval:run_1", incident="R-1"),
        message("c", "R-10"),
    )
    for _ in range(2):
        with database.transaction() as connection:
            outbox.acknowledge(connection, by="dana", now=NOW, incident_id="R-1")
    with database.reading() as connection:
        records = list(read(connection))
        acked = [row.key for row in connection.execute(sql("SELECT key FROM outbox WHERE acked_by = 'dana'"))]
    assert acked == ["a", "b"]
    assert [r.body["key"] for r in records] == ["a", "b"]
    assert (records[0].kind, records[0].service, records[0].run_id) == ("message_acknowledged", "fraud", "run_1")


def test_an_acknowledged_message_is_still_delivered(database: Database) -> None:
    write(database, message("a"))
    with database.transaction() as connection:
        outbox.acknowledge(connection, by="dana", now=NOW, message_id=1)
    assert take(database).key == "a"


def test_a_message_of_the_release_before_is_delivered_with_its_key_as_cause(database: Database) -> None:
    """It writes neither cause nor severity."""
    with database.transaction() as connection:
        connection.execute(
            sql("INSERT INTO outbox (key, title, fields) VALUES ('old', 'title', :fields)"), {"fields": json.dumps({})}
        )
    taken = take(database)
    assert (taken.key, taken.cause, taken.severity, taken.action) == ("old", "old", "info", "open")
