"""What of the store nothing refers to any more, and how it is taken away.

A blob stays while a registered checkpoint needs it: as a file, as golden set, or as manifest or config of the OCI layout.
Everything else may still be on its way in, so it goes only once it is an hour old; the blobs of checkpoints that were
retired on purpose go at once. Whoever sweeps is alone with the store (`ContentStore.collecting`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.checkpoints import claims, faults, layout, registry, retired
from rearguard.checkpoints.store import ContentStore
from rearguard.database import Connection, sql
from rearguard.errors import DependencyError
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


def referenced(connection: Connection, without: frozenset[Digest] = frozenset()) -> frozenset[str]:
    """Names of all blobs that registered checkpoints need, but for those in `without`."""
    found: set[str] = set()
    for checkpoint in registry.list_all(connection):
        if checkpoint.digest not in without:
            found |= layout.blobs_of(checkpoint)
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

    Reads only. Raises `DependencyError` `store_unreadable`.
    """
    leaving = tuple(leaving)
    digests = frozenset(c.digest for c in leaving)
    needed = referenced(connection, digests)
    swept_late, gone = retired.unswept(connection)
    at_once = swept_late | {blob for c in leaving for blob in layout.blobs_of(c)}
    known = {row.digest for row in connection.execute(sql("SELECT digest FROM checkpoints"))} - digests
    views_at_once = {digest.removeprefix("sha256:") for digest in digests | gone}
    found = [
        *_in_blobs(store.blobs, needed, at_once, now),
        *_in_views(store.views, {digest.removeprefix("sha256:") for digest in known}, views_at_once, now),
        *_in_aside(store.aside, keep_aside_s, now),
    ]
    return tuple(sorted(found, key=lambda leftover: leftover.path))


def _in_blobs(folder: Path, needed: frozenset[str], at_once: frozenset[str], now: Instant) -> Iterator[Leftover]:
    for entry, info in _entries(folder):
        old = _age_s(info.st_mtime_ns, now) > LEFTOVER_AGE_S
        if _HEX.fullmatch(entry.name):
            if entry.name not in needed and (old or entry.name in at_once):
                yield Leftover(path=Path(entry.path), what="blob", size_bytes=info.st_size)
        elif entry.name.startswith(".") and not _is_claimed(entry.name) and old and not _owner_lives(entry.name):
            yield Leftover(path=Path(entry.path), what="temporary", size_bytes=info.st_size)


def _in_views(folder: Path, known: set[str], at_once: set[str], now: Instant) -> Iterator[Leftover]:
    for entry, info in _entries(folder):
        old = _age_s(info.st_mtime_ns, now) > LEFTOVER_AGE_S
        if _HEX.fullmatch(entry.name):
            if entry.name not in known and (old or entry.name in at_once):
                yield Leftover(path=Path(entry.path), what="view", size_bytes=0)
        elif entry.name.startswith(".") and not _is_claimed(entry.name) and old and not _owner_lives(entry.name):
            yield Leftover(path=Path(entry.path), what="temporary", size_bytes=0)


def _in_aside(folder: Path, keep_s: int, now: Instant) -> Iterator[Leftover]:
    """Its age is that of the rename that put it there."""
    for entry, info in _entries(folder):
        if _age_s(max(info.st_mtime_ns, info.st_ctime_ns), now) > keep_s:
            yield Leftover(path=Path(entry.path), what="aside", size_bytes=info.st_size)


def _age_s(written_ns: int, now: Instant) -> int:
    """By the wall clock, as a file has no other; negative for one from the future, which is then young."""
    return (now.wall_ns - written_ns) // NS_PER_S


def _entries(folder: Path) -> list[tuple[os.DirEntry[str], os.stat_result]]:
    """What is there, without what vanished while it was looked at: others take in and sweep beside a look."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry, entry.stat(follow_symlinks=False)))
        return found
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DependencyError(
            "store_unreadable", f"cannot list {folder}: {error.strerror}", "mend its rights, or the disk"
        ) from error


def _is_claimed(name: str) -> bool:
    """Those tell by themselves whether somebody works on them: `ContentStore.sweep` takes them."""
    return name.startswith(claims.PREFIX)


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
