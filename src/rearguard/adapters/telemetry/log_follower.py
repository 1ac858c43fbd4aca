"""Follows one append-only log file and hands out its complete lines, each once.

Owns rotation, truncation, partial lines and the bound on work; what a line means is left to the caller. Rotation is
seen by the file's identity (device and inode). The old file stays open for a while after a rotation, so that its rest
is read first, a slow writer's last lines are not lost, and its inode number cannot be given to another file meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from rearguard.model.time import NS_PER_S

MAX_LINE_BYTES = 64 * 1024
"""A longer line is rejected and skipped. Chosen: two hundred times a usual line, and small enough to hold."""
MAX_BACKLOG_BYTES = 64 * 1024 * 1024
"""How far back the first opening may start. Chosen: about 200,000 lines."""
_BACKLOG_BLOCK_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_MARK_BYTES = 128
_DRAIN_NS = 60 * NS_PER_S
"""How long a rotated file is still read. Chosen: logrotate signals writers within seconds."""
_MAX_DRAINING = 8


@dataclass(slots=True)
class Budget:
    """What may still be read in this poll; `LogFollower.read` takes from it."""

    lines: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read gave: complete lines without their newline, and why others were not handed out."""

    lines: list[bytes] = field(default_factory=list)
    rejections: list[str] = field(default_factory=list)
    """`line_too_long` or `line_cut_off`, one entry a line."""


class LogFollower:
    """Follows the file at `path` through rotation, replacement and truncation.

    Law: while the file is only appended to and renamed away, each line is handed out exactly once, however the reads
    are cut. Raises OSError when the path exists and cannot be read as a regular file; a missing file is no error.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._current: _OpenLog | None = None
        self._draining: list[tuple[_OpenLog, int]] = []

    def read(self, budget: Budget, now_mono_ns: int, is_old: Callable[[bytes], bool | None]) -> Batch:
        """New complete lines, within `budget`, which is reduced by what was read.

        `is_old` says of a line whether it is older than anything wanted, None when it cannot tell; it is asked only
        at the first opening, to find where to start.
        """
        batch = Batch()
        self._read_draining(budget, now_mono_ns, batch)
        if self._current is None:
            descriptor = _open(self.path)
            if descriptor is None:
                return batch
            self._current = _OpenLog(descriptor, _backlog_start(descriptor, is_old))
        else:
            self._current.notice_truncation(budget, batch)
        while self._current.read(budget, batch) and self._follow_rotation(now_mono_ns, batch):
            pass
        return batch

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        for log, _ in self._draining:
            log.close()
        self._draining.clear()
        if self._current is not None:
            self._current.close()
            self._current = None

    def _read_draining(self, budget: Budget, now_mono_ns: int, batch: Batch) -> None:
        for entry in list(self._draining):
            log, rotated_at_ns = entry
            if log.read(budget, batch) and now_mono_ns - rotated_at_ns >= _DRAIN_NS:
                self._draining.remove(entry)
                log.finish(batch)

    def _follow_rotation(self, now_mono_ns: int, batch: Batch) -> bool:
        """Change over to the file that now has the name, if it is another one than the one just read to its end."""
        assert self._current is not None
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False  # renamed away and not created again yet: the open file is still the newest
        if (found.st_dev, found.st_ino) == self._current.identity:
            return False
        descriptor = _open(self.path)
        if descriptor is None:
            return False
        self._draining.append((self._current, now_mono_ns))
        self._current = _OpenLog(descriptor, 0)
        if len(self._draining) > _MAX_DRAINING:
            self._draining.pop(0)[0].finish(batch)
        return True


class _OpenLog:
    """One open file: where we are in it and what of its next line we have."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._rest = b""
        # A start inside the file lies on the last byte of a line or within one: pass over what is left of it.
        self._skip_to_newline = offset > 0
        start = max(0, offset - _MARK_BYTES)
        self._mark = os.pread(descriptor, offset - start, start)
        found = os.fstat(descriptor)
        self.identity = (found.st_dev, found.st_ino)

    def read(self, budget: Budget, batch: Batch) -> bool:
        """Read within the budget; True when the end of the file was reached."""
        while True:
            self._take_lines(budget, batch)
            if budget.lines <= 0 or budget.bytes <= 0:
                return False
            chunk = os.pread(self._descriptor, min(_READ_BYTES, budget.bytes), self._offset)
            if not chunk:
                return True
            self._offset += len(chunk)
            budget.bytes -= len(chunk)
            self._mark = (self._mark + chunk)[-_MARK_BYTES:]
            self._rest += chunk

    def notice_truncation(self, budget: Budget, batch: Batch) -> None:
        """Start again at the file's beginning if what we read of it is no longer there.

        A file that was cut and has already grown past our place is known by the bytes just before it.
        """
        self._take_lines(budget, batch)
        if b"\n" in self._rest:
            return  # the budget ended first; the lines in hand go out before we look again
        size = os.fstat(self._descriptor).st_size
        before = os.pread(self._descriptor, len(self._mark), self._offset - len(self._mark))
        if size >= self._offset and before == self._mark:
            return
        if self._rest:
            batch.rejections.append("line_cut_off")
        self._rest = self._mark = b""
        self._offset = 0
        self._skip_to_newline = False

    def finish(self, batch: Batch) -> None:
        """Close; a line that never got its newline is rejected."""
        if self._rest:
            batch.rejections.append("line_cut_off")
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def _take_lines(self, budget: Budget, batch: Batch) -> None:
        parts = self._rest.split(b"\n", max(0, budget.lines))
        self._rest = parts.pop()
        budget.lines -= len(parts)
        for line in parts:
            if self._skip_to_newline:
                self._skip_to_newline = False
            elif len(line) > MAX_LINE_BYTES:
                batch.rejections.append("line_too_long")
            else:
                batch.lines.append(line)
        if b"\n" in self._rest:
            return
        if self._skip_to_newline:
            self._rest = b""
        elif len(self._rest) > MAX_LINE_BYTES:
            batch.rejections.append("line_too_long")
            self._skip_to_newline = True
            self._rest = b""


def _open(path: str) -> int | None:
    try:
        # O_NONBLOCK: opening a FIFO without a writer would otherwise wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def _backlog_start(descriptor: int, is_old: Callable[[bytes], bool | None]) -> int:
    """Where to start reading a file that was there before us: at 0, or one byte before a block that begins old.

    Steps back from the end block by block until the first line of a block that can be understood is old.
    """
    size = os.fstat(descriptor).st_size
    earliest = max(0, size - MAX_BACKLOG_BYTES)
    position = size
    while position > earliest:
        position = max(earliest, position - _BACKLOG_BLOCK_BYTES)
        if position == 0:
            return 0
        _, *lines = os.pread(descriptor, 2 * MAX_LINE_BYTES, position - 1).split(b"\n")
        answers = (is_old(line) for line in lines[:-1])
        if next((answer for answer in answers if answer is not None), False):
            break
    return max(0, position - 1)
