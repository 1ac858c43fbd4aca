"""What the product needs from outside, as small Protocols stated in promises.

Foreign exceptions stop here: an adapter wraps them into `rearguard.errors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rearguard.model.model_format import ModelFormat as ModelFormat
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import Observation, SourceHealth
from rearguard.model.time import Instant


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> Instant:
        """Both clocks, read together."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        ...


class IdSource(Protocol):
    """Where identifiers come from."""

    def run_id(self) -> str:
        """A new `run_` id, letters and digits only (R51)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An order to a target: serve this checkpoint."""

    digest: Digest
    version: str
    format: str
    """Loader name: `onnx` or `sklearn-skops`."""
    path: str
    """Absolute folder that holds the checkpoint's files, read-only for the target."""
    trusted_types: tuple[str, ...]
    epoch: int
    """Monotone per place; a target that can compare refuses a lower one."""
    key: str
    """Idempotency key: a second order with the same key changes nothing."""
    timeout_s: float
    warmup: dict[str, Any] | None = None
    """A golden request that a fresh process answers before it counts as ready; None: the target finds one itself."""
    sandbox_memory_bytes: int | None = None
    """Of a format that runs code when it is loaded: the address space of the sandbox that it may be loaded in. None: a
    target loads no such format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """What the data plane answered to one golden request."""

    digest: Digest | None
    """Digest that really answered; None when the target cannot tell."""
    response: dict[str, Any]
    """The Open Inference Protocol response, with `outputs`."""
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated:
    """What a target told of an order that it has carried out."""

    warm: bool | None
    """True when no load was needed: the checkpoint stood ready. None: the target does not tell."""


class Target(Protocol):
    """What serves a checkpoint and can be told to serve another.

    Raises `TransientTargetError` when it does not answer or answers 5xx (retry may help), `RefusedError`
    (`target_epoch_stale`) when the epoch is lower than one it has seen, `DependencyError` when it answers that it
    will not. Methods may be called from several threads.
    """

    def activate(self, order: Activation) -> Activated | None:
        """Serve `order.digest`. Returns once new requests are answered by it. Idempotent by `order.key`.

        None says as much as `Activated(warm=None)`.
        """
        ...

    def active(self) -> Digest | None:
        """The digest that answers now; None when nothing is served."""
        ...

    def probe(self, request: dict[str, Any], timeout_s: float) -> ProbeAnswer:
        """Send one Open Inference Protocol request through the data plane, as a client would.

        The request's `id` is set to start with `rearguard-probe`, so that telemetry can leave it out of the counts.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """A checkpoint that a target holds loaded beside the active one."""

    digest: Digest
    ready: bool
    """True when its process is up and has answered an inference."""
    reason: str = ""
    """Why it is not ready."""
    rss_bytes: int | None = None
    """Resident memory now; None where the target does not tell."""


@runtime_checkable
class WarmTarget(Target, Protocol):
    """A target that can hold a checkpoint loaded beside the active one, so that a switch to it needs no load. Optional."""

    def prepare(self, order: Activation, memory_bytes: int | None) -> None:
        """Load `order.digest` beside the active one and have it answer an inference; traffic does not move.

        Returns once it stands. Idempotent; an order whose digest is active or stands already changes nothing.
        `memory_bytes` is what the load may need at most; the target refuses when it has not so much.
        Raises as `activate` does, `RefusedError` with the code of a target that will not (`standby_no_memory`,
        `standby_no_slot`, `standby_unproven`), and `DependencyError` `standby_unsupported`: what answers cannot hold one.
        """
        ...

    def unload(self, digest: Digest) -> None:
        """Let go of a checkpoint that is loaded beside the active one; nothing when it is not.

        Raises as `active` does, `RefusedError` when it is active, or the last one that answers (`last_healthy`), and
        `DependencyError` `standby_unsupported`.
        """
        ...

    def standbys(self) -> tuple[Standby, ...]:
        """What is loaded beside the active one. Raises as `active` does, and `DependencyError` `standby_unsupported`."""
        ...


class TelemetrySource(Protocol):
    """Where observations come from. One object serves one place; it is used by one thread at a time."""

    def poll(self, now: Instant) -> Sequence[Observation]:
        """New observations since the last poll, in the order they were read; empty when there are none.

        Never blocks for longer than a file read. Raises `DependencyError` when the source is not reachable; a
        missing log file is not an error (it may not have been written yet).
        """
        ...

    def health(self) -> SourceHealth:
        """What was accepted and what was not."""
        ...

    def close(self) -> None:
        """Let go of files and sockets."""
        ...


@runtime_checkable
class ResumableSource(TelemetrySource, Protocol):
    """A source that can go on exactly where an earlier process of it stopped.

    Optional. A source without it is built with a later `since` after a restart: what it says late of the seconds before
    is then lost.
    """

    def position(self) -> dict[str, Any]:
        """Where it is after the last poll, as JSON that only this adapter understands. Raises `DependencyError`."""
        ...

    def resume(self, position: dict[str, Any], counted_to: Instant) -> None:
        """Before the first poll: go on at a saved position, whatever the age of what is there.

        What cannot be found there any more is read from `counted_to` on: everything before it may have been handed
        out already. What is left out for that reason counts as `late` in the health.
        """
        ...


class CheckpointCopy(Protocol):
    """A second place that keeps the bytes of checkpoints, apart from the store: blobs by their sha256.

    Used by one thread at a time. Every method raises `DependencyError` `mirror_unavailable` when the place is not there, is
    read-only or does not answer, and those that write `mirror_full`; nothing is then half-written. Content is never
    believed: `put` takes only what has the digest, `open` gives what is there, `verify` reads it.
    """

    def prepare(self, *, known: bool, anew: bool) -> None:
        """Make sure that this is the place meant, before anything else is called. Idempotent.

        `known` says that it was ours before: one that does not know it any more is refused, `mirror_unavailable` (a
        mount point without its disk would fill another disk), unless `anew` says that somebody put an empty one there.
        Raises `RefusedError` `mirror_foreign` for the copy of another store, `mirror_not_empty` for one of something else.
        """
        ...

    def domain(self) -> str:
        """Name of the storage under it (R18); empty when it cannot be found out."""
        ...

    def list(self) -> Iterable[str]:
        """The sha256 of every blob that stands there, whatever its bytes."""
        ...

    def put(self, sha256: str, chunks: Iterable[bytes]) -> None:
        """Keep a blob; durable once it returns. What stood there under this name is replaced.

        Raises `IntegrityError` `blob_altered` when the chunks are not what the name says: nothing is kept of them.
        """
        ...

    def open(self, sha256: str) -> Iterator[bytes]:
        """The bytes that stand there, in pieces, not proven. Raises `IntegrityError` `blob_missing`, `blob_unreadable`."""
        ...

    def verify(self, sha256: str, size_bytes: int) -> None:
        """Read every byte back from the storage itself. Raises `IntegrityError` `blob_*` as a verification does."""
        ...

    def remove(self, sha256: str) -> None:
        """Keep a blob no longer; one that is not there is as good as removed."""
        ...

    def publish(self, name: str, content: bytes) -> None:
        """Put a small named file beside the blobs, replaced as a whole."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to people."""

    key: str
    """Written once per key: a second post of it changes nothing."""
    title: str
    fields: dict[str, str]
    cause: str = ""
    """What it is about (an incident, a run, a place's grey zone). At most one message of a cause is open: a newer one
    supersedes an older one that is not delivered yet. Empty: the key."""
    severity: str = "info"
    """`page`: somebody must look now; `info`: good to know."""
    action: str = "open"
    """`open`, `update` or `resolve`, for receivers that group by cause."""


class Channel(Protocol):
    """Where messages go."""

    def deliver(self, message: Message) -> None:
        """Deliver, or raise `DependencyError`. A second delivery of the same key may happen."""
        ...


class TargetFactory(Protocol):
    """Entry point `rearguard.targets`: builds a target from validated options."""

    def __call__(self, place: Place, options: dict[str, object]) -> Target: ...


class TelemetryFactory(Protocol):
    """Entry point `rearguard.telemetry`: builds a source from validated options.

    `since` bounds how far back it reads at first: observations older than it are not wanted.
    """

    def __call__(self, place: Place, options: dict[str, object], since: Instant) -> TelemetrySource: ...
