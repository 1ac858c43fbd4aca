"""A message as one JSON line appended to a file: all of it, or none."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from dataclasses import asdict

from rearguard.errors import DependencyError
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Message

LOCK_S = 2.0
_LOOK_PAUSE_S = 0.01


class FileChannel:
    """Appends one line a message, to a file, or to a pipe or terminal that takes all of it at once."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings
        self._torn = False
        """A pipe or terminal has taken a part of a line, which cannot be taken back."""

    def deliver(self, message: Message) -> None:
        """Append and sync. A line of which only a part could be written is taken back. Raises `DependencyError` `channel_down`.

        A line that somebody else left unfinished is ended first. Those who deliver to one file take turns, by `flock`; who else
        appends to it is never truncated.
        """
        line = json.dumps(asdict(message), sort_keys=True).encode("utf-8") + b"\n"
        try:
            # Not blocking: opening a pipe that nobody reads, or writing to one that is full, must not wait.
            handle = os.open(
                self._settings.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o644
            )
            try:
                mode = os.fstat(handle).st_mode
                if stat.S_ISREG(mode):
                    self._append(handle, line)
                elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
                    self._put(handle, line)
                else:
                    raise self._down("is no file, pipe or terminal", "name another path")
            finally:
                os.close(handle)
        except OSError as error:
            raise self._down(str(error.strerror), "make the folder writable, and free space on its disk") from error

    def _append(self, handle: int, line: bytes) -> None:
        self._take_turn(handle)
        begun = b"" if self._ends_with_newline(handle) else b"\n"
        written = os.write(handle, begun + line)
        if written < len(begun) + len(line):
            end = os.lseek(handle, 0, os.SEEK_CUR)
            if os.fstat(handle).st_size == end:
                os.ftruncate(handle, end - written)
            raise self._down("has no room for the message", "free space on its disk")
        os.fsync(handle)

    def _put(self, handle: int, line: bytes) -> None:
        whole = b"\n" + line if self._torn else line
        written = os.write(handle, whole)
        self._torn = written < len(whole)
        if self._torn:
            raise self._down("took only a part of the message", "let its reader read on")

    def _take_turn(self, handle: int) -> None:
        end_s = time.monotonic() + LOCK_S  # noqa: TID251 - edge: a lock of other processes
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end_s:  # noqa: TID251 - edge: a lock of other processes
                    raise self._down("is locked by another process", "find it with `fuser`") from None
            time.sleep(_LOOK_PAUSE_S)  # noqa: TID251 - edge: others let go at once

    def _ends_with_newline(self, handle: int) -> bool:
        """True of an empty file as well, and of one that may not be read."""
        size = os.fstat(handle).st_size
        if size == 0:
            return True
        with contextlib.suppress(OSError):
            reader = os.open(self._settings.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.pread(reader, 1, size - 1) in (b"\n", b"")
            finally:
                os.close(reader)
        return True

    def _down(self, why: str, hint: str) -> DependencyError:
        return DependencyError("channel_down", f"file {self._settings.path}: {why}", hint)


def build(settings: ChannelSettings) -> FileChannel:
    """Entry point."""
    return FileChannel(settings)
