"""Counts of a window, and the three comparisons with the limits that every rule shares (R20-R23).

The literal rule and the proof of a recovery (R32) must mean the same by "in limit"; they do because both ask here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal

from rearguard.model.telemetry import SecondCounts

EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""For sums and products that must not be rounded (R23); the default context rounds to 28 digits. Never divide in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCounts:
    """Sums over the seconds of a window; the fields mean what they mean in `SecondCounts`."""

    requests: int
    failures: int
    timed: int
    over_latency: int
    scores: int
    score_sum: Decimal


def total(seconds: Iterable[SecondCounts]) -> WindowCounts:
    """The exact sums over `seconds`, each of which must be there once."""
    requests = failures = timed = over_latency = scores = 0
    score_sum = Decimal(0)
    for second in seconds:
        requests += second.requests
        failures += second.failures
        timed += second.timed
        over_latency += second.over_latency
        scores += second.scores
        score_sum = EXACT.add(score_sum, second.score_sum)
    return WindowCounts(
        requests=requests,
        failures=failures,
        timed=timed,
        over_latency=over_latency,
        scores=scores,
        score_sum=score_sum,
    )


def errors_over(failures: int, requests: int, limit_ratio: Decimal) -> bool:
    """Whether failures / requests > limit, strictly and exactly (R22)."""
    return failures > EXACT.multiply(limit_ratio, Decimal(requests))


def p95_over(over_latency: int, timed: int) -> bool:
    """Whether the nearest-rank p95 of `timed` latencies is > L, when `over_latency` of them are > L (R21).

    The nearest-rank p95 is the k-th smallest latency, k = ceil(0.95 n). It is > L iff fewer than k latencies are
    <= L, that is n - over <= k - 1, that is over > n - k = n - ceil(0.95 n) = floor(0.05 n) = n * 5 // 100.
    Since over is whole, this also says over / n > 5 %.
    """
    return over_latency > timed * 5 // 100


def compliance_dropped(score_sum: Decimal, scores: int, baseline: Decimal, drop_points: Decimal) -> bool:
    """Whether baseline - mean >= drop, inclusive and exact (R20): multiplied by n, as a mean may not be a decimal."""
    n = Decimal(scores)
    return EXACT.add(score_sum, EXACT.multiply(drop_points, n)) <= EXACT.multiply(baseline, n)
