"""The request log: one JSON line per inference request, the server's telemetry.

Law: a line is written by one `write` to a file opened for appending, and no failure to write ever reaches an answer;
it is counted. No sync per line: the log is telemetry, not evidence. The format is normative in
`docs/reference/telemetry-jsonl.md`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from rearguard.model.time import NS_PER_S, rfc3339_ms

PROBE_PREFIX = "rearguard-probe"


class RequestLog:
    """Appends lines, and reopens the file when somebody renamed or removed it (log rotation)."""

    def __init__(self, path: Path, service: str, env: str) -> None:
        self._path = path
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._constant = f'"boot_id":{json.dumps(boot_id)},"service":{json.dumps(service)},"env":{json.dumps(env)}'
        self._fd: int | None = None
        self._checked_ns = 0
        self._torn = False
        self.write_failures = 0

    def append(self, *, digest: str, version: str, status: int, started_ns: int, request_id: str) -> None:
        """Log one request that began at `started_ns` (monotonic) and is complete now."""
        wall_ns, mono_ns = time.time_ns(), time.monotonic_ns()  # edge: both clocks at completion, read together
        line = (
            f'{{"ts":"{rfc3339_ms(wall_ns)}","mono_ns":{mono_ns},{self._constant},'
            f'"digest":{json.dumps(digest)},"version":{json.dumps(version)},"status":{status},'
            f'"latency_ms":{(mono_ns - started_ns) / 1e6:.3f},"id":{json.dumps(request_id)},'
            f'"probe":{"true" if request_id.startswith(PROBE_PREFIX) else "false"}}}\n'
        ).encode()
        try:
            fd = self._file(mono_ns)
            # A line cut short by a full disk must not swallow the next one.
            data = b"\n" + line if self._torn else line
            written = os.write(fd, data)
            self._torn = written < len(data)
            self.write_failures += self._torn
        except OSError:
            self.write_failures += 1

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _file(self, mono_ns: int) -> int:
        if self._fd is not None and mono_ns - self._checked_ns >= NS_PER_S:
            self._checked_ns = mono_ns
            if self._was_rotated(self._fd):
                self.close()
        if self._fd is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._checked_ns = mono_ns
            self._torn = False
        return self._fd

    def _was_rotated(self, fd: int) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return True
        held = os.fstat(fd)
        return (named.st_ino, named.st_dev) != (held.st_ino, held.st_dev)
