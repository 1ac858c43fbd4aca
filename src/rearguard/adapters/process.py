"""One command of the operator, run to its end, with a time limit. No shell is involved.

What a command leaves behind on purpose (a server that it started in the background) lives on, also when it has inherited
the standard output: output goes to a file without a name, not to a pipe, so nobody waits for its other end and nobody
breaks it. A command that does not end in time is killed with its whole process group.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

STDOUT_LIMIT_BYTES = 16 << 20
"""What is read of an output; the rest is left. Chosen: a golden answer is some kilobytes."""
STDERR_LIMIT_BYTES = 4096
_ROOM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended by itself."""

    code: int
    stdout: bytes
    """Its beginning, at most `STDOUT_LIMIT_BYTES`."""
    stderr: str
    """Its end, at most `STDERR_LIMIT_BYTES`."""


def run(argv: Sequence[str], stdin: bytes, timeout_s: float, env: Mapping[str, str] | None = None) -> Ended:
    """Run once; `env` None: the environment of this process.

    Raises `OSError` or `ValueError` when it cannot be run, `subprocess.TimeoutExpired` when it was killed.
    """
    with _file() as given, _file() as stdout, _file() as stderr:
        given.write(stdin)
        given.flush()
        given.seek(0)
        process = subprocess.Popen(
            argv,
            stdin=given,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
        try:
            _wait(process, timeout_s)
        finally:
            _end_group(process)
        return Ended(
            code=process.returncode,
            stdout=os.pread(stdout.fileno(), STDOUT_LIMIT_BYTES, 0),
            stderr=_tail(stderr.fileno()),
        )


def _file() -> IO[bytes]:
    """A file without a name; in memory where no disk has room, so that a full one keeps no rollback from being done."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(tempfile.gettempdir())
        if disk.f_bavail * disk.f_frsize >= _ROOM_BYTES:
            return tempfile.TemporaryFile()
    return os.fdopen(os.memfd_create("rearguard-command"), "w+b")


def _wait(process: subprocess.Popen[Any], timeout_s: float) -> None:
    """As `process.wait`, but told at once: that one looks every 50 ms, which would be in every probe's latency."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:  # a kernel or a sandbox without it
        process.wait(timeout_s)
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        ended = poll.poll(timeout_s * 1000)
    finally:
        os.close(handle)
    if not ended:
        raise subprocess.TimeoutExpired(process.args, timeout_s)
    process.wait()


def _tail(handle: int) -> str:
    size = os.fstat(handle).st_size
    return os.pread(handle, STDERR_LIMIT_BYTES, max(0, size - STDERR_LIMIT_BYTES)).decode("utf-8", "replace")


def _end_group(process: subprocess.Popen[Any]) -> None:
    """Kill what is left of a command that did not end; nothing when it ended, whatever it left behind."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the session it leads: its process group has its id
        process.wait()
