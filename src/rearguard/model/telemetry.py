"""What telemetry says: single observations, and counts of one second for one digest."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from rearguard.model.service import Digest, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSeen:
    """One answered (or failed) request, at the instant of its completion."""

    place: Place
    digest: Digest
    at_mono_ns: int
    """Completion on this host's monotonic clock."""
    at_wall_ns: int
    latency_ms: Decimal | None
    """None when the source has no latency for it (R23: parsed from text)."""
    failed: bool
    """True for a server-side failure (HTTP 5xx, timeout, no answer). A client's own mistake (4xx) is not one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSeen:
    """One labelled sample: how right the answer was, 0 to 100."""

    place: Place
    digest: Digest
    at_mono_ns: int
    at_wall_ns: int
    score: Decimal


Observation = RequestSeen | ScoreSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondCounts:
    """Counts of one second of the monotonic clock, for one digest at one place.

    The instants of the first bad observation let a rule name t0 without keeping requests.
    """

    second: int
    """`at_mono_ns // 10**9`."""
    requests: int = 0
    failures: int = 0
    timed: int = 0
    """Requests that carry a latency."""
    over_latency: int = 0
    """Timed requests whose latency is strictly above target + margin."""
    first_failure_ns: int | None = None
    first_over_latency_ns: int | None = None
    scores: int = 0
    score_sum: Decimal = Decimal(0)
    first_low_score_ns: int | None = None
    """First score strictly below the frozen baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHealth:
    """What a source knows of itself."""

    accepted: int
    rejected: int
    """Lines that could not be understood; counted, never guessed."""
    last_at_mono_ns: int | None
    """Instant of the newest accepted observation, or None before the first."""
    last_rejection: str
    """Why the newest rejected line was rejected, or empty."""
    late: int = 0
    """Observations that were left out because their second may have been counted with them already, or is forgotten."""
    elsewhere: int = 0
    """Observations of other services or environments. A source with nothing else may have a misspelt name in it."""
