"""The grey zone: a literal limit is exceeded, and the rule has not decided yet (R27's persistence, or its window's end).

People are told at once that a decision may be coming. Each second the trailing window, at most `MAX_WINDOW_S`, is
compared with the same limits as the literal rule's (R20-R23). Whether an incident is open already, and what follows from
an entry, is left to others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum

from rearguard.errors import InternalError
from rearguard.model.breach import Limits, LiteralPolicy, Trigger
from rearguard.model.service import Digest
from rearguard.model.telemetry import SecondCounts
from rearguard.rules.breach.window import EXACT, WindowCounts, compliance_dropped, errors_over, p95_over, total

MAX_WINDOW_S = 60
"""A page goes out within a minute also where the rule's own window is longer. Chosen: the default window (R27)."""
QUIET_S = 900
"""Not entered again sooner than this for the same digest and trigger. Chosen: a signal about its limit pages four times an
hour, not every minute."""

_P95_SHARE = Decimal("0.05")


class Move(Enum):
    """What became of the grey zone of one trigger."""

    ENTERED = "entered"
    LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """What is remembered of one trigger. Seconds of the monotonic clock; negative ones were before this boot."""

    inside: bool = False
    entered_s: int | None = None
    """The newest entry."""
    over_s: int | None = None
    """End of the newest window that was over its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyState:
    """What is remembered of one digest between two looks."""

    digest: Digest
    looked_s: int | None = None
    """End of the newest window that was looked at."""
    compliance: Zone = Zone()
    latency: Zone = Zone()
    errors: Zone = Zone()

    def zone(self, trigger: Trigger) -> Zone:
        """Of one trigger."""
        found: Zone = getattr(self, trigger.value)
        return found

    @property
    def inside(self) -> tuple[Trigger, ...]:
        """The triggers whose grey zone was entered and not left."""
        return tuple(trigger for trigger in Trigger if self.zone(trigger).inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look saw of one trigger."""

    trigger: Trigger
    samples: int
    exceedances: int
    observed: Decimal | None
    limit: Decimal | None
    over: bool | None
    """None: nothing to compare, or too few samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A grey zone was entered or left."""

    move: Move
    finding: Finding
    window_start_s: int
    window_end_s: int
    """Half-open window of monotonic seconds [start, end)."""


def window_s(policy: LiteralPolicy) -> int:
    """Length of the trailing window."""
    return min(policy.window_s, MAX_WINDOW_S)


def look(
    state: GreyState, policy: LiteralPolicy, limits: Limits, seconds: tuple[SecondCounts, ...], now_s: int
) -> tuple[GreyState, tuple[Change, ...]]:
    """Look at the window that ends at `now_s`; a window that was looked at is not looked at again.

    `seconds` hold each second of the trailing window at most once and only once complete. Entered: over the limit, with the
    policy's minimum of samples. Left: in limit over one whole window that began after the last one that was over; a lack of
    samples leaves nothing, but a trigger that was switched off does.

    Law: between two entries of one digest and trigger lie at least `QUIET_S`.
    """
    if state.looked_s is not None and now_s <= state.looked_s:
        return state, ()
    length_s = window_s(policy)
    start_s = now_s - length_s
    counts = total(second for second in seconds if start_s <= second.second < now_s)
    after = replace(state, looked_s=now_s)
    changes = []
    for trigger in Trigger:
        finding, off = _find(trigger, counts, limits, policy.min_samples)
        zone, move = _move(after.zone(trigger), finding.over, off, now_s, length_s)
        after = with_zone(after, trigger, zone)
        if move is not None:
            changes.append(Change(move=move, finding=finding, window_start_s=start_s, window_end_s=now_s))
    return after, tuple(changes)


def leave(state: GreyState) -> GreyState:
    """Every zone left: an incident was opened, or another digest answers. When it was entered stays known."""
    for trigger in state.inside:
        state = with_zone(state, trigger, replace(state.zone(trigger), inside=False, over_s=None))
    return state


def with_zone(state: GreyState, trigger: Trigger, zone: Zone) -> GreyState:
    """The same state with another zone of one trigger."""
    match trigger:
        case Trigger.COMPLIANCE:
            return replace(state, compliance=zone)
        case Trigger.LATENCY:
            return replace(state, latency=zone)
        case Trigger.ERRORS:
            return replace(state, errors=zone)
    raise InternalError("trigger_unknown", f"no grey zone of {trigger}")


def _move(zone: Zone, over: bool | None, off: bool, now_s: int, length_s: int) -> tuple[Zone, Move | None]:
    if over:
        zone = replace(zone, over_s=now_s)
        quiet = zone.entered_s is not None and now_s - zone.entered_s < QUIET_S
        if zone.inside or quiet:
            return zone, None
        return replace(zone, inside=True, entered_s=now_s), Move.ENTERED
    whole_window = over is False and (zone.over_s is None or now_s - zone.over_s >= length_s)
    if zone.inside and (off or whole_window):
        return replace(zone, inside=False, over_s=None), Move.LEFT
    return zone, None


def _find(trigger: Trigger, counts: WindowCounts, limits: Limits, min_samples: int) -> tuple[Finding, bool]:
    """What the window says of a trigger, and whether the trigger is switched off.

    A limit that is no finite number compares with nothing: it is neither over nor in limit.
    """
    samples, exceedances, over, off = 0, 0, None, True
    observed: Decimal | None = None
    limit: Decimal | None = None
    match trigger:
        case Trigger.COMPLIANCE:
            off = limits.compliance_drop_points is None
            baseline, drop = _finite(limits.compliance_baseline), _finite(limits.compliance_drop_points)
            samples = counts.scores
            observed = counts.score_sum / samples if samples else None
            if baseline is not None and drop is not None:
                limit = EXACT.subtract(baseline, drop)
                over = compliance_dropped(counts.score_sum, samples, baseline, drop)
        case Trigger.LATENCY:
            off = limits.latency_limit_ms is None
            samples, exceedances = counts.timed, counts.over_latency
            observed = _ratio(exceedances, samples)
            if _finite(limits.latency_limit_ms) is not None:
                limit, over = _P95_SHARE, p95_over(exceedances, samples)
        case Trigger.ERRORS:
            off = limits.error_limit_ratio is None
            samples, exceedances = counts.requests, counts.failures
            observed = _ratio(exceedances, samples)
            limit = _finite(limits.error_limit_ratio)
            over = None if limit is None else errors_over(exceedances, samples, limit)
    if samples < max(1, min_samples):
        over = None
    finding = Finding(
        trigger=trigger, samples=samples, exceedances=exceedances, observed=observed, limit=limit, over=over
    )
    return finding, off


def _finite(value: Decimal | None) -> Decimal | None:
    return value if value is not None and value.is_finite() else None


def _ratio(part: int, whole: int) -> Decimal | None:
    return Decimal(part) / whole if whole else None
