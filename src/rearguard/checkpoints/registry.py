"""The registry of checkpoints in the database (R1). Its readable export is in `registry_file`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rearguard.checkpoints.verification import Verification
from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant, parse_rfc3339
from rearguard.rules.scrub import Failing


def encode_instant(at: Instant) -> str:
    """An instant as the text that the database keeps."""
    return json.dumps(asdict(at))


def decode_instant(text: str) -> Instant:
    """The instant back."""
    return Instant(**json.loads(text))


def insert(connection: Connection, checkpoint: Checkpoint) -> None:
    """Register an unverified checkpoint."""
    connection.execute(
        sql(
            "INSERT INTO checkpoints (digest, service, version, format, manifest, golden_sha256, added_at, state_sha256, "
            "reproducible, oci_manifest, oci_manifest_bytes) VALUES (:digest, :service, :version, :format, :manifest, "
            ":golden, :added_at, :state, :reproducible, :oci, :oci_bytes)"
        ),
        {
            "digest": checkpoint.digest,
            "service": checkpoint.service,
            "version": checkpoint.version,
            "format": checkpoint.format,
            "manifest": json.dumps([asdict(f) for f in checkpoint.files]),
            "golden": checkpoint.golden_sha256,
            "added_at": encode_instant(checkpoint.added_at),
            "state": checkpoint.state_sha256,
            "reproducible": checkpoint.reproducible,
            "oci": checkpoint.oci_manifest,
            "oci_bytes": checkpoint.oci_manifest_bytes,
        },
    )


def note_manifest(connection: Connection, checkpoint: Checkpoint) -> None:
    """Note which manifest of the layout stands for a registered checkpoint."""
    connection.execute(
        sql("UPDATE checkpoints SET oci_manifest = :oci, oci_manifest_bytes = :size WHERE digest = :digest"),
        {"oci": checkpoint.oci_manifest, "size": checkpoint.oci_manifest_bytes, "digest": checkpoint.digest},
    )


def note_verification(
    connection: Connection, checkpoint: Checkpoint, outcome: Verification, *, now: Instant, run_id: str
) -> None:
    """Write the outcome of a verification that ended `now`, as evidence and into the registry (R10)."""
    body = {
        "digest": checkpoint.digest,
        "version": checkpoint.version,
        "ok": outcome.ok,
        "code": outcome.code,
        "message": outcome.message[:500],
        "load_ms": outcome.load_ms,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "size_bytes": checkpoint.size_bytes,
        "hash_mode": outcome.hash_mode,
        "hash_ms": outcome.hash_ms,
        "reproducible": outcome.reproducible,
        "state_sha256": outcome.state_sha256,
        "libraries": dict(outcome.libraries),
        "scan": list(outcome.scan),
    }
    if not outcome.ok:
        body["failures"] = _failures(connection, checkpoint.digest) + 1
    place = Place(service=checkpoint.service, env="")
    record = append(connection, now=now, kind="checkpoint_verified", body=body, place=place, run_id=run_id)
    connection.execute(
        sql(
            "UPDATE checkpoints SET verified_at = :at, load_ms = :load_ms, failure = :failure, receipt = :receipt, "
            "verified_record = :record, peak_rss_bytes = :peak, "
            # What was registered stays the yardstick; what was not known is told by the first proof that passes.
            "state_sha256 = CASE state_sha256 WHEN '' THEN :state ELSE state_sha256 END, "
            "reproducible = CASE :reproducible WHEN '' THEN reproducible ELSE :reproducible END WHERE digest = :digest"
        ),
        {
            "at": encode_instant(now) if outcome.ok else None,
            "load_ms": outcome.load_ms,
            "peak": outcome.peak_rss_bytes,
            "failure": outcome.code,
            "receipt": outcome.receipt,
            "record": record.id,
            "state": outcome.state_sha256,
            "reproducible": outcome.reproducible,
            "digest": checkpoint.digest,
        },
    )


def _failures(connection: Connection, digest: Digest) -> int:
    """How many verifications have failed in a row, as the newest record says."""
    newest = connection.execute(
        sql("SELECT body FROM evidence WHERE id = (SELECT verified_record FROM checkpoints WHERE digest = :d)"),
        {"d": digest},
    ).scalar()
    body = json.loads(newest) if newest else {"ok": True}
    return 0 if body["ok"] else int(body.get("failures", 1))


def find(connection: Connection, *, service: str, version: str) -> Checkpoint | None:
    """By label."""
    return _one(connection, "service = :service AND version = :version", {"service": service, "version": version})


def get(connection: Connection, digest: Digest | str) -> Checkpoint | None:
    """By address."""
    return _one(connection, "digest = :digest", {"digest": digest})


def find_prefix(connection: Connection, *, service: str, prefix: str) -> Checkpoint | None:
    """The only one of a service whose digest begins with `prefix`; None when there is none, or more than one."""
    rows = connection.execute(
        sql(
            "SELECT * FROM checkpoints WHERE digest >= :prefix AND digest < :beyond AND service = :service LIMIT 2"
        ),  # "g" follows the last hex digit
        {"prefix": prefix, "beyond": f"{prefix}g", "service": service},
    ).all()
    return _checkpoint(rows[0]._mapping) if len(rows) == 1 else None


def get_many(connection: Connection, digests: Iterable[Digest]) -> tuple[Checkpoint, ...]:
    """Those of `digests` that are registered, oldest first."""
    rows = connection.execute(
        sql("SELECT * FROM checkpoints WHERE digest IN (SELECT value FROM json_each(:digests)) ORDER BY rowid"),
        {"digests": json.dumps(list(digests))},
    )
    return tuple(_checkpoint(row._mapping) for row in rows)


def newest(connection: Connection, service: str, limit: int) -> tuple[tuple[Digest, str], ...]:
    """Digest and version of the checkpoints that were registered last, newest first, at most `limit`."""
    rows = connection.execute(
        sql("SELECT digest, version FROM checkpoints WHERE service = :service ORDER BY rowid DESC LIMIT :limit"),
        {"service": service, "limit": limit},
    )
    return tuple((Digest(row.digest), row.version) for row in rows)


def count(connection: Connection, service: str) -> int:
    """How many checkpoints of a service are registered."""
    found = connection.execute(sql("SELECT COUNT(*) FROM checkpoints WHERE service = :service"), {"service": service})
    return int(found.scalar_one())


def list_all(connection: Connection, service: str | None = None) -> tuple[Checkpoint, ...]:
    """All, oldest first; of one service when named. For what a person asks: its time grows with the registry."""
    where = "service = :service" if service else "1 = 1"
    rows = connection.execute(sql(f"SELECT * FROM checkpoints WHERE {where} ORDER BY rowid"), {"service": service})
    return tuple(_checkpoint(row._mapping) for row in rows)


def proofs(connection: Connection) -> Iterator[tuple[Digest, Instant]]:
    """Digest and end of the last verification that passed, of each checkpoint that has one, oldest registered first."""
    rows = connection.execute(
        sql("SELECT digest, verified_at FROM checkpoints WHERE verified_at IS NOT NULL ORDER BY rowid")
    )
    return ((Digest(row.digest), decode_instant(row.verified_at)) for row in rows)


def failures(connection: Connection) -> Iterator[Failing]:
    """The checkpoints whose last verification failed of something else than their stored bytes."""
    rows = connection.execute(
        sql(
            "SELECT c.digest, e.ts, e.monotonic_ns, e.boot_id, e.body FROM checkpoints c JOIN evidence e "
            "ON e.id = c.verified_record WHERE c.failure != '' AND substr(c.failure, 1, 5) != 'blob_' "
            "AND c.failure != 'golden_malformed' ORDER BY c.rowid"
        )
    )
    for row in rows:
        at = Instant(wall_ns=parse_rfc3339(row.ts), mono_ns=int(row.monotonic_ns), boot_id=row.boot_id)
        yield Failing(digest=Digest(row.digest), failures=int(json.loads(row.body).get("failures", 1)), last_at=at)


def receipt_of(connection: Connection, digest: Digest | str) -> str:
    """Stat receipt of the last verification that passed, or empty."""
    return str(
        connection.execute(sql("SELECT receipt FROM checkpoints WHERE digest = :d"), {"d": digest}).scalar() or ""
    )


def _one(connection: Connection, where: str, values: dict[str, Any]) -> Checkpoint | None:
    row = connection.execute(sql(f"SELECT * FROM checkpoints WHERE {where}"), values).first()
    return _checkpoint(row._mapping) if row else None


def _checkpoint(row: Any) -> Checkpoint:
    return Checkpoint(
        digest=Digest(row["digest"]),
        service=row["service"],
        version=row["version"],
        format=row["format"],
        files=tuple(CheckpointFile(**f) for f in json.loads(row["manifest"])),
        golden_sha256=row["golden_sha256"],
        added_at=decode_instant(row["added_at"]),
        verified_at=decode_instant(row["verified_at"]) if row["verified_at"] else None,
        load_ms=row["load_ms"],
        failure=row["failure"],
        peak_rss_bytes=row["peak_rss_bytes"],
        state_sha256=row["state_sha256"],
        reproducible=row["reproducible"],
        oci_manifest=row["oci_manifest"],
        oci_manifest_bytes=row["oci_manifest_bytes"],
    )


def quarantined(connection: Connection, place: Place) -> frozenset[Digest]:
    """Digests that were rolled back at this place and not released since (R29)."""
    rows = connection.execute(
        sql("SELECT digest FROM quarantine WHERE service = :service AND env = :env"),
        {"service": place.service, "env": place.env},
    )
    return frozenset(Digest(row.digest) for row in rows)
