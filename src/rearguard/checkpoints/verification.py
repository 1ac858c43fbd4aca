"""The proof that a checkpoint restores: every byte, a cold load in a fresh process, its state and golden predictions.

Nothing here writes to the database; the outcome is a value that the officer records (R10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.checkpoints import golden, hashing
from rearguard.checkpoints.load_probe import ColdLoad, cold_load, request_name
from rearguard.checkpoints.store import ContentStore
from rearguard.errors import ConflictError, DependencyError, IntegrityError, RearguardError
from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.model.time import NS_PER_MS
from rearguard.ports import Clock
from rearguard.rules.golden import GoldenSet, difference

VIEW_ALTERED = "view_altered"
BITWISE, TOLERANCE = "bitwise", "tolerance"
"""How two cold loads agreed (R17): to the last bit, or within `checkpoints.golden`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Outcome of one verification."""

    ok: bool
    code: str
    """Empty when ok; otherwise `blob_*`, `view_altered`, `load_failed`, `golden_malformed`, `golden_differs` ..."""
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
    """`bitwise` when this load answered and was exactly as registered, else `tolerance`; empty when not ok."""
    state_sha256: str = ""
    """Digest of the state that was loaded; empty when the loader tells none, or when not ok."""
    libraries: tuple[tuple[str, str], ...] = ()
    """Distribution and version of what loaded it."""
    scan: tuple[str, ...] = ()
    """Findings of the advisory scan of a format that runs code."""


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
    if checkpoint.golden_sha256:
        store.get_bytes(checkpoint.golden_sha256)
    began_ns = clock.now().mono_ns
    proof = hashing.prove(store.blobs_of(checkpoint.files), reading, is_known=store.holds)
    return BytesChecked(
        receipt=proof.receipt,
        size_bytes=proof.size_bytes,
        hash_mode=proof.mode.value,
        hash_ms=(clock.now().mono_ns - began_ns) // NS_PER_MS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What two cold loads agreed on: the yardstick of every later verification."""

    golden: GoldenSet | None
    """None when there was no request."""
    state_sha256: str
    """Empty when the loader tells none."""
    reproducible: str
    """`bitwise` or `tolerance`."""
    load: ColdLoad
    """The slower of the two."""


def record(
    *,
    folder: Path,
    format: str,
    requests: Sequence[dict[str, Any]],
    policy: CheckpointPolicy,
    clock: Clock,
    names: Sequence[str] = (),
) -> Recorded:
    """Ask two fresh processes for the state and the answers; they must agree (R17).

    A state agrees when its digests are equal, answers when they are within the tolerance.
    Raises `IntegrityError`: `not_reproducible`; `unproven` when there is neither a state nor an answer to compare; or as
    `cold_load` does.
    """
    first = cold_load(folder=folder, format=format, requests=requests, policy=policy, clock=clock, names=names)
    second = cold_load(folder=folder, format=format, requests=requests, policy=policy, clock=clock, names=names)
    if not requests and not first.state_sha256:
        raise IntegrityError(
            "unproven",
            f"{format} tells no state and there is no request to repeat",
            "give golden requests: --golden FILE",
        )
    if first.state_sha256 != second.state_sha256:
        raise IntegrityError(
            "not_reproducible",
            f"two cold loads hold different states: {_short(first.state_sha256)} and {_short(second.state_sha256)}",
            "make loading free of chance: no seed, no training, no download while it loads",
        )
    for index, (a, b) in enumerate(zip(first.answers, second.answers, strict=True)):
        why = difference(a, b, policy.golden)
        if why:
            raise IntegrityError(
                "not_reproducible",
                f"two cold loads answer {request_name(names, index + 1)} differently: {why}",
                "fix the model's seed, or widen checkpoints.golden",
            )
    return Recorded(
        golden=GoldenSet(requests=tuple(requests), answers=first.answers) if requests else None,
        state_sha256=first.state_sha256,
        reproducible=BITWISE if first.answers == second.answers else TOLERANCE,
        load=max(first, second, key=lambda load: load.load_ms),
    )


def _short(state_sha256: str) -> str:
    return state_sha256[:12] or "none told"


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
    """Hash every byte, load in a fresh process, compare the state, repeat the golden predictions (R10, R12, R13, R16, R17).

    A view that is not the links of the manifest is built anew, and with `view_must_stand` that alone fails this
    verification: somebody has been there. Nothing is loaded unless every byte is what was registered.
    Raises `ConflictError` when the reading was stopped (`hash_stopped`) or found no rest (`blob_changing`), and
    `DependencyError` when the surroundings fail (`store_not_written`, `load_not_started`): those are no outcomes.
    """
    hashed: BytesChecked | None = None
    try:
        hashed = check_bytes(checkpoint, store, clock, reading)
        if reading.stop is not None and reading.stop.is_set():
            raise ConflictError("hash_stopped", "the verification was stopped before its load", "run it again")
        folder = _settled_view(checkpoint, store, view_must_stand)
        loaded, reproducible = _load_again(checkpoint, store, folder, policy, clock)
        if loaded.load_ms >= policy.max_load_s * 1000:
            raise IntegrityError(
                "load_too_slow", f"cold load took {loaded.load_ms} ms, the limit is {policy.max_load_s} s (R16)", ""
            )
    except (ConflictError, DependencyError):
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
        reproducible=reproducible,
        state_sha256=loaded.state_sha256,
        libraries=loaded.libraries,
        scan=loaded.scan,
    )


def _load_again(
    checkpoint: Checkpoint, store: ContentStore, folder: Path, policy: CheckpointPolicy, clock: Clock
) -> tuple[ColdLoad, str]:
    """One cold load, compared with what was registered; two that are compared with each other when nothing was.

    Raises `IntegrityError` `state_differs`, `golden_differs`, or as `record` and `cold_load`.
    """
    if not checkpoint.golden_sha256 and not checkpoint.state_sha256:
        recorded = record(folder=folder, format=checkpoint.format, requests=(), policy=policy, clock=clock)
        return recorded.load, recorded.reproducible
    expected = golden.decode(store.get_bytes(checkpoint.golden_sha256)) if checkpoint.golden_sha256 else None
    requests = expected.requests if expected else ()
    loaded = cold_load(folder=folder, format=checkpoint.format, requests=requests, policy=policy, clock=clock)
    if checkpoint.state_sha256 and loaded.state_sha256 != checkpoint.state_sha256:
        raise IntegrityError(
            "state_differs",
            f"the loaded state is {_short(loaded.state_sha256)}, registered is {_short(checkpoint.state_sha256)}",
            "the bytes are right: look which library version loads them now",
        )
    answers = expected.answers if expected else ()
    for index, (a, b) in enumerate(zip(answers, loaded.answers, strict=True)):
        why = difference(a, b, policy.golden)
        if why:
            raise IntegrityError("golden_differs", f"golden request {index + 1}: {why}", "")
    return loaded, BITWISE if loaded.answers == answers else TOLERANCE


def _settled_view(checkpoint: Checkpoint, store: ContentStore, must_stand: bool) -> Path:
    """The checkpoint's view, built anew when it was altered."""
    altered = store.view_is_altered(checkpoint.digest, checkpoint.files)
    folder = store.view(checkpoint.digest, checkpoint.files)
    if altered and must_stand:
        raise IntegrityError(
            VIEW_ALTERED,
            f"the view {folder.name[:12]} was not the links of its files; it has been built anew",
            "find out who writes into the store, then `rearguard checkpoint verify` again",
        )
    return folder
