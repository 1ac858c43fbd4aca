"""The outbox: messages are written with the fact that they tell, and delivered when a channel takes them.

A message is written once per key; each channel that took it is noted, so a retry goes only to the others. Delivery is
at least once: a crash between the channel's yes and our note repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from rearguard.database import Connection, Database, sql
from rearguard.errors import RearguardError
from rearguard.ports import Channel, Message

MAX_ATTEMPTS = 1_000
"""Then a message is given up as `undelivered` and stays readable. Chosen: hours at the watcher's pace."""


def post(connection: Connection, message: Message) -> None:
    """Write a message; a key that exists already is left as it is."""
    connection.execute(
        sql("INSERT INTO outbox (key, cause, title, fields) VALUES (:key, :key, :title, :fields) ON CONFLICT (key) DO NOTHING"),
        {"key": message.key, "title": message.title, "fields": json.dumps(message.fields, sort_keys=True)},
    )


def deliver(database: Database, channels: Mapping[str, Callable[[], Channel]]) -> int:
    """Try each open message on each channel that has not taken it; returns how many messages are still open.

    With no channel declared, messages stay readable and count as done.
    """
    with database.reading() as connection:
        rows = connection.execute(
            sql(
                "SELECT id, key, title, fields, delivered, attempts FROM outbox WHERE state = 'open' ORDER BY id LIMIT 100"
            )
        ).all()
    still_open = 0
    for row in rows:
        taken = set(json.loads(row.delivered))
        error = ""
        for name, build in channels.items():
            if name in taken:
                continue
            try:
                build().deliver(Message(key=row.key, title=row.title, fields=json.loads(row.fields)))
                taken.add(name)
            except RearguardError as failure:
                error = f"{name}: {failure.message}"
        done = taken >= set(channels)
        state = "done" if done else ("undelivered" if row.attempts + 1 >= MAX_ATTEMPTS else "open")
        still_open += state == "open"
        with database.transaction() as connection:
            connection.execute(
                sql(
                    "UPDATE outbox SET delivered = :delivered, state = :state, attempts = attempts + 1, last_error = :error "
                    "WHERE id = :id"
                ),
                {"delivered": json.dumps(sorted(taken)), "state": state, "error": error, "id": row.id},
            )
    return still_open
