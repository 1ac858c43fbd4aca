"""Repair: blobs of the store that are at fault are taken from the second copy.

Nothing is put in place unless its sha256 is that of the name, and nothing of a checkpoint unless all of it can be mended.
What was at fault is set aside, as evidence; a blob keeps its name, so views and every checkpoint that shares it are mended
too. A server that has the old bytes mapped keeps them until it loads again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rearguard.checkpoints import hashing, layout
from rearguard.checkpoints.store import ContentStore
from rearguard.errors import ConfigError, DependencyError, IntegrityError
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.officer import checkpoints, mirroring
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.ports import CheckpointCopy

REPAIRABLE = ("blob_missing", "blob_unreadable", "blob_truncated", "blob_altered", "blob_swapped", "blob_unsafe")
"""Codes of a verification that bytes from elsewhere can mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairedBlob:
    """A blob that was taken from the second copy."""

    sha256: str
    code: str
    """What was wrong with the one in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """The outcome for one checkpoint."""

    service: str
    version: str
    digest: Digest
    ok: bool
    """It is verified again."""
    code: str
    message: str
    blobs: tuple[RepairedBlob, ...]


@operation(Effect.COMMIT)
def repair(office: Office, *, service: str | None, version: str | None, by: str) -> tuple[Repair, ...]:
    """Mend one checkpoint, or without a name each whose last verification failed for its bytes, and verify it.

    A second call finds nothing at fault, takes nothing, and verifies. Raises `ConfigError` `mirror_not_declared`,
    `NotFoundError` as `checkpoints.find`, `DependencyError` `mirror_unavailable` and `store_not_written`. One that cannot be
    mended (`no_good_copy`) is an outcome, and keeps no other from being mended.
    """
    place = mirroring.open_copy(office, hashing.Reading(mode=hashing.HashMode.DIRECT))
    if place is None:
        raise ConfigError(
            "mirror_not_declared",
            f"{office.settings.file} names no second copy, or it was never brought in step",
            "add the checkpoint again from its source; for the next time declare checkpoints.mirror",
        )
    place.prepare(known=True, anew=False)
    if service is not None and version is not None:
        wanted = [checkpoints.find(office, service=service, version=version)]
    else:
        wanted = [r.checkpoint for r in checkpoints.list_checkpoints(office) if r.checkpoint.failure in REPAIRABLE]
    return tuple(_repair(office, place, checkpoint, by) for checkpoint in wanted)


def _repair(office: Office, place: CheckpointCopy, checkpoint: Checkpoint, by: str) -> Repair:
    outcome = Repair(
        service=checkpoint.service,
        version=checkpoint.version,
        digest=checkpoint.digest,
        ok=False,
        code="",
        message="",
        blobs=(),
    )
    try:
        with office.store.ingesting():
            taken = _mend(office, place, checkpoint)
    except IntegrityError as error:
        return replace(outcome, code=error.code, message=error.message)
    if taken:
        _record(office, place, checkpoint, taken, by)
    proof = checkpoints.prove(office, checkpoint)
    return replace(outcome, ok=proof.ok, code=proof.code, message=proof.message, blobs=taken)


def _mend(office: Office, place: CheckpointCopy, checkpoint: Checkpoint) -> tuple[RepairedBlob, ...]:
    """All blobs at fault, fetched and hashed first, put in place only then."""
    store = office.store
    sizes = {f.sha256: f.size_bytes for f in checkpoint.files}
    return _replace(store, place, layout.blobs_of(checkpoint), sizes)


def _replace(
    store: ContentStore, place: CheckpointCopy, names: frozenset[str], sizes: dict[str, int]
) -> tuple[RepairedBlob, ...]:
    found = [(name, code) for name in sorted(names) if (code := _fault(store, name, sizes.get(name)))]
    fetched: list[tuple[RepairedBlob, Path]] = []
    try:
        for name, code in found:
            fetched.append((RepairedBlob(sha256=name, code=code), _fetch(store, place, name)))
        for blob, temporary in fetched:
            _put_in_place(store, blob.sha256, temporary)
    finally:
        for _, temporary in fetched:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return tuple(blob for blob, _ in fetched)


def _fault(store: ContentStore, name: str, size_bytes: int | None) -> str:
    """Code of what is wrong with a stored blob; empty when nothing is."""
    path = store.blobs / name
    try:
        size = path.lstat().st_size if size_bytes is None else size_bytes
        hashing.prove([hashing.Blob(name=name[:12], path=path, sha256=name, size_bytes=size)])
    except FileNotFoundError:
        return "blob_missing"
    except OSError:
        return "blob_unreadable"
    except IntegrityError as error:
        return error.code
    return ""


def _fetch(store: ContentStore, place: CheckpointCopy, name: str) -> Path:
    """The blob under a temporary name in the store, synced. Raises `IntegrityError` `no_good_copy`."""
    temporary = store.blobs / f".repair.{name[:12]}.{os.getpid()}.{threading.get_ident()}"
    hasher = hashlib.sha256()
    try:
        with _written(temporary), temporary.open("wb") as writer:
            for chunk in _no_good_copy(name, place.open(name)):
                hasher.update(chunk)
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        if hasher.hexdigest() != name:
            raise IntegrityError("no_good_copy", f"the second copy of {name[:12]} is at fault too", _HINT)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


_HINT = "add the checkpoint again from its source"


def _no_good_copy(name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    except IntegrityError as error:
        raise IntegrityError("no_good_copy", f"no second copy of {name[:12]}: {error.message}", _HINT) from error


def _put_in_place(store: ContentStore, name: str, temporary: Path) -> None:
    """Set aside what stands there, and give the new one its name; at no instant is there none."""
    blob, aside = store.blobs / name, store.aside
    with _written(blob):
        if os.path.lexists(blob):
            aside.mkdir(exist_ok=True)
            number = sum(entry.startswith(name) for entry in os.listdir(aside))
            kept = aside / f"{name}.{number + 1}"
            try:
                os.link(blob, kept, follow_symlinks=False)
            except OSError:  # a folder, or a file system without hard links
                blob.rename(kept)
        temporary.chmod(0o444)
        temporary.replace(blob)
        handle = os.open(store.blobs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message, hint = f"cannot write {path}: {error.strerror}", "free space on the state directory's disk"
        raise DependencyError("store_not_written", message, hint) from error


def _record(
    office: Office, place: CheckpointCopy, checkpoint: Checkpoint, taken: tuple[RepairedBlob, ...], by: str
) -> None:
    body = {
        "digest": checkpoint.digest,
        "version": checkpoint.version,
        "domain": place.domain(),
        "blobs": [{"sha256": blob.sha256, "code": blob.code} for blob in taken],
        "by": by,
    }
    at = Place(service=checkpoint.service, env="")
    with office.database.transaction() as connection:
        append(
            connection,
            now=office.clock.now(),
            kind="checkpoint_repaired",
            body=body,
            place=at,
            run_id=office.ids.run_id(),
        )
