"""The figures of the metrics table: RTO, RPO and success of the rollbacks of a window, and what they allow one to say.

The rules of requirements 10.1: a run that did not succeed is right-censored at its deadline and counts as a breach, a
missing measurement is never a pass, and Observed is the maximum of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from rearguard.model.report import MetricRow, ReportScope, SampleStatistics, Status, SuccessStatistics
from rearguard.model.run import RunState
from rearguard.model.time import NS_PER_MS
from rearguard.reports.history import STATELESS, Rollback, cite
from rearguard.rules.objectives import (
    NS_PER_MINUTE,
    Comparison,
    clopper_pearson,
    compare,
    cox_interval,
    median_interval,
    print_bound,
    print_decimal,
    print_minutes,
    supported_proportion,
    upper_tolerance,
)

ABSENT = "\u2014"
NOT_AVAILABLE = "n/a"
_WIDEST_MIN = 99_999
"""Chosen: an upper end beyond 69 days says nothing about an objective of minutes; it prints as `> 99999`."""
_WIDEST_MS = _WIDEST_MIN * 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollback as a measurement."""

    rollback: Rollback
    value_ns: int | None
    """None when it was not measured."""
    censored_ns: int | None = None
    """Deadline above which the value lies; None unless censored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One metrics row with what the closing line and the verdict need of it."""

    row: MetricRow
    closing: str
    over_limit: bool
    at_limit: bool
    unmeasured: int


def rto_samples(rollbacks: Sequence[Rollback], scope: ReportScope) -> tuple[Sample, ...]:
    """RTO of each rollback; one that failed, was refused or inconclusive is censored, a cancelled one not measured."""
    ended_without = (RunState.FAILED, RunState.REFUSED, RunState.INCONCLUSIVE)
    return tuple(
        Sample(
            rollback=r,
            value_ns=r.rto_ns,
            censored_ns=(r.deadline_ms or scope.objectives.rto_objective_ms) * NS_PER_MS
            if r.state in ended_without
            else None,
        )
        for r in rollbacks
    )


def rpo_samples(rollbacks: Sequence[Rollback], scope: ReportScope) -> tuple[Sample, ...]:
    """RPO of each rollback; 0 for a place that its settings declare stateless (R40), else as measured."""
    declared = {p.place: p.stateless for p in scope.places}
    samples = []
    for r in rollbacks:
        claimed = r.rpo_basis == STATELESS
        # A refusal without a run carries no basis: the declaration alone speaks for it.
        stateless = (claimed or not r.rpo_basis) and (declared.get(r.place, claimed) if r.place else claimed)
        measured = None if claimed else r.rpo_ms
        value_ms = measured if measured is not None else 0 if stateless else None
        samples.append(Sample(rollback=r, value_ns=None if value_ms is None else value_ms * NS_PER_MS))
    return tuple(samples)


def time_figures(metric: str, samples: Sequence[Sample], objective_ms: int) -> Figures:
    """The row of RTO or RPO: maximum, interval of the mean and status against the objective (R37-R39, R71-R74)."""
    bound = objective_ms * NS_PER_MS
    n = len(samples)
    measured = [(s.value_ns, s) for s in samples if s.value_ns is not None]
    censored = [(s.censored_ns, s) for s in samples if s.censored_ns is not None]
    unmeasured = n - len(measured) - len(censored)
    top = max(measured, key=lambda x: (x[0], x[1].rollback.record.id), default=None)
    above = top is not None and compare(top[0], bound) is Comparison.ABOVE
    equal = any(compare(value, bound) is Comparison.EQUAL for value, _ in measured)
    if censored:
        limit, sample = max(censored, key=lambda x: (x[0], x[1].rollback.record.id))
        setting, closing = [sample], f"> {print_minutes(limit, bound)}"
    elif top is not None and (above or not unmeasured):
        setting, closing = [top[1]], print_minutes(top[0], bound)
    else:
        # Without every measurement the maximum is not known; nothing is printed rather than a figure too small.
        setting, closing = [s for s in samples if s.value_ns is None][-1:], NOT_AVAILABLE
    over = above or bool(censored)
    warned = equal or bool(unmeasured) or n == 0
    row = MetricRow(
        metric=metric,
        target=f"< {print_bound(bound)}",
        observed=ABSENT if closing == NOT_AVAILABLE else f"{closing} (max, n={n})",
        ci95=_mean_interval([value for value, _ in measured], bound, len(censored), unmeasured),
        status=Status.FAILED if over else Status.WARNING if warned else Status.PASSED,
        evidence=cite(setting[0].rollback.record) if setting else None,
    )
    return Figures(row=row, closing=closing, over_limit=over, at_limit=equal, unmeasured=unmeasured)


def _mean_interval(values: Sequence[int], bound: int, censored: int, unmeasured: int) -> str:
    if censored:
        return f"{NOT_AVAILABLE} ({censored} censored)"
    if unmeasured:
        return f"{NOT_AVAILABLE} ({unmeasured} unmeasured)"
    interval = cox_interval(values)
    if interval is None:
        return NOT_AVAILABLE
    low, high, mean = (_wide_minutes(x, bound) for x in (interval.low, interval.high, interval.mean))
    return f"[{low}, {high}] (mean {mean}, n={len(values)})"


def _wide_minutes(ns: float, bound: int) -> str:
    if ns > _WIDEST_MIN * NS_PER_MINUTE:
        return f"> {_WIDEST_MIN}"
    return print_minutes(round(ns), bound)


def time_statistics(samples: Sequence[Sample]) -> SampleStatistics:
    """The figures of the JSON twin (requirements 10.1); parametric ones only without censored or missing runs."""
    values = [s.value_ns for s in samples if s.value_ns is not None]
    censored = sum(s.censored_ns is not None for s in samples)
    unmeasured = len(samples) - len(values) - censored
    complete = not censored and not unmeasured
    interval = cox_interval(values) if complete else None
    tolerance = upper_tolerance(values) if complete else None
    median = median_interval([s.value_ns for s in samples]) if not unmeasured else None
    ends = None if interval is None else (_milliseconds(interval.low), _milliseconds(interval.high))
    return SampleStatistics(
        n=len(samples),
        measured_ms=tuple(v // NS_PER_MS for v in values),
        censored=censored,
        unmeasured=unmeasured,
        max_ms=max(values) // NS_PER_MS if values else None,
        mean_ms=None if interval is None else _milliseconds(interval.mean),
        mean_ci95_ms=None if ends is None or ends[0] is None or ends[1] is None else (ends[0], ends[1]),
        median_ci95_ms=None if median is None else (_whole_ms(median[0]), _whole_ms(median[1])),
        upper_tolerance_95_95_ms=None if tolerance is None else _milliseconds(tolerance),
    )


def _milliseconds(ns: float) -> int | None:
    ms = round(ns / NS_PER_MS)
    return ms if ms <= _WIDEST_MS else None


def _whole_ms(ns: int | None) -> int | None:
    return None if ns is None else ns // NS_PER_MS


def success_figures(rollbacks: Sequence[Rollback]) -> Figures:
    """The row of the success rate: k = n is the criterion, the interval is printed only (R75)."""
    n = len(rollbacks)
    failures = [r for r in rollbacks if r.state is not RunState.SUCCEEDED]
    k = n - len(failures)
    setting = (failures or list(rollbacks))[-1:]
    if n:
        observed = f"{percent(k, n, 1)} % ({k}/{n})"
        low, high = clopper_pearson(k, n)
        ci95 = f"[{_percent_of(low)}, {_percent_of(high)}] %"
        closing = percent(k, n, 0)
        status = Status.FAILED if failures else Status.PASSED
    else:
        observed, ci95, closing, status = ABSENT, NOT_AVAILABLE, NOT_AVAILABLE, Status.WARNING
    row = MetricRow(
        metric="Recovery Success Rate",
        target="100 %",
        observed=observed,
        ci95=ci95,
        status=status,
        evidence=cite(setting[0].record) if setting else None,
    )
    return Figures(row=row, closing=closing, over_limit=False, at_limit=False, unmeasured=0)


def success_statistics(rollbacks: Sequence[Rollback]) -> SuccessStatistics:
    """The figures of the success row for the JSON twin."""
    n = len(rollbacks)
    k = sum(r.state is RunState.SUCCEEDED for r in rollbacks)
    ends = clopper_pearson(k, n) if n else None
    return SuccessStatistics(
        runs=n,
        succeeded=k,
        ci95=None if ends is None else (f"{ends[0]:.6f}", f"{ends[1]:.6f}"),
        supported_at_95=f"{supported_proportion(k, n):.6f}" if n else None,
    )


def percent(k: int, n: int, decimals: int) -> str:
    """k of n in percent, with as many more decimals as keep it below 100 when it is (R39)."""
    return print_decimal(Fraction(100 * k, n), Fraction(100), decimals)


def _percent_of(proportion: float) -> str:
    return f"{100 * proportion:.1f}"
