"""The proof that a checkpoint restores: every byte, a cold load in a fresh process, and its golden predictions.

Nothing here writes to the database; the outcome is a value that the officer records (R10).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.checkpoints import golden, hashing
from rearguard.checkpoints.store import ContentStore
from rearguard.errors import ConflictError, IntegrityError, RearguardError
from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.model.time import NS_PER_MS
from rearguard.ports import Clock
from rearguard.rules.golden import GoldenSet, difference


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdLoad:
    """What a fresh process said after it loaded the files and answered the requests."""

    load_ms: int
    import_ms: int
    peak_rss_bytes: int
    answers: tuple[tuple[dict[str, Any], ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Outcome of one verification."""

    ok: bool
    code: str
    """Empty when ok; otherwise `blob_*`, `view_altered`, `load_failed`, `load_too_slow`, `golden_differs`."""
    message: str
    load_ms: int | None
    peak_rss_bytes: int | None
    receipt: str
    """Stat receipt of the descriptors that were read, so that a later write shows; empty when not ok."""
    hash_mode: str = ""
    """`buffered` or `direct`: how every byte was read; empty when not every byte was."""
    hash_ms: int | None = None
    """How long that took, monotonic; None when not every byte was read."""
    reproducible: str = ""
    """`bitwise` when this load answered exactly as registered, else `tolerance`; empty when not ok."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesChecked:
    """Every stored byte of a checkpoint is what was registered, golden set included. No proof that it loads."""

    receipt: str
    size_bytes: int
    hash_mode: str
    hash_ms: int


def check_bytes(
    checkpoint: Checkpoint, store: ContentStore, clock: Clock, reading: hashing.Reading = hashing.AT_ONCE
) -> BytesChecked:
    """Hash every byte, load nothing (R12, R13). Raises `IntegrityError` and `ConflictError` as `hashing.prove`."""
    store.get_bytes(checkpoint.golden_sha256)
    began_ns = clock.now().mono_ns
    proof = hashing.prove(store.blobs_of(checkpoint.files), reading, is_known=store.holds)
    return BytesChecked(
        receipt=proof.receipt,
        size_bytes=proof.size_bytes,
        hash_mode=proof.mode.value,
        hash_ms=(clock.now().mono_ns - began_ns) // NS_PER_MS,
    )


def cold_load(
    *,
    folder: Path,
    format: str,
    requests: Sequence[dict[str, Any]],
    policy: CheckpointPolicy,
    names: Sequence[str] = (),
) -> ColdLoad:
    """Load the files in a fresh process and answer the requests; `names` says where each request is written.

    Raises `IntegrityError` `load_failed` (with what the loader said) or `load_too_slow` (R16: the load must end
    strictly below the limit; the process group is killed at twice the limit, whatever it does).
    """
    order = {
        "path": str(folder),
        "format": format,
        "trusted_types": list(policy.trusted_types),
        "requests": list(requests),
    }
    timeout_s = 2 * policy.max_load_s
    process = subprocess.Popen(
        [sys.executable, "-m", "rearguard.loaders.probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(json.dumps(order).encode("utf-8"), timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise IntegrityError(
            "load_too_slow",
            f"the model did not load within {timeout_s} s",
            "serve a smaller model, or raise checkpoints.max_load with the RTO in mind",
        ) from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    try:
        said = json.loads(out)
    except ValueError as error:
        tail = err.decode("utf-8", "replace").strip()[-400:]
        killed = process.returncode < 0
        raise IntegrityError(
            "load_failed",
            f"the load process {'was killed by signal' if killed else 'ended with'} {abs(process.returncode)}: {tail}",
            "look whether memory ran out" if killed else "what it said last is in the message",
        ) from error
    if not said.get("ok"):
        number, message = said.get("request"), str(said.get("message"))
        raise IntegrityError(
            str(said.get("code") or "load_failed"),
            message if number is None else f"{_name(names, number)}: {message}",
            str(said.get("hint") or ""),
        )
    answers = tuple(tuple(a["outputs"]) for a in said["answers"])
    return ColdLoad(
        load_ms=said["load_ms"], import_ms=said["import_ms"], peak_rss_bytes=said["peak_rss_bytes"], answers=answers
    )


def _name(names: Sequence[str], number: int) -> str:
    """Where the request (counted from 1) is written, if that is known."""
    return names[number - 1] if number <= len(names) else f"golden request {number}"


def record_golden(
    *,
    folder: Path,
    format: str,
    requests: Sequence[dict[str, Any]],
    policy: CheckpointPolicy,
    names: Sequence[str] = (),
) -> GoldenSet:
    """Ask two fresh processes for the answers; they must agree within the tolerance (R17).

    Raises `IntegrityError` `not_reproducible`, or as `cold_load` does.
    """
    first = cold_load(folder=folder, format=format, requests=requests, policy=policy, names=names)
    second = cold_load(folder=folder, format=format, requests=requests, policy=policy, names=names)
    for index, (a, b) in enumerate(zip(first.answers, second.answers, strict=True)):
        why = difference(a, b, policy.golden)
        if why:
            raise IntegrityError(
                "not_reproducible",
                f"two cold loads answer {_name(names, index + 1)} differently: {why}",
                "fix the model's seed, or widen checkpoints.golden",
            )
    return GoldenSet(requests=tuple(requests), answers=first.answers)


def failed(error: RearguardError, hashed: BytesChecked | None = None) -> Verification:
    """The outcome of a verification that ended with this error; `hashed` when every byte had been read by then."""
    return Verification(
        ok=False,
        code=error.code,
        message=error.message,
        load_ms=None,
        peak_rss_bytes=None,
        receipt="",
        hash_mode=hashed.hash_mode if hashed else "",
        hash_ms=hashed.hash_ms if hashed else None,
    )


def verify(
    checkpoint: Checkpoint,
    store: ContentStore,
    policy: CheckpointPolicy,
    clock: Clock,
    reading: hashing.Reading = hashing.AT_ONCE,
    *,
    view_must_stand: bool = True,
) -> Verification:
    """Hash every byte, load in a fresh process, repeat the golden predictions (R10, R12, R13, R16, R17).

    A view that is not the links of the manifest is built anew, and with `view_must_stand` that alone fails this
    verification: somebody has been there. Nothing is loaded unless every byte is what was registered.
    Raises `ConflictError` `hash_stopped` when the reading was stopped: that is no outcome.
    """
    hashed: BytesChecked | None = None
    try:
        hashed = check_bytes(checkpoint, store, clock, reading)
        if reading.stop is not None and reading.stop.is_set():
            raise ConflictError("hash_stopped", "the verification was stopped before its load", "run it again")
        folder = _settled_view(checkpoint, store, view_must_stand)
        recorded = golden.decode(store.get_bytes(checkpoint.golden_sha256))
        loaded = cold_load(folder=folder, format=checkpoint.format, requests=recorded.requests, policy=policy)
        for index, (a, b) in enumerate(zip(recorded.answers, loaded.answers, strict=True)):
            why = difference(a, b, policy.golden)
            if why:
                raise IntegrityError("golden_differs", f"golden request {index + 1}: {why}", "")
        if loaded.load_ms >= policy.max_load_s * 1000:
            raise IntegrityError(
                "load_too_slow", f"cold load took {loaded.load_ms} ms, the limit is {policy.max_load_s} s (R16)", ""
            )
    except ConflictError:
        raise
    except RearguardError as error:
        return failed(error, hashed)
    return Verification(
        ok=True,
        code="",
        message="",
        load_ms=loaded.load_ms,
        peak_rss_bytes=loaded.peak_rss_bytes,
        receipt=hashed.receipt,
        hash_mode=hashed.hash_mode,
        hash_ms=hashed.hash_ms,
        reproducible="bitwise" if loaded.answers == recorded.answers else "tolerance",
    )


def _settled_view(checkpoint: Checkpoint, store: ContentStore, must_stand: bool) -> Path:
    """The checkpoint's view, built anew when it was altered."""
    altered = store.view_is_altered(checkpoint.digest, checkpoint.files)
    folder = store.view(checkpoint.digest, checkpoint.files)
    if altered and must_stand:
        raise IntegrityError(
            "view_altered",
            f"the view {folder.name[:12]} was not the links of its files; it has been built anew",
            "find out who writes into the store, then `rearguard checkpoint verify` again",
        )
    return folder
