"""The registry of checkpoints in the database, and its readable export `checkpoint_registry.yaml` (R1)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rearguard.checkpoints.verification import Verification
from rearguard.database import Connection, Database, sql
from rearguard.evidence.files import replace_file
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant

EXPORT_NAME = "checkpoint_registry.yaml"
EXPORT_FORMAT = "rearguard/checkpoint-registry/1"


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
            "reproducible, oci_manifest) VALUES (:digest, :service, :version, :format, :manifest, :golden, :added_at, "
            ":state, :reproducible, :oci)"
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
        },
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
    }
    place = Place(service=checkpoint.service, env="")
    record = append(connection, now=now, kind="checkpoint_verified", body=body, place=place, run_id=run_id)
    connection.execute(
        sql(
            "UPDATE checkpoints SET verified_at = :at, load_ms = :load_ms, failure = :failure, receipt = :receipt, "
            "verified_record = :record, peak_rss_bytes = :peak WHERE digest = :digest"
        ),
        {
            "at": encode_instant(now) if outcome.ok else None,
            "load_ms": outcome.load_ms,
            "peak": outcome.peak_rss_bytes,
            "failure": outcome.code,
            "receipt": outcome.receipt,
            "record": record.id,
            "digest": checkpoint.digest,
        },
    )


def find(connection: Connection, *, service: str, version: str) -> Checkpoint | None:
    """By label."""
    return _one(connection, "service = :service AND version = :version", {"service": service, "version": version})


def get(connection: Connection, digest: Digest | str) -> Checkpoint | None:
    """By address."""
    return _one(connection, "digest = :digest", {"digest": digest})


def list_all(connection: Connection, service: str | None = None) -> tuple[Checkpoint, ...]:
    """All, oldest first; of one service when named."""
    where = "service = :service" if service else "1 = 1"
    rows = connection.execute(sql(f"SELECT * FROM checkpoints WHERE {where} ORDER BY rowid"), {"service": service})
    return tuple(_checkpoint(row._mapping) for row in rows)


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
    )


def quarantined(connection: Connection, place: Place) -> frozenset[Digest]:
    """Digests that were rolled back at this place and not released since (R29)."""
    rows = connection.execute(
        sql("SELECT digest FROM quarantine WHERE service = :service AND env = :env"),
        {"service": place.service, "env": place.env},
    )
    return frozenset(Digest(row.digest) for row in rows)


def export(database: Database, state: Path) -> None:
    """Write `checkpoint_registry.yaml`: temporary name, sync, rename, sync of the folder."""
    import yaml  # imported here: only writers of the export pay for it

    with database.reading() as connection:
        checkpoints = list_all(connection)
        proofs = connection.execute(sql("SELECT digest, verified_record FROM checkpoints")).all()
        records = {row.digest: row.verified_record for row in proofs}
        held = connection.execute(
            sql("SELECT service, env, digest, run_id FROM quarantine ORDER BY service, env, digest")
        )
        quarantine = [dict(row._mapping) for row in held]
    document = {
        "format": EXPORT_FORMAT,
        "checkpoints": [
            {
                "digest": c.digest,
                "service": c.service,
                "version": c.version,
                "kind": "model",
                "format": c.format,
                "warm_start": True,
                "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in c.files],
                "golden_sha256": c.golden_sha256,
                "added_at": c.added_at.rfc3339(),
                "validated": c.verified_at is not None,
                "verified_at": c.verified_at.rfc3339() if c.verified_at else None,
                "verified_by": f"rollback_log.json#{records[c.digest]}" if records.get(c.digest) else None,
                "load_ms": c.load_ms,
                "failure": c.failure or None,
            }
            for c in checkpoints
        ],
        "quarantine": quarantine,
    }
    text = "# Exported by Rearguard after each change; the database is the truth.\n" + yaml.safe_dump(
        document, sort_keys=False, allow_unicode=True, width=120
    )
    replace_file(state / EXPORT_NAME, text.encode("utf-8"))
