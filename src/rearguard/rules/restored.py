"""Decides from when on a restored service is healthy: t6 and t7 of a recovery (R32, requirements 10.2).

A window [c, c + W] is good when every golden probe in it held and every SLO was in limit, judged by the traffic or,
when there is too little of it, by the golden probes. t6 is the start of the first good window. Who counts, who probes
and when the caller gives up are left to others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from rearguard.model.breach import Limits
from rearguard.model.outcome import Outcome
from rearguard.model.settings import RecoveryPolicy
from rearguard.model.telemetry import SecondCounts
from rearguard.model.time import NS_PER_S
from rearguard.rules.breach.window import WindowCounts, compliance_dropped, errors_over, p95_over, total


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenProbe:
    """One golden request through the data plane, and whether its answer was the recorded one."""

    at_mono_ns: int
    """Completion on this host's monotonic clock."""
    ok: bool
    reason: str
    """Why it was not ok, or empty."""
    latency_ms: Decimal | None
    """None when there was no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """Whether and from when on the service is healthy."""

    outcome: Outcome
    """PASS: a good window was found. INCONCLUSIVE: not yet, or not to be known. FAIL: at the deadline only."""
    t6_mono_ns: int | None
    t7_mono_ns: int | None
    """t6 + W; both None unless PASS."""
    judged_by: str
    """`traffic`, `golden_probes`, or empty when no window was judged."""
    samples: int
    """Requests in the window's whole seconds when judged by traffic, golden probes when judged by these, else 0."""
    reason: str
    """`in_limit`, `waiting`, `slo_still_breached`, `golden_probe_failed`, `too_few_samples`, `window_incomplete`."""


GOLDEN_DIFFERS = "golden_differs"
"""Reason of a golden probe that the right digest answered, with something else than what was recorded."""

WAITING = Restored(
    outcome=Outcome.INCONCLUSIVE, t6_mono_ns=None, t7_mono_ns=None, judged_by="", samples=0, reason="waiting"
)


def first_good_window(
    *,
    ready_mono_ns: int,
    now_mono_ns: int,
    seconds: Sequence[SecondCounts],
    probes: Sequence[GoldenProbe],
    policy: RecoveryPolicy,
    limits: Limits,
) -> Restored:
    """PASS with t6 and t7 of the first good window after t5 (`ready_mono_ns`), else INCONCLUSIVE `waiting`.

    `seconds` are those of the restored digest; each second that ended by `now_mono_ns` must be complete in them, so a
    caller whose telemetry arrives late passes an earlier now. Candidate starts are t5 itself and every whole second
    after it. A later call with more data never moves a t6 that was found.
    """
    span_ns = policy.window_s * NS_PER_S
    now_s = now_mono_ns // NS_PER_S
    by_second = {second.second: second for second in seconds}
    ordered = sorted(probes, key=_at)
    start_ns = ready_mono_ns
    while _second_at_or_after(start_ns + span_ns) <= now_s:
        inside = _between(ordered, start_ns, start_ns + span_ns)
        failed_at_ns = max((probe.at_mono_ns for probe in inside if not probe.ok), default=None)
        if failed_at_ns is not None:
            # No window that holds this probe is good, so the next candidate is the first whole second after it.
            start_ns = _next_whole_second(failed_at_ns)
            continue
        found = _judge(_counts(by_second, start_ns, start_ns + span_ns), inside, policy, limits)
        if found.bad is False:
            return Restored(
                outcome=Outcome.PASS,
                t6_mono_ns=start_ns,
                t7_mono_ns=start_ns + span_ns,
                judged_by=found.judged_by,
                samples=found.samples,
                reason="in_limit",
            )
        start_ns = _next_whole_second(start_ns)
    return WAITING


def verdict_at_deadline(
    *,
    ready_mono_ns: int,
    now_mono_ns: int,
    seconds: Sequence[SecondCounts],
    probes: Sequence[GoldenProbe],
    policy: RecoveryPolicy,
    limits: Limits,
) -> Restored:
    """What to say of a recovery whose time is up; never `waiting`.

    PASS when there was a good window after all. Else the last W seconds, or what there is of them since t5, decide:
    FAIL `slo_still_breached` when an SLO is over its limit, FAIL `golden_probe_failed` when a golden probe failed,
    INCONCLUSIVE `too_few_samples` with neither enough traffic nor enough probes, and INCONCLUSIVE `window_incomplete`
    when all of it is good but W whole seconds have not passed since t5.
    """
    found = first_good_window(
        ready_mono_ns=ready_mono_ns,
        now_mono_ns=now_mono_ns,
        seconds=seconds,
        probes=probes,
        policy=policy,
        limits=limits,
    )
    if found.outcome is Outcome.PASS:
        return found
    by_second = {second.second: second for second in seconds}
    end_s = now_mono_ns // NS_PER_S
    start_s = max(ready_mono_ns // NS_PER_S, end_s - policy.window_s)
    start_ns = max(ready_mono_ns, start_s * NS_PER_S)
    inside = _between(sorted(probes, key=_at), start_ns, now_mono_ns)
    last = _judge(_counts(by_second, start_s * NS_PER_S, end_s * NS_PER_S), inside, policy, limits)
    if last.bad is True:
        outcome, reason = Outcome.FAIL, "slo_still_breached"
    elif any(not probe.ok for probe in inside):
        outcome, reason = Outcome.FAIL, "golden_probe_failed"
    elif last.bad is None:
        outcome, reason = Outcome.INCONCLUSIVE, "too_few_samples"
    else:
        outcome, reason = Outcome.INCONCLUSIVE, "window_incomplete"
    return Restored(
        outcome=outcome,
        t6_mono_ns=None,
        t7_mono_ns=None,
        judged_by=last.judged_by,
        samples=last.samples,
        reason=reason,
    )


LOST_WINDOWS = 2
"""Whole bad windows in a row after which a restored checkpoint breaches too: the persistence of R27."""


def breaches_too(
    *,
    ready_mono_ns: int,
    now_mono_ns: int,
    seconds: Sequence[SecondCounts],
    probes: Sequence[GoldenProbe],
    policy: RecoveryPolicy,
    limits: Limits,
) -> str:
    """Why the restored checkpoint itself is at fault, or empty: the last `LOST_WINDOWS` whole windows since t5 were bad.

    Windows of W follow each other from t5. One is bad when an SLO is over its limit in it (`slo_still_breached`), or when
    a golden prediction was answered otherwise (`golden_probe_failed`). A window that cannot be judged, or in which
    another digest or nobody answered, says nothing against the checkpoint and ends the row.
    """
    by_second = {second.second: second for second in seconds}
    ordered = sorted(probes, key=_at)
    span_ns = policy.window_s * NS_PER_S
    row, why = 0, ""
    start_ns = ready_mono_ns
    while _second_at_or_after(start_ns + span_ns) <= now_mono_ns // NS_PER_S:
        inside = _between(ordered, start_ns, start_ns + span_ns)
        found = _judge(_counts(by_second, start_ns, start_ns + span_ns), inside, policy, limits)
        differs = any(probe.reason == GOLDEN_DIFFERS for probe in inside)
        if found.bad is True or differs:
            row, why = row + 1, "slo_still_breached" if found.bad is True else "golden_probe_failed"
        else:
            row, why = 0, ""
        start_ns += span_ns
    return why if row >= LOST_WINDOWS else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _SloFinding:
    """Whether a window's SLOs are bad; None when neither traffic nor probes suffice to say."""

    bad: bool | None
    judged_by: str
    samples: int


def _judge(counts: WindowCounts, inside: Sequence[GoldenProbe], policy: RecoveryPolicy, limits: Limits) -> _SloFinding:
    """Judge the SLOs of one window; a probe that failed is the caller's business."""
    enough_traffic = counts.requests >= max(1, policy.min_samples)
    judged_by = "traffic" if enough_traffic else "golden_probes"
    ok_probes = sum(probe.ok for probe in inside)
    samples = counts.requests if enough_traffic else ok_probes
    if _traffic_is_over(counts, policy, limits):
        return _SloFinding(bad=True, judged_by="traffic", samples=counts.requests)
    if not inside:
        return _SloFinding(bad=None, judged_by="", samples=0)
    enough = enough_traffic or ok_probes >= policy.min_probes
    if limits.latency_limit_ms is not None and counts.timed < max(1, policy.min_samples):
        # Traffic that carries no latency says nothing about it: a missing answer is not a good one, so probes decide.
        latencies = [probe.latency_ms for probe in inside if probe.latency_ms is not None]
        over = sum(latency > limits.latency_limit_ms for latency in latencies)
        enough_timed = len(latencies) >= max(1, policy.min_probes)
        if enough_timed and p95_over(over, len(latencies)):
            return _SloFinding(bad=True, judged_by=judged_by, samples=samples)
        enough = enough and enough_timed
    return _SloFinding(bad=False if enough else None, judged_by=judged_by if enough else "", samples=samples)


def _traffic_is_over(counts: WindowCounts, policy: RecoveryPolicy, limits: Limits) -> bool:
    """Whether traffic alone shows that errors, p95 or compliance are over their limits.

    With fewer than the minimum of samples the missing ones are taken as good: what is over the limit even so is bad,
    and no number of golden probes outweighs clients that really failed.
    """
    if limits.error_limit_ratio is not None and errors_over(
        counts.failures, max(counts.requests, policy.min_samples), limits.error_limit_ratio
    ):
        return True
    if limits.latency_limit_ms is not None and p95_over(counts.over_latency, max(counts.timed, policy.min_samples)):
        return True
    return (
        limits.compliance_baseline is not None
        and limits.compliance_drop_points is not None
        and counts.scores >= max(1, policy.min_samples)
        and compliance_dropped(
            counts.score_sum, counts.scores, limits.compliance_baseline, limits.compliance_drop_points
        )
    )


def _at(probe: GoldenProbe) -> int:
    return probe.at_mono_ns


def _between(ordered: Sequence[GoldenProbe], start_ns: int, end_ns: int) -> Sequence[GoldenProbe]:
    """The probes in [start, end]: both ends count, so a probe that fails at t7 itself still forbids the window."""
    return ordered[bisect_left(ordered, start_ns, key=_at) : bisect_right(ordered, end_ns, key=_at)]


def _second_at_or_after(at_ns: int) -> int:
    return -(-at_ns // NS_PER_S)


def _next_whole_second(at_ns: int) -> int:
    """The first whole second strictly after an instant, in nanoseconds."""
    return (at_ns // NS_PER_S + 1) * NS_PER_S


def _counts(by_second: Mapping[int, SecondCounts], start_ns: int, end_ns: int) -> WindowCounts:
    """Counts of [start, end); where the window cuts a second, its bad counts are in and its good ones are out.

    All failures of the cut seconds over none of their requests: the true ratio of the window cannot be higher. (A
    superset alone would not be safe: the good requests before t5 would dilute the failures after it.) Scores are taken
    from all seconds that the window touches.
    """
    touched = total(_present(by_second, range(start_ns // NS_PER_S, _second_at_or_after(end_ns))))
    whole = total(_present(by_second, range(_second_at_or_after(start_ns), end_ns // NS_PER_S)))
    return replace(touched, requests=whole.requests, timed=whole.timed)


def _present(by_second: Mapping[int, SecondCounts], wanted: range) -> list[SecondCounts]:
    return [by_second[second] for second in wanted if second in by_second]
