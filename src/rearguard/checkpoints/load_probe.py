"""Cold loads: a fresh process loads the files, answers the requests, and says what it saw.

What that process says is taken as text of a stranger: it may have run the code of a model. Its answer is bounded in size,
and what is read from it is checked for its form. A format that runs code gets an empty environment, an empty folder to
stand in and no descriptor but its three pipes; the rest of the sandbox it puts on itself before it loads anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard import loaders
from rearguard.errors import ConfigError, DependencyError, IntegrityError, RearguardError, RefusedError, UsageError
from rearguard.model.checkpoint import CheckpointPolicy
from rearguard.model.time import NS_PER_S
from rearguard.ports import Clock

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Chosen: a thousand golden answers of a hundred kilobytes each, and more than a machine has to lose."""
_MAX_SAID_BYTES = 64 * 1024
"""Of what libraries print; the end of it is enough to say why a process died."""
_HASHED_BYTES_S = 200 * 1024 * 1024
"""Beyond the load, so many bytes of state a second are waited for. Chosen: a seventh of what one processor hashes."""
_CODE = re.compile(r"[a-z][a-z_]{1,48}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_REFUSALS: dict[str, type[RearguardError]] = {
    "missing_extra": ConfigError,
    "unknown_loader": ConfigError,
    "sandbox_unavailable": RefusedError,
    "unsafe_format": RefusedError,
    "unsafe_model": RefusedError,
    "untrusted_types": RefusedError,
    "format_answers_nothing": UsageError,
}
"""Codes that say something of the policy or this host; every other one says that these bytes do not restore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdLoad:
    """What a fresh process said after it loaded the files and answered the requests."""

    load_ms: int
    import_ms: int
    peak_rss_bytes: int
    answers: tuple[tuple[dict[str, Any], ...], ...]
    state_sha256: str = ""
    """Digest of the loaded state; empty when the loader tells none."""
    libraries: tuple[tuple[str, str], ...] = ()
    """Distribution and version of what loaded it."""
    scan: tuple[str, ...] = ()
    """Findings of the advisory scan of a format that runs code."""


def cold_load(
    *,
    folder: Path,
    format: str,
    requests: Sequence[dict[str, Any]],
    policy: CheckpointPolicy,
    clock: Clock,
    names: Sequence[str] = (),
) -> ColdLoad:
    """Load the files in a fresh process and answer the requests; `names` says where each request is written.

    Raises `RefusedError` `unsafe_format` before anything is started when the policy does not allow the format;
    `IntegrityError` `load_failed` (with what the loader said) or `load_too_slow` (R16: the process group is killed at
    twice the limit, whatever it does); `RefusedError`, `ConfigError` and `UsageError` for what is no fault of the bytes.
    A load that a signal ended is repeated once. Raises `DependencyError` `load_not_started` when nothing could be started.
    """
    found = loaders.get_format(format)
    loaders.refuse_unsafe(found, policy.unsafe_formats)
    order: dict[str, Any] = {
        "path": str(folder.resolve()),
        "format": format,
        "trusted_types": list(policy.trusted_types),
        "requests": list(requests),
    }
    limit_s = 2 * policy.max_load_s
    if found.runs_code:
        order["sandbox"] = {"memory_bytes": policy.sandbox_memory_bytes, "cpu_s": limit_s}
    if found.tells_state:
        limit_s += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // _HASHED_BYTES_S
    said = json.dumps(order).encode("utf-8")
    try:
        return _load_once(said, limit_s, clock, found.runs_code, len(requests), names)
    except _KilledError:  # by whoever ended it, such as a kernel without memory; what these bytes do, they do again
        return _load_once(said, limit_s, clock, found.runs_code, len(requests), names)


class _KilledError(IntegrityError):
    """The load process was ended by a signal before it answered."""


def _load_once(order: bytes, limit_s: int, clock: Clock, runs_code: bool, asked: int, names: Sequence[str]) -> ColdLoad:
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="rearguard-load-"))
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rearguard.loaders.probe", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={} if runs_code else None,
                cwd=scratch if runs_code else None,
            )
        except OSError as error:
            message = f"no process could be started to load the model: {error.strerror}"
            raise DependencyError("load_not_started", message, "look for memory, processes, files and /tmp") from error
        try:
            out, err = _converse(process, order, limit_s, clock)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
    return _read_answer(out, err, process.returncode, asked, names)


def request_name(names: Sequence[str], number: int) -> str:
    """Where the request (counted from 1) is written, if that is known."""
    return names[number - 1] if 0 < number <= len(names) else f"golden request {number}"


def _converse(process: subprocess.Popen[bytes], order: bytes, limit_s: int, clock: Clock) -> tuple[bytes, bytes]:
    """Everything that the process wrote until it closed its output, its errors' end only."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    began_ns = clock.now().mono_ns
    out, err, rest = bytearray(), bytearray(), memoryview(order)
    with selectors.DefaultSelector() as waiting:
        os.set_blocking(process.stdin.fileno(), False)
        waiting.register(process.stdin, selectors.EVENT_WRITE)
        waiting.register(process.stdout, selectors.EVENT_READ)
        waiting.register(process.stderr, selectors.EVENT_READ)
        while waiting.get_map():
            left_s = limit_s - (clock.now().mono_ns - began_ns) / NS_PER_S
            ready = waiting.select(max(0.0, left_s))
            if not ready:
                raise IntegrityError(
                    "load_too_slow",
                    f"the model did not load within {limit_s} s",
                    "serve a smaller model, or raise checkpoints.max_load with the RTO in mind",
                )
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest[:65_536]) :]
                    except BrokenPipeError:
                        rest = rest[len(rest) :]
                    if not rest:
                        waiting.unregister(process.stdin)
                        process.stdin.close()
                    continue
                piece = os.read(key.fd, 1 << 20)
                if not piece:
                    waiting.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    out += piece
                    if len(out) > MAX_ANSWER_BYTES:
                        raise IntegrityError("load_failed", f"the load answered more than {MAX_ANSWER_BYTES} bytes", "")
                else:
                    err = (err + piece)[-_MAX_SAID_BYTES:]
    return bytes(out), bytes(err)


def _read_answer(out: bytes, err: bytes, status: int, asked: int, names: Sequence[str]) -> ColdLoad:
    try:
        said = json.loads(out)
        if not isinstance(said, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        tail = plain(err.decode("utf-8", "replace").strip()[-400:])
        killed = status < 0
        raise (_KilledError if killed else IntegrityError)(
            "load_failed",
            f"the load process {'was killed by signal' if killed else 'ended with'} {abs(status)}: {tail}",
            "look whether memory ran out" if killed else "what it said last is in the message",
        ) from error
    if said.get("ok") is not True:
        raise _failure(said, names)
    try:
        return _cold_load(said, asked)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            "load_failed", f"the load process answered something else: {plain(str(error))[:200]}", ""
        ) from error


def _failure(said: dict[str, Any], names: Sequence[str]) -> RearguardError:
    code, number = said.get("code"), said.get("request")
    code = code if isinstance(code, str) and _CODE.fullmatch(code) else "load_failed"
    message = plain(str(said.get("message"))[:1000])
    if type(number) is int:
        message = f"{request_name(names, number)}: {message}"
    return _REFUSALS.get(code, IntegrityError)(code, message, plain(str(said.get("hint") or "")[:500]))


def _cold_load(said: dict[str, Any], asked: int) -> ColdLoad:
    times = [said[key] for key in ("load_ms", "import_ms", "peak_rss_bytes")]
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in times):
        raise ValueError("times")
    answers = tuple(tuple(a["outputs"]) for a in said["answers"])
    if len(answers) != asked or not all(isinstance(o, dict) for outputs in answers for o in outputs):
        raise ValueError("answers")
    state, libraries, scan = said["state_sha256"], said["libraries"], said["scan"]
    if state and not _SHA256.fullmatch(state):
        raise ValueError("state_sha256")
    return ColdLoad(
        load_ms=times[0],
        import_ms=times[1],
        peak_rss_bytes=times[2],
        answers=answers,
        state_sha256=state,
        libraries=tuple(sorted((plain(str(k)[:100]), plain(str(v)[:50])) for k, v in dict(libraries).items()))[:20],
        scan=tuple(plain(str(line)[:200]) for line in list(scan)[:20]),
    )


def plain(text: str) -> str:
    """`text` without what could steer a terminal or turn a line around."""
    return _UNPRINTABLE.sub("?", text)
