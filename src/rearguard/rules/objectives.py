"""Recovery objectives: comparisons at full resolution, rounding that keeps them, and what few samples allow one to say.

Owns the statistics of the metrics table (requirements 10.1): modified-Cox interval of a log-normal mean, exact
Clopper-Pearson interval, the one-sided bound that k of n supports, the order-statistic interval of the median and the
95/95 upper tolerance bound. Confidence is 95 % throughout. Everything is computed with `math` only, by bisection on the
regularised incomplete beta function, so the printed digits are the same on every platform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from enum import Enum
from fractions import Fraction
from functools import lru_cache

NS_PER_MINUTE = 60_000_000_000
_ALPHA = 0.05
_Z95 = 1.6448536269514722
"""0.95 quantile of the standard normal distribution, to the precision of a double."""
_BISECTIONS = 200
"""Above the 53 halvings that separate two doubles of one binade; the loop stops earlier once it cannot move."""


class Comparison(Enum):
    """How a measured value stands to its bound (R37-R38)."""

    BELOW = "below"
    EQUAL = "equal"
    ABOVE = "above"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanInterval:
    """A log-normal mean and its 95 % interval, in the unit of the samples."""

    mean: float
    low: float
    high: float


def compare(value_ns: int, bound_ns: int) -> Comparison:
    """How `value_ns` stands to `bound_ns`, at full resolution (R37-R38)."""
    if value_ns < bound_ns:
        return Comparison.BELOW
    return Comparison.EQUAL if value_ns == bound_ns else Comparison.ABOVE


def print_minutes(ns: int, bound: int) -> str:
    """`ns` nanoseconds as minutes with one decimal, or as many more as the comparison with `bound` (ns) needs (R39).

    Law: sign(printed - bound) = sign(ns - bound). A bound whose minutes do not end as a decimal (100 s) has no exact
    text; a value equal to it prints as the bound itself does in `print_bound`.
    """
    if ns == bound:
        text = print_bound(bound)
        return text if "." in text else f"{text}.0"
    return print_decimal(Fraction(ns, NS_PER_MINUTE), Fraction(bound, NS_PER_MINUTE), 1)


def print_bound(bound_ns: int) -> str:
    """A bound in minutes as a target names it: `10` for 600 s, `1.5` for 90 s; at most 12 decimals."""
    return _fixed(Fraction(bound_ns, NS_PER_MINUTE), 12).rstrip("0").rstrip(".")


def print_decimal(value: Fraction, bound: Fraction, decimals: int) -> str:
    """`value` with `decimals` decimals, or as many more as sign(printed - bound) = sign(value - bound) needs (R39).

    Rounds half to even. Equality with a bound that does not end as a decimal prints with `decimals` decimals.
    """
    text = _fixed(value, decimals)
    wanted = _sign(value - bound)
    # A value that differs from its bound is told apart at the latest where 10**-d is smaller than the difference; the
    # limit serves equality with a bound that has no finite decimal form.
    for digits in range(decimals, decimals + 40):
        longer = _fixed(value, digits)
        if _sign(Fraction(longer) - bound) == wanted:
            return longer
    return text


def _sign(value: Fraction) -> int:
    return (value > 0) - (value < 0)


def _fixed(value: Fraction, decimals: int) -> str:
    scaled = round(value * 10**decimals)  # Fraction rounds half to even, exactly
    with localcontext() as context:
        context.prec = max(28, len(str(abs(scaled))) + 2)
        context.rounding = ROUND_HALF_EVEN
        return f"{Decimal(scaled).scaleb(-decimals):.{decimals}f}"


def cox_interval(samples: Sequence[int]) -> MeanInterval | None:
    """Modified-Cox 95 % interval of the mean of log-normal samples; None when it is not estimable.

    Olsson, J. Stat. Educ. 13(1), 2005: exp(y + s^2/2 -+ t(n-1) * sqrt(s^2/n + s^4/(2(n-1)))) with y and s^2 the mean
    and variance of the logarithms. Not estimable: fewer than two samples, a sample of zero, or an interval beyond the
    range of a double.
    """
    n = len(samples)
    if n < 2 or min(samples) <= 0:
        return None
    logs = [math.log(x) for x in samples]
    mean_log = math.fsum(logs) / n
    variance = math.fsum((x - mean_log) ** 2 for x in logs) / (n - 1)
    centre = mean_log + variance / 2
    half = t_quantile(1 - _ALPHA / 2, n - 1) * math.sqrt(variance / n + variance**2 / (2 * (n - 1)))
    try:
        return MeanInterval(mean=math.exp(centre), low=math.exp(centre - half), high=math.exp(centre + half))
    except OverflowError:
        return None


def clopper_pearson(successes: int, runs: int) -> tuple[float, float]:
    """Exact two-sided 95 % interval of a proportion (R75); ValueError unless 0 <= successes <= runs, runs >= 1."""
    _check_counts(successes, runs)
    low = 0.0 if successes == 0 else beta_quantile(_ALPHA / 2, successes, runs - successes + 1)
    high = 1.0 if successes == runs else beta_quantile(1 - _ALPHA / 2, successes + 1, runs - successes)
    return low, high


def supported_proportion(successes: int, runs: int) -> float:
    """The p for which k of n supports, with 95 % confidence, "at least p" (exact one-sided bound; 10.1).

    Raises ValueError unless 0 <= successes <= runs, runs >= 1.
    """
    _check_counts(successes, runs)
    return 0.0 if successes == 0 else beta_quantile(_ALPHA, successes, runs - successes + 1)


def _check_counts(successes: int, runs: int) -> None:
    if runs < 1 or not 0 <= successes <= runs:
        raise ValueError(f"not a count of successes: {successes} of {runs}")


def median_ranks(n: int) -> tuple[int, int] | None:
    """1-based ranks whose order statistics hold the median with at least 95 % confidence; None below n = 6."""
    below, rank = 0, 0
    # P(Bin(n, 1/2) < rank) <= 1/40, in exact integers.
    while 40 * (below + math.comb(n, rank)) <= 2**n:
        below += math.comb(n, rank)
        rank += 1
    return (rank, n + 1 - rank) if rank >= 1 else None


def median_interval(samples: Sequence[int | None]) -> tuple[int | None, int | None] | None:
    """Distribution-free 95 % interval of the median; None below n = 6.

    A sample of None is right-censored: it keeps its rank as +infinity (10.1), and an end of None is that infinity.
    """
    ranks = median_ranks(len(samples))
    if ranks is None:
        return None
    known = sorted(x for x in samples if x is not None)
    low, high = (known[r - 1] if r <= len(known) else None for r in ranks)
    return low, high


def upper_tolerance(samples: Sequence[int]) -> float | None:
    """95/95 upper tolerance bound of log-normal samples: with 95 % confidence 95 % of runs end within it; else None."""
    n = len(samples)
    if n < 2 or min(samples) <= 0:
        return None
    logs = [math.log(x) for x in samples]
    mean_log = math.fsum(logs) / n
    deviation = math.sqrt(math.fsum((x - mean_log) ** 2 for x in logs) / (n - 1))
    try:
        return math.exp(mean_log + tolerance_factor(n) * deviation)
    except OverflowError:
        return None


@lru_cache(maxsize=256)
def tolerance_factor(n: int) -> float:
    """One-sided normal tolerance factor k for 95 % content with 95 % confidence; ValueError below n = 2.

    k solves E[Phi(sqrt(n) (k s - z))] = 0.95 with s^2 a chi-square of n - 1 degrees over n - 1.
    """
    if n < 2:
        raise ValueError(f"no tolerance factor for n = {n}")
    nu = n - 1
    steps, top = 2000, 1 + 9 / math.sqrt(2 * nu)
    width = top / steps
    scale = math.log(2) + nu / 2 * math.log(nu / 2) - math.lgamma(nu / 2)
    nodes: list[tuple[float, float]] = []
    for i in range(steps + 1):
        s = i * width
        simpson = 1 if i in (0, steps) else 4 if i % 2 else 2
        if s > 0 or nu == 1:
            log_power = (nu - 1) * math.log(s) if nu > 1 else 0.0
            nodes.append((s, simpson * width / 3 * math.exp(scale + log_power - nu * s * s / 2)))

    def short_of(k: float) -> bool:
        root = math.sqrt(n / 2)
        return math.fsum(w * 0.5 * math.erfc(-root * (k * s - _Z95)) for s, w in nodes) < 1 - _ALPHA

    return _bisect(short_of, 0.0, 64.0, 50)


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t distribution for 0.5 <= p < 1; ValueError otherwise.

    T^2 / (df + T^2) is Beta(1/2, df/2) distributed (Abramowitz & Stegun 26.7.1).
    """
    if not 0.5 <= p < 1 or df < 1:
        raise ValueError(f"no t quantile for p = {p}, df = {df}")
    y = beta_quantile(2 * p - 1, 0.5, df / 2)
    return math.sqrt(df * y / (1 - y))


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, by bisection."""
    return _bisect(lambda x: incomplete_beta(x, a, b) < p, 0.0, 1.0, _BISECTIONS)


def _bisect(too_low: Callable[[float], bool], low: float, high: float, times: int) -> float:
    for _ in range(times):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if too_low(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        # The fraction converges fast only below the mean; I_x(a, b) = 1 - I_{1-x}(b, a), DLMF 8.17.4.
        return 1 - _beta_fraction(1 - x, b, a)
    return _beta_fraction(x, a, b)


def _beta_fraction(x: float, a: float, b: float) -> float:
    """I_x(a, b) for 0 < x <= (a + 1)/(a + b + 2), where the fraction converges in O(sqrt(max(a, b))) terms."""
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # Modified Lentz evaluation; `tiny` stands for a zero denominator.
    tiny, c, d = 1e-300, 1.0, 0.0
    fraction = 1.0
    for m in range(10_000):
        if m == 0:
            term = 1.0
        elif m % 2:
            k = (m - 1) // 2
            term = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        else:
            k = m // 2
            term = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        d = 1 + term * d
        d = 1 / (d if abs(d) > tiny else tiny)
        c = 1 + term / c
        c = c if abs(c) > tiny else tiny
        fraction *= c * d
        if m > 0 and abs(c * d - 1) < 1e-15:
            break
    # The loop evaluates 1 + 1/(1 + d1/(1 + ...)); the value wanted is its tail 1/(1 + d1/(1 + ...)).
    return front * (fraction - 1) / a
