"""Instants and the spans between them.

Durations come from the monotonic clock of one boot; the wall clock only labels (requirements section 10.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """One moment as two clocks saw it."""

    wall_ns: int
    """Nanoseconds since the Unix epoch, UTC. A label, never subtracted while `boot_id` is equal."""
    mono_ns: int
    """CLOCK_MONOTONIC nanoseconds: shared by all processes of one boot."""
    boot_id: str
    """The kernel's boot id; monotonic stamps of different boots do not subtract."""

    def rfc3339(self) -> str:
        """The wall clock as RFC 3339 in UTC with seconds (R56), truncated."""
        return rfc3339(self.wall_ns)

    def rfc3339_ms(self) -> str:
        """The wall clock as RFC 3339 in UTC with milliseconds, truncated."""
        return rfc3339_ms(self.wall_ns)

    def plus(self, ns: int) -> Instant:
        """The instant `ns` nanoseconds later on both clocks."""
        return Instant(wall_ns=self.wall_ns + ns, mono_ns=self.mono_ns + ns, boot_id=self.boot_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elapsed:
    """A span in nanoseconds and the clock it was taken from: `monotonic`, or `wall` across boots."""

    ns: int
    basis: str


def elapsed(start: Instant, end: Instant) -> Elapsed:
    """The span from `start` to `end`; monotonic when both are of one boot, else wall."""
    if start.boot_id == end.boot_id:
        return Elapsed(ns=end.mono_ns - start.mono_ns, basis="monotonic")
    return Elapsed(ns=end.wall_ns - start.wall_ns, basis="wall")


def rfc3339(wall_ns: int) -> str:
    """`2026-11-23T09:14:03Z` for nanoseconds since the epoch, truncated to seconds (R56)."""
    return (_EPOCH + timedelta(seconds=wall_ns // NS_PER_S)).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_ms(wall_ns: int) -> str:
    """`2026-11-23T09:14:03.125Z`, truncated to milliseconds."""
    ms = wall_ns // NS_PER_MS
    return (_EPOCH + timedelta(seconds=ms // 1000)).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"


def parse_rfc3339(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 instant with an offset; ValueError otherwise."""
    stamp = datetime.fromisoformat(text)
    if stamp.tzinfo is None:
        raise ValueError(f"no UTC offset in {text!r}")
    delta = stamp - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * NS_PER_S + delta.microseconds * 1000
