"""Room kept free for the moment when the disk is full: a rollback must be recorded, and records need space.

A file of a few megabytes lies in the state folder and holds nothing. When the disk has filled up it is dropped, so that
the run in flight and its evidence fit, and people are told; it is laid again once there is room.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

NAME = "ballast"
BALLAST_BYTES = 8 * 1024 * 1024
"""Chosen: a rollback writes some 300 kB with its write-ahead log; this is room for more than one."""
LOW_BYTES = 2 * 1024 * 1024
"""Less free space than this and the ballast is dropped. Chosen: before SQLite meets the end, not after."""


class Ballast:
    """The ballast of one state folder; `look` is called by one thread."""

    def __init__(self, state: Path, tell: Callable[[int], None]) -> None:
        """`tell` is called with the free bytes when the ballast was dropped, again until it raises nothing."""
        self._path = state / NAME
        self._tell = tell
        self._untold = False

    def look(self) -> None:
        """Drop it when the disk is nearly full, lay it when there is room for it and four times as much."""
        free_bytes = self._free_bytes()
        if self._path.exists():
            if free_bytes < LOW_BYTES:
                self._path.unlink()
                self._untold = True
        elif free_bytes > 5 * BALLAST_BYTES:
            self._lay()
        if self._untold:
            self._tell(free_bytes)
            self._untold = False

    def _free_bytes(self) -> int:
        found = os.statvfs(self._path.parent)
        return found.f_bavail * found.f_frsize

    def _lay(self) -> None:
        temporary = self._path.with_name(f".{NAME}.{os.getpid()}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(handle, 0, BALLAST_BYTES)
            os.replace(temporary, self._path)
        except OSError:
            # Somebody else filled the disk meanwhile; the next look tries again.
            with contextlib.suppress(OSError):
                temporary.unlink()
        finally:
            os.close(handle)
