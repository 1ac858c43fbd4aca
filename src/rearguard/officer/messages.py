"""Operations on messages to people: what was told, what still waits for a channel, and who has seen it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints.registry import decode_instant
from rearguard.database import Connection, sql
from rearguard.errors import NotFoundError
from rearguard.handoffs import courier, outbox
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageView:
    """One message and how far it came."""

    id: int
    key: str
    cause: str
    title: str
    fields: dict[str, str]
    severity: str
    action: str
    state: str
    """`open` (a channel has not taken it), `done`, `superseded` by a newer one of its cause, `undelivered` (given up by a
    release before 0.2)."""
    posted_at: Instant | None
    """None: written by a release that did not note it."""
    age_s: int | None
    delivered: tuple[str, ...]
    """Channels that took it."""
    waiting_for: tuple[str, ...]
    """Declared channels that have not; empty unless open."""
    attempts: int
    last_error: str
    """The newest refusal of a channel; empty once done."""
    acked_by: str
    acked_at: Instant | None


@operation(Effect.READ)
def list_messages(office: Office, *, only_open: bool = False) -> tuple[MessageView, ...]:
    """All messages, or those that wait for a channel; oldest first."""
    declared = [channel.name for channel in office.settings.channels]
    where = "WHERE state = 'open'" if only_open else ""
    with office.database.reading() as connection:
        rows = connection.execute(sql(f"SELECT * FROM outbox {where} ORDER BY id")).all()
    now = office.clock.now()
    return tuple(_view(row._mapping, declared, now) for row in rows)


@operation(Effect.COMMIT)
def acknowledge(office: Office, message: str, *, by: str) -> MessageView:
    """Somebody has seen a message, named by its number or key; recorded once. Delivery goes on.

    Raises `NotFoundError` `message_unknown`.
    """
    now = office.clock.now()
    with office.database.transaction() as connection:
        message_id = _find(connection, message)
        outbox.acknowledge(connection, by=by, now=now, message_id=message_id)
        row = connection.execute(sql("SELECT * FROM outbox WHERE id = :id"), {"id": message_id}).one()
    office.publish()
    return _view(row._mapping, [channel.name for channel in office.settings.channels], now)


@operation(Effect.COMMIT)
def retry(office: Office) -> tuple[str, ...]:
    """Let every channel be tried at once by the living officer; returns those that were being left alone."""
    with office.database.transaction() as connection:
        return courier.clear_back_off(connection)


def _find(connection: Connection, message: str) -> int:
    number = int(message) if message.isascii() and message.isdigit() and len(message) < 19 else 0
    found = connection.execute(
        sql("SELECT id FROM outbox WHERE id = :id OR key = :key"), {"id": number, "key": message}
    ).scalar()
    if found is None:
        raise NotFoundError("message_unknown", f"no message {message}", "see `rearguard messages list`")
    return int(found)


def _view(row: Any, declared: Collection[str], now: Instant) -> MessageView:
    posted_at = decode_instant(row["posted_at"]) if row["posted_at"] else None
    taken = json.loads(row["delivered"])
    return MessageView(
        id=row["id"],
        key=row["key"],
        cause=row["cause"] or row["key"],
        title=row["title"],
        fields=json.loads(row["fields"]),
        severity=row["severity"],
        action=row["action"],
        state=row["state"],
        posted_at=posted_at,
        age_s=max(0, elapsed(posted_at, now).ns // NS_PER_S) if posted_at else None,
        delivered=tuple(taken),
        waiting_for=tuple(name for name in declared if name not in taken) if row["state"] == "open" else (),
        attempts=row["attempts"],
        last_error=row["last_error"],
        acked_by=row["acked_by"],
        acked_at=decode_instant(row["acked_at"]) if row["acked_at"] else None,
    )
