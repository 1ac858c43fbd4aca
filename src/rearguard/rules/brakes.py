"""May the officer act by itself now? Pure: the answer depends on the policy, on what was done before, and on one `now`.

Order of precedence: not armed, paused, a freeze window, the cool-down, the budget. The first three hold a rollback back
without blame: somebody wanted it so. The last two are refusals: something is wrong that a rollback did not mend (R29).
Cool-down and budget are spans and come from the monotonic clock of one boot; freeze windows are times of a calendar and
come from the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearguard.model.settings import BrakePolicy, FreezeWindow
from rearguard.model.time import NS_PER_S, Instant, elapsed

WEEK_NS = 7 * 86_400 * NS_PER_S
_EPOCH_IN_WEEK_NS = 3 * 86_400 * NS_PER_S
"""1970-01-01 was a Thursday: how far into its week, which began on Monday, the Unix epoch lies."""


class Brake(Enum):
    """What holds an automatic rollback back. The values are public codes."""

    OBSERVE = "observe"
    PAUSED = "automation_paused"
    FREEZE = "freeze_window"
    COOL_DOWN = "cool_down"
    BUDGET = "budget_spent"

    @property
    def refuses(self) -> bool:
        """True when the report must count it as a refused rollback; False: withheld, without blame."""
        return self in (Brake.COOL_DOWN, Brake.BUDGET)

    @property
    def words(self) -> str:
        """What people are told."""
        return {
            Brake.OBSERVE: "not armed",
            Brake.PAUSED: "automation is paused",
            Brake.FREEZE: "in a freeze window",
            Brake.COOL_DOWN: "cooling down after a rollback",
            Brake.BUDGET: "the budget of rollbacks is spent",
        }[self]


class Held(Enum):
    """What a freeze window holds."""

    DEPLOYMENTS = "deployments"
    ROLLBACKS = "rollbacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeFacts:
    """What is true of one place now."""

    armed: bool
    paused: bool
    ended_at: tuple[Instant, ...]
    """When its automatic rollbacks ended that were not refused or cancelled, in any order; one ladder is one (R29)."""
    now: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A brake that holds now."""

    brake: Brake
    until: Instant | None
    """When it lets go if nobody does anything; None when only a person can release it."""


def brake(policy: BrakePolicy, facts: BrakeFacts) -> Brake | None:
    """The brake that holds now, or None when the officer may act.

    A cool-down of `cool_down_s` counts from the end of each automatic rollback, exclusive at its own end; the budget
    allows `max_rollbacks` in any trailing `budget_period_s`.
    """
    if not facts.armed:
        return Brake.OBSERVE
    if facts.paused:
        return Brake.PAUSED
    if frozen_window(policy, facts.now, what=Held.ROLLBACKS) is not None:
        return Brake.FREEZE
    if cool_down_left_ns(policy, facts) > 0:
        return Brake.COOL_DOWN
    if budget_left(policy, facts) <= 0:
        return Brake.BUDGET
    return None


def hold(policy: BrakePolicy, facts: BrakeFacts) -> Hold | None:
    """As `brake`, with the instant at which that brake lets go."""
    found = brake(policy, facts)
    return None if found is None else Hold(brake=found, until=clear_at(policy, facts, found))


def clear_at(policy: BrakePolicy, facts: BrakeFacts, found: Brake) -> Instant | None:
    """When `found`, which holds now, lets go; None when only a person can release it, or no end is in sight."""
    now = facts.now
    match found:
        case Brake.OBSERVE | Brake.PAUSED:
            return None
        case Brake.FREEZE:
            end_ns = thaw_wall_ns(policy, now, what=Held.ROLLBACKS)
            return None if end_ns is None else now.plus(end_ns - now.wall_ns)
        case Brake.COOL_DOWN:
            return now.plus(cool_down_left_ns(policy, facts))
        case Brake.BUDGET:
            if policy.max_rollbacks < 1:
                return None
            # The budget is whole again by one when the oldest of the newest `max_rollbacks` leaves the period.
            decisive_ns = sorted(_ages_ns(facts))[policy.max_rollbacks - 1]
            return now.plus(policy.budget_period_s * NS_PER_S - decisive_ns)


def cool_down_left_ns(policy: BrakePolicy, facts: BrakeFacts) -> int:
    """Nanoseconds until the cool-down is over; 0 when it is."""
    youngest_ns = min(_ages_ns(facts), default=None)
    return 0 if youngest_ns is None else max(0, policy.cool_down_s * NS_PER_S - youngest_ns)


def budget_left(policy: BrakePolicy, facts: BrakeFacts) -> int:
    """Automatic rollbacks that the budget still allows now; 0 when it is spent."""
    spent = sum(age_ns < policy.budget_period_s * NS_PER_S for age_ns in _ages_ns(facts))
    return max(0, policy.max_rollbacks - spent)


def _ages_ns(facts: BrakeFacts) -> list[int]:
    return [_age_ns(ended_at, facts.now) for ended_at in facts.ended_at]


def _age_ns(ended_at: Instant, now: Instant) -> int:
    """How long ago, at least. Across boots the wall clock may be wrong, but this boot is as old as its own clock says."""
    since = elapsed(ended_at, now)
    return since.ns if since.basis == "monotonic" else max(since.ns, now.mono_ns)


def frozen_window(policy: BrakePolicy, now: Instant, *, what: Held) -> FreezeWindow | None:
    """The freeze window that holds `what` now, of several the one that ends last; None outside all of them.

    Times are UTC; the start is inclusive, the end exclusive.
    """
    ends = [(end_ns, window) for window in _holding(policy, what) if (end_ns := _end_ns(window, now.wall_ns))]
    return max(ends, key=lambda found: found[0])[1] if ends else None


def thaw_wall_ns(policy: BrakePolicy, now: Instant, *, what: Held) -> int | None:
    """The first wall clock nanosecond from now on at which no window holds `what`; windows that follow each other are one.

    None when no end is in sight: weekly windows that together cover the week.
    """
    windows = _holding(policy, what)
    wall_ns = now.wall_ns
    # Each round leaves every window that holds at its instant. Windows that come once are left for good, and weekly ones
    # that leave a gap show it within one round of them all, so a longer way has no end.
    for _ in range((len(windows) + 1) ** 2):
        ends = [end_ns for window in windows if (end_ns := _end_ns(window, wall_ns))]
        if not ends:
            return wall_ns
        wall_ns = max(ends)
    return None


def _holding(policy: BrakePolicy, what: Held) -> tuple[FreezeWindow, ...]:
    return tuple(w for w in policy.freeze_windows if (w.deployments if what is Held.DEPLOYMENTS else w.rollbacks))


def _end_ns(window: FreezeWindow, wall_ns: int) -> int | None:
    """The end of the window that `wall_ns` lies in, or None outside it."""
    duration_ns = window.duration_s * NS_PER_S
    if window.start_wall_ns is not None:
        inside_ns = wall_ns - window.start_wall_ns
    else:
        start_in_week_ns = (window.weekday * 86_400 + window.start_of_day_s) * NS_PER_S
        # Since its newest start; the remainder is never negative, so midnight and the end of the week need no case.
        inside_ns = (wall_ns + _EPOCH_IN_WEEK_NS - start_in_week_ns) % WEEK_NS
    return wall_ns - inside_ns + duration_ns if 0 <= inside_ns < duration_ns else None


def allowed_in(period_s: int, policy: BrakePolicy) -> int:
    """Most automatic rollbacks of one place that can begin in any span of `period_s`, both ends included.

    What an oscillating signal can cause at worst: rollbacks that take no time, each as early as the brakes allow.
    """
    per_round = policy.max_rollbacks
    round_s = max(policy.budget_period_s, per_round * policy.cool_down_s)
    rounds, rest_s = divmod(period_s, round_s)
    in_rest = rest_s // policy.cool_down_s + 1 if policy.cool_down_s else per_round
    return rounds * per_round + min(per_round, in_rest)
