"""Where the daemon's events go: JSON lines on standard output, or in a file that is rotated by size.

A log that cannot be written never stops the officer: lines are lost, and how many is said with the next one that is not.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

_BYTES_PER_MIB = 1 << 20


class LogLines:
    """One JSON object a line; any thread may write."""

    def __init__(self, path: Path | None, *, max_mib: float, keep: int) -> None:
        """`max_mib` 0: never rotated by us. Raises `OSError` when the file cannot be opened."""
        self._lock = threading.Lock()
        self._lost = 0
        self._reopen = False
        self._file: _File | None = None
        if path is not None:
            self._file = _File(
                path, maxBytes=int(max_mib * _BYTES_PER_MIB), backupCount=keep, encoding="utf-8", errors="replace"
            )

    def ask_to_reopen(self) -> None:
        """Before the next line the file is opened anew, under its name; safe in a signal handler."""
        self._reopen = True

    def tend(self) -> None:
        """Reopen now if that was asked."""
        if self._reopen:
            with self._lock:
                self._reopen_now()

    def write(self, ts: str, event: str, fields: dict[str, Any]) -> None:
        """One event."""
        with self._lock:
            if self._reopen:
                self._reopen_now()
            document = {"ts": ts, "event": event, **fields}
            if self._lost:
                document["lines_lost"] = self._lost
            try:
                self._write_line(json.dumps(document, ensure_ascii=False))
            except OSError:
                self._lost += 1
            else:
                self._lost = 0

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()

    def _write_line(self, line: str) -> None:
        if self._file is None:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        else:
            self._file.emit(logging.makeLogRecord({"msg": line}))

    def _reopen_now(self) -> None:
        self._reopen = False
        if self._file is not None:
            self._file.let_go()


class _File(RotatingFileHandler):
    """The library's rotation; its errors are raised instead of printed."""

    def handleError(self, _record: logging.LogRecord) -> None:
        """Called while the error is handled."""
        raise

    def let_go(self) -> None:
        """Close the file; the next line opens what then has its name."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None  # as the library does; it opens again
