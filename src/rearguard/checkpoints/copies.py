"""What is known of second copies, in the database: which checkpoint has one that was read back, where, and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.database import Connection, sql
from rearguard.model.service import Digest
from rearguard.model.time import Instant
from rearguard.ports import IdSource

_STORE_ID = "store_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A second copy of one checkpoint."""

    domain: str
    """Storage domain of the folder when it was last looked at."""
    verified_at: Instant | None
    """When every byte of it was last read back and right; None: it is not whole."""
    failure: str
    """Code of why it is not, or empty."""

    @property
    def holds(self) -> bool:
        """Whether the last look found every byte right."""
        return self.verified_at is not None and not self.failure


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorRow:
    """How a folder with second copies stands."""

    folder: str
    domain: str
    marked_at: Instant | None
    """When it was first taken for this store; None: never."""
    in_step_at: Instant | None
    """When everything was last found to be there."""
    failure: str
    message: str


def store_id(connection: Connection, ids: IdSource) -> str:
    """Name of this store, made once; in a writer's transaction."""
    found = known_store_id(connection)
    if not found:
        found = "store_" + ids.run_id().removeprefix("run_")
        connection.execute(sql("INSERT INTO meta (key, value) VALUES (:key, :id)"), {"key": _STORE_ID, "id": found})
    return found


def known_store_id(connection: Connection) -> str:
    """Name of this store; empty while it has none, and so no second copy."""
    return str(connection.execute(sql("SELECT value FROM meta WHERE key = :key"), {"key": _STORE_ID}).scalar() or "")


def of_folder(connection: Connection, folder: str) -> dict[Digest, Copy]:
    """The copies in a folder."""
    rows = connection.execute(
        sql("SELECT digest, domain, verified_at, failure FROM copies WHERE folder = :folder"), {"folder": folder}
    )
    return {Digest(row.digest): _copy(row) for row in rows}


def of_checkpoint(connection: Connection, digest: Digest) -> tuple[Copy, ...]:
    """The copies of a checkpoint, beside that in the store."""
    rows = connection.execute(
        sql("SELECT domain, verified_at, failure FROM copies WHERE digest = :digest ORDER BY folder"),
        {"digest": digest},
    )
    return tuple(_copy(row) for row in rows)


def by_checkpoint(connection: Connection) -> Mapping[Digest, tuple[Copy, ...]]:
    """The copies of every checkpoint."""
    found: dict[Digest, tuple[Copy, ...]] = defaultdict(tuple)
    for row in connection.execute(sql("SELECT digest, domain, verified_at, failure FROM copies ORDER BY folder")):
        found[Digest(row.digest)] += (_copy(row),)
    return found


def note(connection: Connection, digest: Digest, folder: str, copy: Copy) -> None:
    """Write what is known now over what was."""
    connection.execute(
        sql(
            "INSERT OR REPLACE INTO copies (digest, folder, domain, verified_at, failure) "
            "VALUES (:digest, :folder, :domain, :at, :failure)"
        ),
        {
            "digest": digest,
            "folder": folder,
            "domain": copy.domain,
            "at": encode_instant(copy.verified_at) if copy.verified_at else None,
            "failure": copy.failure,
        },
    )


def forget_folder(connection: Connection, folder: str) -> None:
    """Its copies are gone: another disk is there."""
    connection.execute(sql("DELETE FROM copies WHERE folder = :folder"), {"folder": folder})


def forget_other_folders(connection: Connection, folder: str) -> None:
    """What is kept in no step any more counts as no copy; the folders stay known."""
    connection.execute(sql("DELETE FROM copies WHERE folder <> :folder"), {"folder": folder})


def mirror(connection: Connection, folder: str) -> MirrorRow | None:
    """How a folder stands; None when nobody looked yet."""
    row = connection.execute(sql("SELECT * FROM mirrors WHERE folder = :folder"), {"folder": folder}).first()
    if row is None:
        return None
    return MirrorRow(
        folder=row.folder,
        domain=row.domain,
        marked_at=decode_instant(row.marked_at) if row.marked_at else None,
        in_step_at=decode_instant(row.in_step_at) if row.in_step_at else None,
        failure=row.failure,
        message=row.message,
    )


def put_mirror(connection: Connection, row: MirrorRow) -> None:
    """Write what is known now over what was."""
    connection.execute(
        sql(
            "INSERT OR REPLACE INTO mirrors (folder, domain, marked_at, in_step_at, failure, message) "
            "VALUES (:folder, :domain, :marked, :in_step, :failure, :message)"
        ),
        {
            "folder": row.folder,
            "domain": row.domain,
            "marked": encode_instant(row.marked_at) if row.marked_at else None,
            "in_step": encode_instant(row.in_step_at) if row.in_step_at else None,
            "failure": row.failure,
            "message": row.message[:500],
        },
    )


def _copy(row: object) -> Copy:
    domain, verified_at, failure = (getattr(row, name) for name in ("domain", "verified_at", "failure"))
    return Copy(domain=domain, verified_at=decode_instant(verified_at) if verified_at else None, failure=failure)
