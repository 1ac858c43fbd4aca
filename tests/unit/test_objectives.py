"""Statistics and comparisons of recovery objectives, against published tables and hand calculations."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from rearguard.rules.objectives import (
    Comparison,
    clopper_pearson,
    compare,
    cox_interval,
    incomplete_beta,
    median_interval,
    median_ranks,
    print_bound,
    print_decimal,
    print_minutes,
    supported_proportion,
    t_quantile,
    tolerance_factor,
    upper_tolerance,
)

MINUTE = 60_000_000_000
TEN = 10 * MINUTE


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (599_999_000_000, Comparison.BELOW),
        (600_000_000_000, Comparison.EQUAL),
        (600_001_000_000, Comparison.ABOVE),
        (599_999_999_999, Comparison.BELOW),
        (600_000_000_001, Comparison.ABOVE),
    ],
)
def test_a_value_is_compared_with_its_limit_at_full_resolution(ns: int, expected: Comparison) -> None:
    assert compare(ns, TEN) is expected


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (6 * MINUTE + 12_000_000_000, "6.2"),
        (597_600_000_000, "9.96"),  # 9.96 min: one decimal would say 10.0
        (602_400_000_000, "10.04"),  # 10.04 min
        (599_760_000_000, "9.996"),
        (TEN, "10.0"),
        (0, "0.0"),
        (TEN + 1, "10.00000000002"),  # 1 ns is 1.67e-11 min
        (TEN - 1, "9.99999999998"),
        (12 * MINUTE, "12.0"),
    ],
)
def test_minutes_print_one_decimal_or_as_many_as_the_comparison_needs(ns: int, text: str) -> None:
    assert print_minutes(ns, TEN) == text


@pytest.mark.parametrize(
    ("ns", "text"), [(TEN, "10"), (5 * MINUTE, "5"), (90_000_000_000, "1.5"), (100_000_000_000, "1.666666666667")]
)
def test_a_bound_prints_without_needless_zeros(ns: int, text: str) -> None:
    assert print_bound(ns) == text


def test_a_value_equal_to_a_bound_without_finite_decimals_prints_as_the_bound() -> None:
    assert print_minutes(100_000_000_000, 100_000_000_000) == print_bound(100_000_000_000)


def test_a_rate_just_below_100_percent_does_not_print_as_100() -> None:
    assert print_decimal(Fraction(100 * 3999, 4000), Fraction(100), 1) == "99.98"  # 99.975, half to even


# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975.
@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (18, 2.101), (30, 2.042), (60, 2.000), (100, 1.984)],
)
def test_t_quantiles_are_those_of_the_nist_table(df: int, t: float) -> None:
    assert f"{t_quantile(0.975, df):.3f}" == f"{t:.3f}"


def test_t_quantile_of_the_median_is_zero() -> None:
    assert t_quantile(0.5, 7) == pytest.approx(0.0, abs=1e-9)


# I_x(2, 3) = 6x^2 - 8x^3 + 3x^4 by integrating 12 u (1-u)^2; I_x(1/2, 1/2) = 2/pi asin(sqrt(x)).
@pytest.mark.parametrize("x", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_the_incomplete_beta_function_agrees_with_closed_forms(x: float) -> None:
    assert incomplete_beta(x, 2, 3) == pytest.approx(6 * x**2 - 8 * x**3 + 3 * x**4, abs=1e-13)
    assert incomplete_beta(x, 0.5, 0.5) == pytest.approx(2 / math.pi * math.asin(math.sqrt(x)), abs=1e-13)


@pytest.mark.parametrize("n", [1, 4, 12, 21, 52])
def test_all_of_n_has_the_closed_form_lower_limit(n: int) -> None:
    low, high = clopper_pearson(n, n)
    assert low == pytest.approx(0.025 ** (1 / n), abs=1e-12)
    assert high == 1.0


def test_none_of_n_has_the_closed_form_upper_limit() -> None:
    low, high = clopper_pearson(0, 4)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025**0.25, abs=1e-12)


# The defining equations (Clopper & Pearson 1934), as binomial sums: P(X >= k | low) = P(X <= k | high) = 0.025.
@pytest.mark.parametrize(("k", "n"), [(3, 20), (5, 9), (1, 2), (42, 100), (99, 100)])
def test_the_exact_interval_solves_its_defining_equations(k: int, n: int) -> None:
    low, high = clopper_pearson(k, n)

    def mass(p: float, over: range) -> float:
        return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in over)

    assert mass(low, range(k, n + 1)) == pytest.approx(0.025, abs=1e-10)
    assert mass(high, range(k + 1)) == pytest.approx(0.025, abs=1e-10)


def test_the_exact_interval_of_3_in_20_is_the_published_one() -> None:
    low, high = clopper_pearson(3, 20)  # 0.0321 .. 0.3789, e.g. R binom.test(3, 20)
    assert (round(low, 4), round(high, 4)) == (0.0321, 0.3789)


# 0.05^(1/n): exact one-sided limit of n of n.
@pytest.mark.parametrize(("n", "p"), [(4, "0.473"), (12, "0.779"), (59, "0.950"), (299, "0.990")])
def test_n_of_n_supports_the_one_sided_bound(n: int, p: str) -> None:
    assert f"{supported_proportion(n, n):.3f}" == p


def test_no_success_supports_nothing() -> None:
    assert supported_proportion(0, 3) == 0.0


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_rejected(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a count"):
        clopper_pearson(k, n)


def test_the_cox_interval_of_two_runs_is_the_hand_calculation() -> None:
    # logs 0 and 2: y = 1, s^2 = 2; centre 1 + 2/2 = 2; se = sqrt(2/2 + 4/(2*1)) = sqrt(3); t(1) = 12.7062.
    interval = cox_interval([1_000_000, round(1_000_000 * math.exp(2))])
    assert interval is not None
    assert interval.mean / 1e6 == pytest.approx(math.exp(2), rel=1e-5)
    assert interval.high / 1e6 == pytest.approx(math.exp(2 + 12.7062 * math.sqrt(3)), rel=1e-4)
    assert interval.low / 1e6 == pytest.approx(math.exp(2 - 12.7062 * math.sqrt(3)), rel=1e-4)


def test_equal_runs_have_an_interval_of_no_width() -> None:
    interval = cox_interval([240, 240, 240])
    assert interval is not None
    assert (interval.low, interval.mean, interval.high) == pytest.approx((240, 240, 240))


@pytest.mark.parametrize("samples", [[], [5], [0, 5], [1, 10**200]])
def test_an_interval_that_is_not_estimable_is_none(samples: list[int]) -> None:
    assert cox_interval(samples) is None


# Conover, Practical Nonparametric Statistics, table A3 and sign-test tables.
@pytest.mark.parametrize(
    ("n", "ranks"),
    [(5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (12, (3, 10)), (20, (6, 15)), (26, (8, 19)), (52, (19, 34))],
)
def test_the_median_interval_uses_the_published_ranks(n: int, ranks: tuple[int, int] | None) -> None:
    assert median_ranks(n) == ranks


def test_a_censored_run_keeps_its_rank_as_infinity() -> None:
    assert median_interval([6, 5, None, 4, 3, 2, 1, 8, 7]) == (2, 8)
    assert median_interval([None, 1, 2, 3, 4, 5]) == (1, None)


# One-sided normal tolerance factors, 95 % content, 95 % confidence (Odeh & Owen 1980, table 1).
@pytest.mark.parametrize(
    ("n", "k"), [(2, "26.260"), (3, "7.656"), (4, "5.144"), (5, "4.203"), (10, "2.911"), (20, "2.396")]
)
def test_tolerance_factors_are_the_published_ones(n: int, k: str) -> None:
    assert f"{tolerance_factor(n):.3f}" == k


def test_the_tolerance_bound_is_mean_plus_k_deviations_of_the_logarithms() -> None:
    # logs 0, 1, 2: mean 1, deviation 1; exp(1 + 7.656).
    samples = [10**6, round(math.e * 10**6), round(math.e**2 * 10**6)]
    bound = upper_tolerance(samples)
    assert bound is not None
    assert bound / 1e6 == pytest.approx(math.exp(8.6559), rel=1e-3)
