"""The grey zone: a literal limit is exceeded over the trailing window, and nothing has been decided."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from rearguard.model.breach import Limits, LiteralPolicy, Trigger
from rearguard.model.service import Digest
from rearguard.model.telemetry import SecondCounts
from rearguard.rules.breach import grey
from rearguard.rules.breach.grey import GreyState, Move

DIGEST = Digest("sha256:" + "a" * 64)
POLICY = LiteralPolicy(window_s=10, step_s=10, for_windows=99, min_samples=100)
LIMITS = Limits(
    latency_limit_ms=Decimal(125),
    error_limit_ratio=Decimal("0.01"),
    compliance_baseline=Decimal(95),
    compliance_drop_points=Decimal(2),
)


def good(second: int, requests: int = 20) -> SecondCounts:
    return SecondCounts(second=second, requests=requests, timed=requests)


def bad(second: int, failures: int = 5) -> SecondCounts:
    return SecondCounts(second=second, requests=20, timed=20, failures=failures)


def moves(
    seconds: list[SecondCounts],
    until_s: int,
    *,
    since_s: int = 0,
    state: GreyState | None = None,
    policy: LiteralPolicy = POLICY,
    limits: Limits = LIMITS,
) -> list[tuple[int, str, str]]:
    """What a look a second from `since_s` on told: second, trigger, move."""
    state = state or GreyState(digest=DIGEST)
    told = []
    for now_s in range(since_s, until_s + 1):
        state, changes = grey.look(state, policy, limits, tuple(s for s in seconds if s.second < now_s), now_s)
        told += [(now_s, c.finding.trigger.value, c.move.value) for c in changes]
    return told


def test_nothing_is_told_while_everything_is_in_limit() -> None:
    assert moves([good(s) for s in range(60)], 60) == []


def test_it_is_entered_with_the_first_second_that_brings_the_window_over_its_limit() -> None:
    """200 requests a window: 2 failures are 1 %, not over it; 3 are."""
    seconds = [good(s) for s in range(20)] + [bad(20, 1), bad(21, 1), bad(22, 1)] + [good(s) for s in range(23, 26)]
    assert moves(seconds, 26) == [(23, "errors", "entered")]


def test_it_is_not_entered_below_the_minimum_of_samples() -> None:
    assert moves([bad(s, 20) for s in range(4)], 4) == []
    assert moves([bad(s, 20) for s in range(5)], 5) == [(5, "errors", "entered")]


def test_a_window_longer_than_a_minute_is_looked_at_over_one_minute() -> None:
    policy = replace(POLICY, window_s=600, step_s=600)
    seconds = [good(s) for s in range(500)] + [bad(s, 1) for s in range(500, 560)]
    # 1200 requests in a minute, of which 13 failures are the first count above 1 %.
    assert moves(seconds, 560, policy=policy) == [(513, "errors", "entered")]


def test_it_is_left_after_one_whole_window_in_limit() -> None:
    """Over its limit is last the window [14, 24), which still holds three failures of the second 14."""
    seconds = [good(s) for s in range(14)] + [bad(14, 3)] + [good(s) for s in range(15, 60)]
    assert moves(seconds, 60) == [(15, "errors", "entered"), (34, "errors", "left")]


def test_silence_leaves_nothing() -> None:
    seconds = [good(s) for s in range(14)] + [bad(14, 3)]
    assert moves(seconds, 500) == [(15, "errors", "entered")]


def test_what_comes_again_within_fifteen_minutes_is_not_told_again() -> None:
    def fault(second: int) -> list[SecondCounts]:
        return [bad(second, 3) if s == second else good(s) for s in range(second - 20, second + 40)]

    seconds = fault(20) + fault(500) + fault(905) + fault(1000)  # entered at 21: quiet until 921
    assert moves(seconds, 1100) == [
        (21, "errors", "entered"),
        (40, "errors", "left"),
        (1001, "errors", "entered"),
        (1020, "errors", "left"),
    ]


def test_what_lasts_is_told_again_at_the_fifteenth_minute_when_it_was_left_in_between() -> None:
    state = GreyState(digest=DIGEST, errors=grey.Zone(entered_s=100))
    seconds = [bad(s) for s in range(980, 1010)]
    assert moves(seconds, 1009, since_s=990, state=state) == [(1000, "errors", "entered")]


def test_each_trigger_has_a_zone_of_its_own() -> None:
    slow = [SecondCounts(second=s, requests=20, timed=20, over_latency=2) for s in range(10)]
    scores = [SecondCounts(second=s, scores=20, score_sum=Decimal(20 * 93)) for s in range(10, 20)]
    assert moves(slow + scores, 20) == [(5, "latency", "entered"), (15, "compliance", "entered")]


def test_a_drop_of_exactly_the_limit_counts_as_over_it_as_in_the_literal_rule() -> None:
    """R20 is inclusive: 95 - 93 >= 2."""
    scores = [SecondCounts(second=s, scores=20, score_sum=Decimal(20 * 93)) for s in range(5)]
    _, changes = grey.look(GreyState(digest=DIGEST), POLICY, LIMITS, tuple(scores), 5)
    (change,) = changes
    assert (change.finding.observed, change.finding.limit) == (93, 93)


def test_an_entry_says_counts_limit_and_window() -> None:
    seconds = tuple(bad(s, 1) for s in range(5))
    _, changes = grey.look(GreyState(digest=DIGEST), POLICY, LIMITS, seconds, 5)
    (change,) = changes
    assert (change.move, change.finding.trigger) == (Move.ENTERED, Trigger.ERRORS)
    assert (change.finding.samples, change.finding.exceedances, change.finding.limit) == (100, 5, Decimal("0.01"))
    assert (change.finding.observed, change.window_start_s, change.window_end_s) == (Decimal("0.05"), -5, 5)


OFF = Limits(latency_limit_ms=None, error_limit_ratio=None, compliance_baseline=None, compliance_drop_points=None)
EVERYTHING_WRONG = [
    SecondCounts(second=s, requests=20, timed=20, failures=20, over_latency=20, scores=20) for s in range(20)
]


def test_a_trigger_without_limit_is_never_entered() -> None:
    assert moves(EVERYTHING_WRONG, 20, limits=OFF) == []


def test_a_trigger_that_was_switched_off_is_left() -> None:
    state = GreyState(digest=DIGEST, errors=grey.Zone(inside=True, entered_s=0, over_s=0))
    assert moves(EVERYTHING_WRONG, 1, since_s=1, state=state, limits=OFF) == [(1, "errors", "left")]


@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_a_limit_that_is_no_finite_number_compares_with_nothing(value: str) -> None:
    strange = Decimal(value)
    limits = Limits(
        latency_limit_ms=strange,
        error_limit_ratio=strange,
        compliance_baseline=strange,
        compliance_drop_points=strange,
    )
    assert moves(EVERYTHING_WRONG, 20, limits=limits) == []


def test_a_second_look_at_the_same_second_changes_nothing() -> None:
    state, _ = grey.look(GreyState(digest=DIGEST), POLICY, LIMITS, (), 5)
    assert grey.look(state, POLICY, LIMITS, tuple(bad(s) for s in range(5)), 5) == (state, ())


def test_leaving_everything_keeps_when_it_was_entered() -> None:
    state, _ = grey.look(GreyState(digest=DIGEST), POLICY, LIMITS, tuple(bad(s) for s in range(5)), 5)
    left = grey.leave(state)
    assert (state.inside, left.inside, left.errors.entered_s) == ((Trigger.ERRORS,), (), 5)
