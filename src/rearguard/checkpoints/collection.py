"""What of the store nothing refers to any more, and how it is taken away.

A blob stays while a registered checkpoint needs it: as a file, as golden set, as the manifest of its OCI layout or as
what that manifest names. Everything else may still be on its way in, so it goes only once it is an hour old; the blobs of
checkpoints that were retired on purpose go at once. Whoever sweeps is alone with the store (`ContentStore.collecting`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.checkpoints import faults, retired
from rearguard.checkpoints.store import ContentStore
from rearguard.database import Connection, sql
from rearguard.errors import DependencyError, IntegrityError
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant

LEFTOVER_AGE_S = 3600
"""What nothing refers to is left alone for so long: it may be on its way in. Chosen."""

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something in the store that may go."""

    path: Path
    what: str
    """`blob`, `view`, `temporary`, or `aside`: what a repair replaced."""
    size_bytes: int


def aside_of(store: ContentStore) -> Path:
    """Where a repair puts what was at fault: in the state directory, outside of the layout that the blobs are part of."""
    return store.blobs.parent.parent / "aside"


def manifest_hex(oci_manifest: str) -> str:
    """Name of the manifest's blob."""
    return oci_manifest.removeprefix("sha256:")


def named_by(manifest: bytes) -> frozenset[str]:
    """Names of the blobs that an OCI image manifest refers to. Raises `ValueError` when it is none."""
    document = json.loads(manifest)
    found = [document["config"]["digest"], *(layer["digest"] for layer in document["layers"])]
    return frozenset(str(digest).removeprefix("sha256:") for digest in found)


def blobs_of(store: ContentStore, checkpoint: Checkpoint) -> frozenset[str]:
    """Names of all blobs that a checkpoint needs. Raises `IntegrityError` `manifest_unreadable`."""
    files = [file.sha256 for file in checkpoint.files]
    return _needed(store, files, checkpoint.golden_sha256, checkpoint.oci_manifest)


def _needed(store: ContentStore, files: Iterable[str], golden_sha256: str, oci_manifest: str) -> frozenset[str]:
    own = {*files, golden_sha256, manifest_hex(oci_manifest)} - {""}
    if not oci_manifest:
        return frozenset(own)
    try:
        return frozenset(own) | named_by(store.get_bytes(manifest_hex(oci_manifest)))
    except (IntegrityError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(
            "manifest_unreadable",
            f"the manifest {manifest_hex(oci_manifest)[:12]} cannot be read, so what it refers to is not known: {error}",
            "`rearguard checkpoint verify`, then `rearguard checkpoint repair`",
        ) from error


def referenced(connection: Connection, store: ContentStore, without: frozenset[Digest] = frozenset()) -> frozenset[str]:
    """Names of all blobs that registered checkpoints need, but for those in `without`. Raises as `blobs_of`."""
    found: set[str] = set()
    for row in connection.execute(sql("SELECT digest, manifest, golden_sha256, oci_manifest FROM checkpoints")):
        if row.digest not in without:
            files = [file["sha256"] for file in json.loads(row.manifest)]
            found |= _needed(store, files, row.golden_sha256, row.oci_manifest)
    return frozenset(found)


def leftovers(
    connection: Connection,
    store: ContentStore,
    *,
    now: Instant,
    keep_aside_s: int,
    leaving: Iterable[Checkpoint] = (),
) -> tuple[Leftover, ...]:
    """Everything that may go: what nothing refers to once `leaving` are retired, and what dead processes left.

    Reads only. Raises as `blobs_of`, and `DependencyError` `store_unreadable`.
    """
    leaving = tuple(leaving)
    digests = frozenset(c.digest for c in leaving)
    needed = referenced(connection, store, digests)
    swept_late, gone = retired.unswept(connection)
    at_once = swept_late | {blob for c in leaving for blob in retiring_blobs(store, c)}
    known = {row.digest for row in connection.execute(sql("SELECT digest FROM checkpoints"))} - digests
    views_at_once = {digest.removeprefix("sha256:") for digest in digests | gone}
    found = [
        *_in_blobs(store.blobs, needed, at_once, now),
        *_in_views(store.views, {digest.removeprefix("sha256:") for digest in known}, views_at_once, now),
        *_in_aside(aside_of(store), keep_aside_s, now),
    ]
    return tuple(sorted(found, key=lambda leftover: leftover.path))


def retiring_blobs(store: ContentStore, checkpoint: Checkpoint) -> frozenset[str]:
    """Names of the blobs that may go with a checkpoint: all of them, or without what an unreadable manifest names.

    The rest goes once it is old enough.
    """
    try:
        return blobs_of(store, checkpoint)
    except IntegrityError:
        names = {f.sha256 for f in checkpoint.files} | {checkpoint.golden_sha256, manifest_hex(checkpoint.oci_manifest)}
        return frozenset(names - {""})


def _in_blobs(folder: Path, needed: frozenset[str], at_once: frozenset[str], now: Instant) -> Iterator[Leftover]:
    for entry in _entries(folder):
        info = entry.stat(follow_symlinks=False)
        old = _age_s(info.st_mtime_ns, now) > LEFTOVER_AGE_S
        if _HEX.fullmatch(entry.name):
            if entry.name not in needed and (old or entry.name in at_once):
                yield Leftover(path=Path(entry.path), what="blob", size_bytes=info.st_size)
        elif entry.name.startswith(".") and old and not _owner_lives(entry.name):
            yield Leftover(path=Path(entry.path), what="temporary", size_bytes=info.st_size)


def _in_views(folder: Path, known: set[str], at_once: set[str], now: Instant) -> Iterator[Leftover]:
    for entry in _entries(folder):
        old = _age_s(entry.stat(follow_symlinks=False).st_mtime_ns, now) > LEFTOVER_AGE_S
        if _HEX.fullmatch(entry.name):
            if entry.name not in known and (old or entry.name in at_once):
                yield Leftover(path=Path(entry.path), what="view", size_bytes=0)
        elif entry.name.startswith(".") and old and not _owner_lives(entry.name):
            yield Leftover(path=Path(entry.path), what="temporary", size_bytes=0)


def _in_aside(folder: Path, keep_s: int, now: Instant) -> Iterator[Leftover]:
    """Its age is that of the rename that put it there."""
    for entry in _entries(folder):
        info = entry.stat(follow_symlinks=False)
        if _age_s(max(info.st_mtime_ns, info.st_ctime_ns), now) > keep_s:
            yield Leftover(path=Path(entry.path), what="aside", size_bytes=info.st_size)


def _age_s(written_ns: int, now: Instant) -> int:
    """By the wall clock, as a file has no other; negative for one from the future, which is then young."""
    return (now.wall_ns - written_ns) // NS_PER_S


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DependencyError(
            "store_unreadable", f"cannot list {folder}: {error.strerror}", "mend its rights, or the disk"
        ) from error


def _owner_lives(name: str) -> bool:
    """Whether the process whose number stands in a temporary's name lives; a number that was given anew counts too."""
    for number in re.findall(r"(?<=\.)[0-9]{1,10}(?=\.|$)", name):
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            continue
        except (PermissionError, OverflowError):
            return True
        return True
    return False


def sweep(found: Iterable[Leftover], each: Callable[[Leftover], object] = lambda _one: None) -> None:
    """Take leftovers away, blobs first, and sync the folders; one that is gone already is as good as taken away.

    A model server may have a blob mapped: on Linux a mapping keeps the bytes until it is unmapped, whatever becomes of the
    name, and a server that is told to load again is told a view that is registered. Raises `DependencyError`
    `store_not_written`; a second sweep goes on.
    """
    folders = set()
    for one in sorted(found, key=lambda leftover: leftover.what != "blob"):
        try:
            if one.path.is_dir() and not one.path.is_symlink():
                shutil.rmtree(one.path)
            else:
                one.path.unlink(missing_ok=True)
        except OSError as error:
            raise DependencyError(
                "store_not_written",
                f"cannot remove {one.path}: {error.strerror}",
                "make the store writable, and repeat",
            ) from error
        folders.add(one.path.parent)
        each(one)
        if one.what == "blob":
            faults.reach("gc", "blob_unlinked")
    for folder in folders:
        _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sizes(found: Iterable[Leftover]) -> dict[str, Any]:
    """How many of each kind, and their bytes, for records and people."""
    found = tuple(found)
    counts = {f"{what}s": sum(one.what == what for one in found) for what in ("blob", "view")}
    others = {
        "temporaries": sum(one.what == "temporary" for one in found),
        "aside": sum(one.what == "aside" for one in found),
    }
    return {**counts, **others, "freed_bytes": sum(one.size_bytes for one in found)}
