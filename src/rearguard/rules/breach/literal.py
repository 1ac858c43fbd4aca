"""The spec's own rule, literally: thresholds over a window, persistence, a minimum of samples (R20-R23, R27).

Decides from counts of whole seconds and an explicit now; who counts and what follows from a breach is left to others.
Windows end at start + k * step and cover the window's length before their end, but never the time before the watch of
the digest began. Each window is judged once: a second that changes later is not judged again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal

from rearguard.errors import InternalError
from rearguard.model.breach import Judgement, Limits, LiteralPolicy, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest
from rearguard.model.telemetry import SecondCounts
from rearguard.model.time import NS_PER_S
from rearguard.rules.breach.window import EXACT, WindowCounts, compliance_dropped, errors_over, p95_over, total

MAX_CATCH_UP_WINDOWS = 16
"""More unjudged windows than this are not all judged. Chosen: a quarter of an hour of one-minute windows."""

_P95_SHARE = Decimal("0.05")


@dataclass(frozen=True, slots=True, kw_only=True)
class Streak:
    """Successive windows over the limit, up to the newest; `windows` 0 means that it was not over."""

    windows: int = 0
    first_bad_mono_ns: int | None = None
    """First bad observation of the first of these windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleState:
    """What the rule must remember of one digest between two calls."""

    digest: Digest
    start_s: int
    """Monotonic second at which the watch of the digest began; earlier seconds are never judged."""
    last_end_s: int
    """End of the newest window that was judged; `start_s` before the first."""
    compliance: Streak = Streak()
    latency: Streak = Streak()
    errors: Streak = Streak()

    def next_end_s(self, policy: LiteralPolicy) -> int:
        """End of the next window to judge."""
        return self.last_end_s + policy.step_s


def initial(digest: Digest, start_s: int) -> RuleState:
    """The state of a digest whose watch begins at monotonic second `start_s`."""
    return RuleState(digest=digest, start_s=start_s, last_end_s=start_s)


def needed_from_s(state: RuleState, policy: LiteralPolicy) -> int:
    """The first second that `judge` will read; what it is given may begin earlier."""
    return max(state.start_s, state.next_end_s(policy) - policy.window_s)


def judge(
    state: RuleState,
    policy: LiteralPolicy,
    limits: Limits,
    digest: Digest,
    seconds: tuple[SecondCounts, ...],
    now_s: int,
) -> tuple[RuleState, tuple[Judgement, ...]]:
    """Judge every window that ended at or before `now_s` and was not judged yet.

    `seconds` hold each second from `needed_from_s` up to `now_s` at most once and only once complete; a second that is
    not there had no observations. Returns the state for the next call and, for each trigger that has a limit, the
    judgement of the newest window, or the first FAIL if any window judged here failed. No window due: no judgements.

    Law: judging in several calls gives the same states and the same FAILs as judging in one (up to
    `MAX_CATCH_UP_WINDOWS`). Raises `InternalError` (`rule_state_digest`) when the state is of another digest.
    """
    if state.digest != digest:
        raise InternalError("rule_state_digest", f"state of {state.digest} used to judge {digest}")
    due = (now_s - state.last_end_s) // policy.step_s
    if due > max(MAX_CATCH_UP_WINDOWS, policy.for_windows):
        # Away for long (a suspended host): only the windows that can still fire now are judged. The ones between are
        # not known to be over the limit, so no streak reaches across them; and a breach that has passed since then
        # must not roll back what is healthy now.
        skipped = due - policy.for_windows
        state = RuleState(digest=digest, start_s=state.start_s, last_end_s=state.last_end_s + skipped * policy.step_s)
    told: dict[Trigger, Judgement] = {}
    while state.next_end_s(policy) <= now_s:
        state, judgements = _judge_window(state, policy, limits, seconds)
        for judgement in judgements:
            known = told.get(judgement.trigger)
            if known is None or known.outcome is not Outcome.FAIL:
                told[judgement.trigger] = judgement
    return state, tuple(told[trigger] for trigger in Trigger if trigger in told)


def _judge_window(
    state: RuleState, policy: LiteralPolicy, limits: Limits, seconds: tuple[SecondCounts, ...]
) -> tuple[RuleState, list[Judgement]]:
    end_s = state.next_end_s(policy)
    start_s = max(state.start_s, end_s - policy.window_s)
    inside = tuple(second for second in seconds if start_s <= second.second < end_s)
    counts = total(inside)
    streaks = {trigger: Streak() for trigger in Trigger}
    judgements = []
    for finding in _findings(counts, limits):
        before: Streak = getattr(state, finding.trigger.value)
        streak, outcome, reason = _conclude(finding, before, policy, inside)
        streaks[finding.trigger] = streak
        judgements.append(
            Judgement(
                trigger=finding.trigger,
                digest=state.digest,
                outcome=outcome,
                reason=reason,
                window_start_s=start_s,
                window_end_s=end_s,
                samples=finding.samples,
                exceedances=finding.exceedances,
                observed=finding.observed,
                limit=finding.limit,
                streak=streak.windows,
                first_bad_mono_ns=streak.first_bad_mono_ns,
            )
        )
    after = replace(
        state,
        last_end_s=end_s,
        compliance=streaks[Trigger.COMPLIANCE],
        latency=streaks[Trigger.LATENCY],
        errors=streaks[Trigger.ERRORS],
    )
    return after, judgements


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One trigger in one window, before minimum of samples and persistence."""

    trigger: Trigger
    samples: int
    exceedances: int
    observed: Decimal | None
    limit: Decimal | None
    over: bool | None
    """None: nothing to compare with."""
    bad_at_ns: Callable[[SecondCounts], int | None]
    """First bad observation of a second, as far as the second knows it."""
    may_be_bad: Callable[[SecondCounts], int]
    """Zero when the second cannot hold a bad observation."""


def _findings(counts: WindowCounts, limits: Limits) -> list[_Finding]:
    """One finding for each trigger that is not switched off."""
    found = []
    if limits.compliance_drop_points is not None:
        baseline, drop = limits.compliance_baseline, limits.compliance_drop_points
        found.append(
            _Finding(
                trigger=Trigger.COMPLIANCE,
                samples=counts.scores,
                exceedances=0,
                observed=counts.score_sum / counts.scores if counts.scores else None,
                limit=None if baseline is None else EXACT.subtract(baseline, drop),
                over=None if baseline is None else compliance_dropped(counts.score_sum, counts.scores, baseline, drop),
                bad_at_ns=lambda second: second.first_low_score_ns,
                may_be_bad=lambda second: second.scores,
            )
        )
    if limits.latency_limit_ms is not None:
        found.append(
            _Finding(
                trigger=Trigger.LATENCY,
                samples=counts.timed,
                exceedances=counts.over_latency,
                observed=_ratio(counts.over_latency, counts.timed),
                limit=_P95_SHARE,
                over=p95_over(counts.over_latency, counts.timed),
                bad_at_ns=lambda second: second.first_over_latency_ns,
                may_be_bad=lambda second: second.over_latency,
            )
        )
    if limits.error_limit_ratio is not None:
        found.append(
            _Finding(
                trigger=Trigger.ERRORS,
                samples=counts.requests,
                exceedances=counts.failures,
                observed=_ratio(counts.failures, counts.requests),
                limit=limits.error_limit_ratio,
                over=errors_over(counts.failures, counts.requests, limits.error_limit_ratio),
                bad_at_ns=lambda second: second.first_failure_ns,
                may_be_bad=lambda second: second.failures,
            )
        )
    return found


def _conclude(
    finding: _Finding, before: Streak, policy: LiteralPolicy, inside: tuple[SecondCounts, ...]
) -> tuple[Streak, Outcome, str]:
    if finding.over is None:
        return Streak(), Outcome.INCONCLUSIVE, "no_baseline"
    # An empty window is too few whatever the policy says: it holds nothing that could be in limit.
    if finding.samples < max(1, policy.min_samples):
        return Streak(), Outcome.INCONCLUSIVE, "too_few_samples"
    if not finding.over:
        return Streak(), Outcome.PASS, "in_limit"
    first_bad_ns = before.first_bad_mono_ns if before.windows else _first_bad_ns(finding, inside)
    streak = Streak(windows=before.windows + 1, first_bad_mono_ns=first_bad_ns)
    if streak.windows < policy.for_windows:
        return streak, Outcome.INCONCLUSIVE, "over_limit"
    return streak, Outcome.FAIL, "breach"


def _first_bad_ns(finding: _Finding, inside: tuple[SecondCounts, ...]) -> int | None:
    """The first bad observation of a window that is over its limit: t0 of an incident (requirements 10.2).

    Where no second knows it (the baseline was set after the scores were counted), the start of the first second that
    may hold it: t0 is then early rather than late, and the RTO long rather than short.
    """
    known = [at for at in map(finding.bad_at_ns, inside) if at is not None]
    if known:
        return min(known)
    return min((second.second * NS_PER_S for second in inside if finding.may_be_bad(second)), default=None)


def _ratio(part: int, whole: int) -> Decimal | None:
    return Decimal(part) / whole if whole else None
