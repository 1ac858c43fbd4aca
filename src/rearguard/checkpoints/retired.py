"""Checkpoints that retention took out of the registry: their version labels stay taken, their blobs wait to be swept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from rearguard.checkpoints.registry import encode_instant
from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """A label that is taken for good."""

    service: str
    version: str
    digest: Digest


def retire(
    connection: Connection, checkpoint: Checkpoint, blobs: Iterable[str], *, by: str, now: Instant, run_id: str
) -> None:
    """Take a checkpoint out of the registry, with its record; `blobs` are kept to be swept. A second call changes nothing.

    Inside a writer's transaction, which has just judged that it may go.
    """
    gone = connection.execute(sql("DELETE FROM checkpoints WHERE digest = :digest"), {"digest": checkpoint.digest})
    if not gone.rowcount:
        return
    connection.execute(sql("DELETE FROM copies WHERE digest = :digest"), {"digest": checkpoint.digest})
    # One that was retired, imported again under its own label, and is retired again: the newest counts.
    connection.execute(
        sql(
            "INSERT OR REPLACE INTO retired (service, version, digest, retired_at, blobs) "
            "VALUES (:service, :version, :digest, :at, :blobs)"
        ),
        {
            "service": checkpoint.service,
            "version": checkpoint.version,
            "digest": checkpoint.digest,
            "at": encode_instant(now),
            "blobs": json.dumps(sorted(blobs)),
        },
    )
    body = {
        "digest": checkpoint.digest,
        "version": checkpoint.version,
        "size_bytes": checkpoint.size_bytes,
        "added_ts": checkpoint.added_at.rfc3339_ms(),
        "by": by,
    }
    place = Place(service=checkpoint.service, env="")
    append(connection, now=now, kind="checkpoint_retired", body=body, place=place, run_id=run_id)


def find(connection: Connection, *, service: str, version: str) -> Retired | None:
    """The retired checkpoint that had this label; None when the label is not taken by one."""
    row = connection.execute(
        sql("SELECT service, version, digest FROM retired WHERE service = :service AND version = :version"),
        {"service": service, "version": version},
    ).first()
    return Retired(service=row.service, version=row.version, digest=Digest(row.digest)) if row else None


def version_of(connection: Connection, digest: str) -> str | None:
    """The label that a retired digest had; None when it was never retired."""
    found = connection.execute(sql("SELECT version FROM retired WHERE digest = :d LIMIT 1"), {"d": digest}).scalar()
    return str(found) if found is not None else None


def unswept(connection: Connection) -> tuple[frozenset[str], frozenset[Digest]]:
    """Blobs of retired checkpoints that were not swept yet, and the digests of these checkpoints."""
    rows = connection.execute(sql("SELECT digest, blobs FROM retired WHERE blobs <> '[]'")).all()
    return frozenset(b for row in rows for b in json.loads(row.blobs)), frozenset(Digest(row.digest) for row in rows)


def swept(connection: Connection) -> None:
    """Nothing of what was retired so far is left, but for what others use too."""
    connection.execute(sql("UPDATE retired SET blobs = '[]' WHERE blobs <> '[]'"))
