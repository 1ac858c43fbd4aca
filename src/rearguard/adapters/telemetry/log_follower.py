"""Follows one append-only log file and hands out its complete lines, each once.

Owns rotation, truncation, partial lines and the bound on work; what a line means is left to the caller. Rotation is
seen by the file's identity (device and inode). The old file stays open for a while after a rotation, so that its rest
is read first, a slow writer's last lines are not lost, and its inode number cannot be given to another file meanwhile.
Where it is can be saved and taken up by another process: a file is then known by its inode and by the bytes before the
place, wherever in its folder it was renamed to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rearguard.model.time import NS_PER_S

MAX_LINE_BYTES = 64 * 1024
"""A longer line is rejected and skipped. Chosen: two hundred times a usual line, and small enough to hold."""
MAX_BACKLOG_BYTES = 64 * 1024 * 1024
"""How far back the first opening may start. Chosen: about 200,000 lines."""
_BACKLOG_BLOCK_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_MARK_BYTES = 128
_SAVED_MARK_BYTES = 4096
"""Several whole lines with their instants: the ends of two lines may well be equal."""
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
    """Of files that were begun somewhere: some of them may have been handed out by an earlier process."""
    unseen: list[bytes] = field(default_factory=list)
    """Of files that were taken up where they had been left: nobody has had these."""
    rejections: list[str] = field(default_factory=list)
    """`line_too_long` or `line_cut_off`, one entry a line; `backlog_skipped`, one entry a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlace:
    """How far one file was read."""

    inode: int
    offset: int
    """Of the first byte that was not handed out."""
    mark: str
    """sha256 of the up to 4 KiB before it: a file that was cut, or another one with its inode, has other bytes."""
    skips: bool
    """True within a line that was too long."""


class LogFollower:
    """Follows the file at `path` through rotation, replacement and truncation.

    Law: while the file is only appended to and renamed away, each line is handed out exactly once, however the reads
    are cut. Raises OSError when the path exists and cannot be read as a regular file; a missing file is no error.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._current: _OpenLog | None = None
        self._draining: list[tuple[_OpenLog, int]] = []
        self._left: tuple[FilePlace, ...] | None = None

    def place(self) -> tuple[FilePlace, ...]:
        """How far each open file was read, the one that has the name last; empty before there was one.

        Raises OSError.
        """
        if self._left is not None:
            return self._left
        logs = [log for log, _ in self._draining]
        return tuple(log.place() for log in (*logs, *([self._current] if self._current else [])))

    def take_up(self, left: Iterable[FilePlace]) -> None:
        """Before the first read: go on where an earlier process left, which is `place()` of its follower.

        A renamed file is looked for in its folder and its rest is read; what stands in its place is then new. A file
        that is gone, was cut or was exchanged cannot be taken up: the one that has the name is begun like at a first
        opening. Empty: there was no file, so that all of what is there now is new.
        """
        self._left = tuple(left)

    def read(self, budget: Budget, now_mono_ns: int, is_old: Callable[[bytes], bool | None]) -> Batch:
        """New complete lines, within `budget`, which is reduced by what was read.

        `is_old` says of a line whether it is older than anything wanted, None when it cannot tell; it is asked only
        at the first opening, to find where to start.
        """
        batch = Batch()
        if self._left is not None:
            self._go_on(self._left, now_mono_ns, batch)
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

    def _go_on(self, left: tuple[FilePlace, ...], now_mono_ns: int, batch: Batch) -> None:
        named = _open(self.path)
        named_inode = None if named is None else os.fstat(named).st_ino
        known = not left
        for place in left:
            is_named = named is not None and place.inode == named_inode
            descriptor = named if is_named else _find(os.path.dirname(self.path) or ".", place.inode)
            known = descriptor is not None and _is_at(descriptor, place)
            if descriptor is None or not known:
                if descriptor is not None and not is_named:
                    os.close(descriptor)
                continue
            log = _OpenLog(descriptor, place.offset, unseen=True, skips=place.skips)
            log.skip_backlog(batch)
            if is_named:
                self._current, named = log, None
            else:
                self._draining.append((log, now_mono_ns))
        if named is not None and known:
            # The file that had the name last was found under another: this is the one that came after it.
            self._current = _OpenLog(named, 0, unseen=True)
            self._current.skip_backlog(batch)
        elif named is not None:
            os.close(named)
        self._left = None

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
        self._current = _OpenLog(descriptor, 0, unseen=self._current.unseen)
        if len(self._draining) > _MAX_DRAINING:
            self._draining.pop(0)[0].finish(batch)
        return True


class _OpenLog:
    """One open file: where we are in it and what of its next line we have."""

    def __init__(self, descriptor: int, offset: int, *, unseen: bool = False, skips: bool | None = None) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._rest = b""
        self.unseen = unseen
        # A start inside the file lies on the last byte of a line or within one: pass over what is left of it.
        self._skip_to_newline = offset > 0 if skips is None else skips
        start = max(0, offset - _MARK_BYTES)
        self._mark = os.pread(descriptor, offset - start, start)
        found = os.fstat(descriptor)
        self.identity = (found.st_dev, found.st_ino)

    def place(self) -> FilePlace:
        """Where the next line begins that was not handed out."""
        offset = self._offset - len(self._rest)
        return FilePlace(
            inode=self.identity[1], offset=offset, mark=_mark(self._descriptor, offset), skips=self._skip_to_newline
        )

    def skip_backlog(self, batch: Batch) -> None:
        """Begin nearer to the end when more is there than is ever read at a start; that is told as a rejection."""
        start = os.fstat(self._descriptor).st_size - MAX_BACKLOG_BYTES
        if start > self._offset:
            batch.rejections.append("backlog_skipped")
            self._offset, self._skip_to_newline = start, True
            self._mark = os.pread(self._descriptor, _MARK_BYTES, start - _MARK_BYTES)

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
                (batch.unseen if self.unseen else batch.lines).append(line)
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


def _find(folder: str, inode: int) -> int | None:
    """The file of a folder that has this inode, opened; None when it is not there or may not be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.inode() == inode and entry.is_file(follow_symlinks=False):
                return _open(entry.path)
    return None


def _is_at(descriptor: int, place: FilePlace) -> bool:
    return os.fstat(descriptor).st_size >= place.offset and _mark(descriptor, place.offset) == place.mark


def _mark(descriptor: int, offset: int) -> str:
    start = max(0, offset - _SAVED_MARK_BYTES)
    return hashlib.sha256(os.pread(descriptor, offset - start, start)).hexdigest()


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
