"""The outbox: messages are written with the fact that they tell, and delivered when a channel takes them.

A message is written once per key, and at most one message of a cause is open: a newer one supersedes it, so a channel
that was away gets the newest only, and a channel that knows the cause gets an update. Each channel that took a message
is noted, so a retry goes only to the others. Nothing is given up: a message that no channel takes stays open and is
shown with its age and error. Delivering is the couriers' work.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints.registry import encode_instant
from rearguard.database import Connection, Database, sql
from rearguard.evidence.log import append
from rearguard.model.service import Place
from rearguard.model.time import Instant
from rearguard.ports import Message

_TAKEN = "EXISTS (SELECT 1 FROM json_each(outbox.delivered) WHERE value = :channel)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An open message that one channel has not taken."""

    id: int
    message: Message
    """As this channel is to get it: `update` only where it knows the cause."""


def post(connection: Connection, message: Message, now: Instant) -> None:
    """Write a message; a key that exists already is left as it is.

    An open message of the same cause is superseded: law, at most one message of a cause is open.
    """
    cause = message.cause or message.key
    if connection.execute(sql("SELECT 1 FROM outbox WHERE key = :key"), {"key": message.key}).first():
        return
    connection.execute(
        sql("UPDATE outbox SET state = 'superseded' WHERE cause = :cause AND state = 'open'"), {"cause": cause}
    )
    connection.execute(
        sql(
            "INSERT INTO outbox (key, title, fields, cause, severity, action, posted_at) "
            "VALUES (:key, :title, :fields, :cause, :severity, :action, :at)"
        ),
        {
            "key": message.key,
            "title": message.title,
            "fields": json.dumps(message.fields, sort_keys=True),
            "cause": cause,
            "severity": message.severity,
            "action": message.action,
            "at": encode_instant(now),
        },
    )


def next_for(connection: Connection, channel: str, *, after: int = 0, without: Collection[int] = ()) -> Waiting | None:
    """The oldest open message that the channel has not taken, those after id `after` first; None when there is none.

    `without` are ids that it took and that could not be noted yet.
    """
    rows = connection.execute(
        sql(
            "SELECT id, key, title, fields, cause, severity, action FROM outbox "
            f"WHERE state = 'open' AND NOT {_TAKEN} ORDER BY id <= :after, id"
        ),
        {"channel": channel, "after": after},
    )
    row = next((row for row in rows if row.id not in without), None)
    if row is None:
        return None
    message = Message(
        key=row.key,
        title=row.title,
        fields=json.loads(row.fields),
        cause=row.cause or row.key,
        severity=row.severity,
        action=_action(connection, row, channel),
    )
    return Waiting(id=row.id, message=message)


def _action(connection: Connection, row: Any, channel: str) -> str:
    if row.action == "resolve":
        return "resolve"
    known = connection.execute(
        sql(f"SELECT action FROM outbox WHERE cause = :cause AND id < :id AND {_TAKEN} ORDER BY id DESC LIMIT 1"),
        {"cause": row.cause, "id": row.id, "channel": channel},
    ).scalar()
    return "open" if known in (None, "resolve") else "update"


def note_taken(connection: Connection, message_id: int, channel: str, declared: Collection[str]) -> None:
    """The channel took it; once every declared channel has, the message is done. A second call changes nothing."""
    row = connection.execute(sql("SELECT delivered, state FROM outbox WHERE id = :id"), {"id": message_id}).one()
    taken = {channel, *json.loads(row.delivered)}
    done = row.state == "open" and taken >= set(declared)
    connection.execute(
        sql(
            "UPDATE outbox SET delivered = :delivered, attempts = attempts + 1, "
            "state = CASE WHEN :done THEN 'done' ELSE state END, last_error = CASE WHEN :done THEN '' ELSE last_error END "
            "WHERE id = :id"
        ),
        {"delivered": json.dumps(sorted(taken)), "done": done, "id": message_id},
    )


def note_refused(connection: Connection, message_id: int, error: str) -> None:
    """A channel did not take it, and why."""
    connection.execute(
        sql("UPDATE outbox SET attempts = attempts + 1, last_error = :error WHERE id = :id"),
        {"error": error, "id": message_id},
    )


def settle(database: Database, declared: Collection[str]) -> None:
    """End what waits for no declared channel: without channels messages are done and stay readable."""
    with database.reading() as connection:
        rows = connection.execute(sql("SELECT id, delivered FROM outbox WHERE state = 'open'")).all()
    settled = [row.id for row in rows if set(json.loads(row.delivered)) >= set(declared)]
    if not settled:
        return
    with database.transaction() as connection:
        for message_id in settled:
            connection.execute(
                sql("UPDATE outbox SET state = 'done' WHERE id = :id AND state = 'open'"), {"id": message_id}
            )


def count_open(connection: Connection) -> int:
    """How many messages wait for a channel."""
    return int(connection.execute(sql("SELECT COUNT(*) FROM outbox WHERE state = 'open'")).scalar_one())


def acknowledge(
    connection: Connection, *, by: str, now: Instant, incident_id: str = "", message_id: int = 0
) -> tuple[int, ...]:
    """Somebody has seen the messages of an incident, or the one message; returns the ids that nobody had before.

    Recorded once per message as `message_acknowledged`. Delivery goes on: other channels still have to hear of it.
    """
    rows = connection.execute(
        sql(
            "SELECT id, key, cause, fields FROM outbox WHERE acked_by = '' AND (id = :id OR cause = :incident "
            "OR json_extract(fields, '$.incident') = :incident) ORDER BY id"
        ),
        {"incident": incident_id or None, "id": message_id},
    ).all()
    for row in rows:
        connection.execute(
            sql("UPDATE outbox SET acked_by = :by, acked_at = :at WHERE id = :id"),
            {"by": by, "at": encode_instant(now), "id": row.id},
        )
        fields = json.loads(row.fields)
        named = fields.get("service") and fields.get("env")
        append(
            connection,
            now=now,
            kind="message_acknowledged",
            body={"message": row.id, "key": row.key, "cause": row.cause, "by": by},
            place=Place(service=fields["service"], env=fields["env"]) if named else None,
            run_id=fields.get("run_id") or None,
        )
    return tuple(row.id for row in rows)
