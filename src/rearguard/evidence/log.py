"""Append and read evidence records.

The database is the truth (decision 2). `append` writes with the connection it is given, so a fact and its record
commit together or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rearguard.database import Connection, sql
from rearguard.errors import IntegrityError
from rearguard.model.evidence import Record
from rearguard.model.service import Place
from rearguard.model.time import Instant
from rearguard.rules.chain import GENESIS, canonical_bytes, record_hash

_COLUMNS = "id, ts, monotonic_ns, boot_id, run_id, service, env, kind, body, prev, hash"


def append(
    connection: Connection,
    *,
    now: Instant,
    kind: str,
    body: dict[str, Any],
    place: Place | None = None,
    run_id: str | None = None,
) -> Record:
    """Append one record to the chain and return it.

    The connection must be in a writer's transaction, so that nobody appends between the look at the head and the
    insert. Raises `NotCanonicalError` for a body with floats or other foreign values.
    """
    head = connection.execute(sql("SELECT id, hash FROM evidence ORDER BY id DESC LIMIT 1")).first()
    fields: dict[str, Any] = {
        "id": head.id + 1 if head else 1,
        "ts": now.rfc3339(),
        "monotonic_ns": str(now.mono_ns),
        "boot_id": now.boot_id,
        "run_id": run_id,
        "service": place.service if place else None,
        "env": (place.env or None) if place else None,
        "kind": kind,
        "body": body,
        "prev": head.hash if head else GENESIS,
    }
    fields["hash"] = record_hash(fields)
    row = {**fields, "body": canonical_bytes(body).decode("utf-8")}
    connection.execute(
        sql(
            f"INSERT INTO evidence ({_COLUMNS}) VALUES "
            "(:id, :ts, :monotonic_ns, :boot_id, :run_id, :service, :env, :kind, :body, :prev, :hash)"
        ),
        row,
    )
    return Record(**fields)


def read(connection: Connection, *, after: int = 0, run_id: str | None = None) -> Iterator[Record]:
    """All records with a higher id, in order, or those of one run. Raises `IntegrityError` `record_unreadable`."""
    of_run = "" if run_id is None else "AND run_id = :run"
    rows = connection.execute(
        sql(f"SELECT {_COLUMNS} FROM evidence WHERE id > :after {of_run} ORDER BY id"),
        {"after": after, **({} if run_id is None else {"run": run_id})},
    )
    for row in rows:
        try:
            body = json.loads(row.body)
        except (ValueError, TypeError, RecursionError) as error:
            raise IntegrityError(
                "record_unreadable", f"record {row.id} of the database holds no JSON: {error}", "rearguard log verify"
            ) from error
        yield Record(**{**row._mapping, "body": body})


def newest_id(connection: Connection) -> int:
    """Id of the newest record, 0 for an empty log."""
    return int(connection.execute(sql("SELECT COALESCE(MAX(id), 0) FROM evidence")).scalar_one())
