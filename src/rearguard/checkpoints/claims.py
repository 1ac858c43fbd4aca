"""Temporary files and folders that tell whether their maker still lives.

Each is locked (`flock`) by whoever made it for as long as it is worked on; the kernel lets go when that process dies,
also where process ids are counted anew. So what can be locked has nobody, and is swept.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

PREFIX = ".claimed-"
_OLDER_PREFIX = ".ingest."
"""Followed by a process id: of the release before this one, which may still be writing beside us."""
_numbers = itertools.count(1)


@contextlib.contextmanager
def file(folder: Path) -> Iterator[tuple[Path, int]]:
    """A new empty file in `folder` and its descriptor; gone at the end unless it was renamed by then."""
    path, handle = _make(folder, lambda p: os.open(p, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield path, handle
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                path.unlink()
        os.close(handle)


@contextlib.contextmanager
def folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`; gone with all that is in it at the end, unless it was renamed by then."""

    def make(path: Path) -> int:
        path.mkdir(mode=0o700)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    path, handle = _make(parent, make)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def sweep(folder: Path) -> int:
    """Remove what dead processes left in `folder`; returns how much that was. What is in use stays."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith((PREFIX, _OLDER_PREFIX))]
    except OSError:
        return 0
    return sum(_sweep_one(folder / name) for name in names)


def _make(folder: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        path = folder / f"{PREFIX}{os.getpid()}.{next(_numbers)}"
        try:
            handle = make(path)
        except FileExistsError:
            continue
        except FileNotFoundError:
            if folder.is_dir():
                continue  # swept between being made and being opened
            raise
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                return path, handle
        os.close(handle)  # swept between being opened and being locked


def _sweep_one(path: Path) -> int:
    if path.name.startswith(_OLDER_PREFIX):
        if _lives(path.name.removeprefix(_OLDER_PREFIX)):
            return 0
        return _remove(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _remove(path)
    except BlockingIOError:
        return 0
    finally:
        os.close(handle)


def _remove(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
    return int(not os.path.lexists(path))


def _lives(pid: str) -> bool:
    return not pid.isdigit() or Path("/proc", pid).exists()
