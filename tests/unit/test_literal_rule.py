"""The literal rule: exact limits (R20-R23), samples and persistence (R27), windows, streaks and t0."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from rearguard.errors import InternalError
from rearguard.model.breach import Judgement, Limits, LiteralPolicy, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import RequestSeen, SecondCounts
from rearguard.model.time import NS_PER_S
from rearguard.rules.breach import literal
from rearguard.rules.breach.literal import RuleState, initial, judge
from rearguard.watch.counts import Counts

DIGEST = Digest("sha256:" + "ab" * 32)
LIMITS = Limits(
    latency_limit_ms=Decimal(125),
    error_limit_ratio=Decimal("0.01"),
    compliance_baseline=Decimal("98.0"),
    compliance_drop_points=Decimal("2.0"),
)
ERRORS_ONLY = Limits(
    latency_limit_ms=None, error_limit_ratio=Decimal("0.01"), compliance_baseline=None, compliance_drop_points=None
)
START_S = 1000
ONE = LiteralPolicy(window_s=10, step_s=10, for_windows=1, min_samples=100)
TWO = replace(ONE, for_windows=2)


def errors(second: int, failures: int, requests: int) -> SecondCounts:
    first = second * NS_PER_S + 7 if failures else None
    return SecondCounts(second=second, requests=requests, failures=failures, first_failure_ns=first)


def scores(second: int, values: list[Decimal]) -> SecondCounts:
    return SecondCounts(second=second, scores=len(values), score_sum=sum(values, Decimal(0)))


def run(
    *seconds: SecondCounts, policy: LiteralPolicy = ONE, limits: Limits = LIMITS, now_s: int = START_S + 10
) -> tuple[RuleState, dict[Trigger, Judgement]]:
    state, judgements = judge(initial(DIGEST, START_S), policy, limits, DIGEST, seconds, now_s)
    return state, {judgement.trigger: judgement for judgement in judgements}


# R22


@pytest.mark.parametrize(
    ("failures", "requests", "outcome"),
    [
        (1, 100, Outcome.PASS),  # 1.000 %
        (1000, 100_000, Outcome.PASS),  # 1.000 %
        (1001, 100_000, Outcome.FAIL),  # 1.001 %
        (2, 199, Outcome.FAIL),  # 1.005 %
        (2, 200, Outcome.PASS),  # 1.000 %
        (0, 100, Outcome.PASS),
        (100, 100, Outcome.FAIL),
    ],
)
def test_errors_fire_strictly_above_the_limit(failures: int, requests: int, outcome: Outcome) -> None:
    _, told = run(errors(START_S, failures, requests))
    assert told[Trigger.ERRORS].outcome is outcome


# R21


def p95_outcome(latencies: list[Decimal]) -> Outcome:
    """Through the real counting: target 120 and margin 5 make a limit of 125 ms."""
    place = Place(service="fraud", env="prod")
    counts = Counts(place, lambda _: LIMITS)
    at_ns = START_S * NS_PER_S
    counts.add(
        RequestSeen(place=place, digest=DIGEST, at_mono_ns=at_ns, at_wall_ns=0, latency_ms=value, failed=False)
        for value in latencies
    )
    _, told = run(*counts.seconds(DIGEST, START_S, START_S + 10))
    return told[Trigger.LATENCY].outcome


def test_a_p95_of_exactly_target_plus_5_ms_is_in_limit() -> None:
    assert p95_outcome([Decimal("10")] * 94 + [Decimal("125.0")] * 6) is Outcome.PASS


def test_a_p95_of_a_thousandth_of_a_millisecond_more_fires() -> None:
    # Nearest rank: of 100 the 95th smallest, which is the first of the six.
    assert p95_outcome([Decimal("10")] * 94 + [Decimal("125.001")] * 6) is Outcome.FAIL


def test_five_of_a_hundred_over_the_limit_are_no_breach() -> None:
    assert p95_outcome([Decimal("10")] * 95 + [Decimal("9999")] * 5) is Outcome.PASS


# R20, R23


@pytest.mark.parametrize(
    ("mean", "outcome"),
    [("96.0", Outcome.FAIL), ("96.0001", Outcome.PASS), ("95.9999", Outcome.FAIL), ("98.0", Outcome.PASS)],
)
def test_compliance_fires_at_a_drop_of_exactly_two_points(mean: str, outcome: Outcome) -> None:
    _, told = run(scores(START_S, [Decimal(mean)] * 100))
    assert told[Trigger.COMPLIANCE].outcome is outcome


def test_no_exact_drop_of_two_hundredths_is_lost_to_binary_fractions() -> None:
    # R23's trap: on a 0-1 scale some baselines b give b - (b - 0.02) < 0.02 in binary floating point.
    lost_in_float, fired = 0, 0
    for hundredths in range(2, 102):
        baseline = Decimal(hundredths) / 100
        current = baseline - Decimal("0.02")
        lost_in_float += float(baseline) - float(current) < 0.02
        limits = replace(LIMITS, compliance_baseline=baseline, compliance_drop_points=Decimal("0.02"))
        _, told = run(scores(START_S, [current] * 100), limits=limits)
        fired += told[Trigger.COMPLIANCE].outcome is Outcome.FAIL
    assert lost_in_float > 0  # the trap is real on this machine
    assert fired == 100


def test_a_drop_smaller_by_the_thirtieth_digit_does_not_fire() -> None:
    # The default decimal context keeps 28 digits and would round this mean to 96.
    mean = Decimal("96.0000000000000000000000000000001")
    second = SecondCounts(second=START_S, scores=100, score_sum=Decimal("9600.0000000000000000000000000000100"))
    assert mean > 96
    _, told = run(second)
    assert told[Trigger.COMPLIANCE].outcome is Outcome.PASS


def test_a_mean_that_is_no_decimal_is_judged_exactly() -> None:
    # 2 * 96 + 96.0001 over 3 is 96.0000333...: a drop of 1.99996667, no breach; 96 * 3 is one.
    few = replace(ONE, min_samples=3)
    almost = scores(START_S, [Decimal(96), Decimal(96), Decimal("96.0001")])
    assert run(almost, policy=few)[1][Trigger.COMPLIANCE].outcome is Outcome.PASS
    exact = scores(START_S, [Decimal(95), Decimal(96), Decimal(97)])
    assert run(exact, policy=few)[1][Trigger.COMPLIANCE].outcome is Outcome.FAIL


def test_without_a_baseline_compliance_is_inconclusive() -> None:
    _, told = run(scores(START_S, [Decimal(0)] * 100), limits=replace(LIMITS, compliance_baseline=None))
    compliance = told[Trigger.COMPLIANCE]
    assert (compliance.outcome, compliance.reason, compliance.limit) == (Outcome.INCONCLUSIVE, "no_baseline", None)


# R27

G, B, F = "good", "bad", "few"


@pytest.mark.parametrize(
    ("windows", "samples", "outcome", "reason", "streak"),
    [
        ([B], 100, Outcome.INCONCLUSIVE, "over_limit", 1),
        ([B], 99, Outcome.INCONCLUSIVE, "too_few_samples", 0),
        ([B], 0, Outcome.INCONCLUSIVE, "too_few_samples", 0),
        ([G], 100, Outcome.PASS, "in_limit", 0),
        ([G], 99, Outcome.INCONCLUSIVE, "too_few_samples", 0),
        ([B, B], 100, Outcome.FAIL, "breach", 2),
        ([B, B], 99, Outcome.INCONCLUSIVE, "too_few_samples", 0),
        ([B, G, B], 100, Outcome.INCONCLUSIVE, "over_limit", 1),
        ([B, F, B], 100, Outcome.INCONCLUSIVE, "over_limit", 1),
        ([B, F], 100, Outcome.INCONCLUSIVE, "too_few_samples", 0),
        ([F, B, B], 100, Outcome.FAIL, "breach", 2),
        ([B, G, B, B], 100, Outcome.FAIL, "breach", 2),
        ([B, G], 100, Outcome.PASS, "in_limit", 0),
    ],
)
def test_table_of_samples_and_streak(
    windows: list[str], samples: int, outcome: Outcome, reason: str, streak: int
) -> None:
    seconds = []
    for number, kind in enumerate(windows):
        requests = 1 if kind is F else samples
        seconds.append(errors(START_S + 10 * number, requests if kind is B or kind is F else 0, requests))
    _, told = run(*seconds, policy=TWO, limits=ERRORS_ONLY, now_s=START_S + 10 * len(windows))
    judged = told[Trigger.ERRORS]
    assert (judged.outcome, judged.reason, judged.streak) == (outcome, reason, streak)


def test_the_default_policy_is_the_literal_profile() -> None:
    policy = LiteralPolicy()
    assert (policy.window_s, policy.for_windows, policy.min_samples) == (60, 2, 100)


def test_each_trigger_needs_samples_of_its_own_kind() -> None:
    second = SecondCounts(second=START_S, requests=100, timed=99, over_latency=99, scores=99, score_sum=Decimal(0))
    _, told = run(second)
    assert {trigger: judged.reason for trigger, judged in told.items()} == {
        Trigger.COMPLIANCE: "too_few_samples",
        Trigger.LATENCY: "too_few_samples",
        Trigger.ERRORS: "in_limit",
    }


def test_an_empty_window_is_never_in_limit_even_with_a_minimum_of_zero() -> None:
    _, told = run(policy=replace(ONE, min_samples=0))
    assert {judged.reason for judged in told.values()} == {"too_few_samples"}


def test_a_trigger_without_limit_is_not_judged() -> None:
    _, told = run(errors(START_S, 100, 100), limits=ERRORS_ONLY)
    assert set(told) == {Trigger.ERRORS}


# Windows


def test_no_window_is_judged_before_it_ends() -> None:
    state, told = run(errors(START_S, 100, 100), now_s=START_S + 9)
    assert told == {}
    assert state == initial(DIGEST, START_S)


def test_a_window_is_judged_once() -> None:
    seconds = (errors(START_S, 100, 100),)
    state, first = judge(initial(DIGEST, START_S), TWO, ERRORS_ONLY, DIGEST, seconds, START_S + 10)
    state, second = judge(state, TWO, ERRORS_ONLY, DIGEST, seconds, START_S + 10)
    assert (len(first), second, state.errors.windows) == (1, (), 1)


def test_windows_end_at_start_plus_steps_and_cover_their_length() -> None:
    sliding = LiteralPolicy(window_s=10, step_s=5, for_windows=1, min_samples=1)
    _, told = run(errors(START_S + 2, 0, 1), policy=sliding, limits=ERRORS_ONLY, now_s=START_S + 24)
    # Ends: 1005, 1010, 1015, 1020; the last window is [1010, 1020).
    newest = told[Trigger.ERRORS]
    assert (newest.window_start_s, newest.window_end_s, newest.samples) == (START_S + 10, START_S + 20, 0)


def test_a_second_counts_in_the_window_it_starts_not_in_the_one_it_ends() -> None:
    _, told = run(errors(START_S + 9, 0, 100), errors(START_S + 10, 100, 100), limits=ERRORS_ONLY)
    assert (told[Trigger.ERRORS].samples, told[Trigger.ERRORS].outcome) == (100, Outcome.PASS)


def test_seconds_before_the_watch_began_are_not_judged() -> None:
    sliding = replace(ONE, step_s=5)
    _, told = run(
        errors(START_S - 1, 100, 100), errors(START_S, 0, 100), policy=sliding, limits=ERRORS_ONLY, now_s=START_S + 5
    )
    judged = told[Trigger.ERRORS]
    assert (judged.window_start_s, judged.samples, judged.outcome) == (START_S, 100, Outcome.PASS)


def test_a_fail_among_several_windows_wins_over_the_newest() -> None:
    seconds = [errors(START_S, 100, 100), errors(START_S + 10, 100, 100), errors(START_S + 20, 0, 100)]
    state, told = run(*seconds, policy=TWO, limits=ERRORS_ONLY, now_s=START_S + 30)
    assert (told[Trigger.ERRORS].outcome, told[Trigger.ERRORS].window_end_s) == (Outcome.FAIL, START_S + 20)
    assert state.errors.windows == 0


def test_after_a_long_absence_only_the_windows_that_can_still_fire_are_judged() -> None:
    # 17 windows are due; a breach in the first two has passed since, the last two are good.
    seconds = [errors(START_S + 10 * number, 100 if number < 2 else 0, 100) for number in range(17)]
    state, told = run(*seconds, policy=TWO, limits=ERRORS_ONLY, now_s=START_S + 170)
    assert told[Trigger.ERRORS].outcome is Outcome.PASS
    assert state.last_end_s == START_S + 170


def test_after_a_long_absence_a_breach_that_lasts_still_fires() -> None:
    seconds = [errors(START_S + 10 * number, 100, 100) for number in range(1000)]
    state, told = run(*seconds, policy=TWO, limits=ERRORS_ONLY, now_s=START_S + 10_000)
    assert (told[Trigger.ERRORS].outcome, told[Trigger.ERRORS].streak) == (Outcome.FAIL, 2)
    assert state.last_end_s == START_S + 10_000


def test_a_streak_does_not_reach_across_windows_that_were_skipped() -> None:
    state, _ = run(errors(START_S, 100, 100), policy=TWO, limits=ERRORS_ONLY)
    assert state.errors.windows == 1
    last_two = (errors(START_S + 980, 100, 100), errors(START_S + 990, 100, 100))
    state, told = judge(state, TWO, ERRORS_ONLY, DIGEST, last_two, START_S + 1000)
    assert (told[0].streak, told[0].first_bad_mono_ns) == (2, (START_S + 980) * NS_PER_S + 7)


def test_needed_from_names_the_first_second_that_is_read() -> None:
    state, _ = run(now_s=START_S + 20)
    assert literal.needed_from_s(state, ONE) == START_S + 20
    assert literal.needed_from_s(initial(DIGEST, START_S), replace(ONE, window_s=60)) == START_S


def test_a_state_of_another_digest_is_refused() -> None:
    with pytest.raises(InternalError) as caught:
        judge(initial(DIGEST, START_S), ONE, LIMITS, Digest("sha256:" + "cd" * 32), (), START_S + 10)
    assert caught.value.code == "rule_state_digest"


# t0


def test_t0_is_the_first_bad_observation_of_the_first_window_of_the_streak() -> None:
    seconds = [
        errors(START_S + 3, 1, 200),  # bad, but its window is in limit: not part of the breach
        errors(START_S + 12, 0, 100),
        errors(START_S + 14, 50, 100),
        errors(START_S + 13, 10, 100),
        errors(START_S + 21, 100, 100),
    ]
    _, told = run(*seconds, policy=TWO, limits=ERRORS_ONLY, now_s=START_S + 30)
    assert told[Trigger.ERRORS].first_bad_mono_ns == (START_S + 13) * NS_PER_S + 7


def test_t0_stays_while_the_streak_lasts() -> None:
    seconds = [errors(START_S + 10 * number + 1, 100, 100) for number in range(5)]
    state, _ = run(*seconds, policy=TWO, limits=ERRORS_ONLY, now_s=START_S + 50)
    assert (state.errors.windows, state.errors.first_bad_mono_ns) == (5, (START_S + 1) * NS_PER_S + 7)


def test_t0_of_latency_and_compliance_are_their_own_first_bad_observations() -> None:
    second = SecondCounts(
        second=START_S,
        requests=100,
        timed=100,
        over_latency=6,
        first_over_latency_ns=11,
        scores=100,
        score_sum=Decimal(0),
        first_low_score_ns=22,
    )
    _, told = run(second)
    assert told[Trigger.LATENCY].first_bad_mono_ns == 11
    assert told[Trigger.COMPLIANCE].first_bad_mono_ns == 22


def test_t0_is_rather_early_when_no_second_knows_its_first_low_score() -> None:
    _, told = run(SecondCounts(second=START_S, requests=1), scores(START_S + 4, [Decimal(0)] * 100))
    assert told[Trigger.COMPLIANCE].first_bad_mono_ns == (START_S + 4) * NS_PER_S


def test_a_judgement_in_limit_has_no_t0() -> None:
    _, told = run(errors(START_S, 1, 100))
    assert told[Trigger.ERRORS].first_bad_mono_ns is None


# What a judgement shows


def test_a_judgement_shows_what_was_compared() -> None:
    second = SecondCounts(
        second=START_S, requests=200, failures=3, timed=160, over_latency=8, scores=100, score_sum=Decimal("9650")
    )
    _, told = run(second)
    shown = {t: (j.samples, j.exceedances, j.observed, j.limit) for t, j in told.items()}
    assert shown == {
        Trigger.ERRORS: (200, 3, Decimal("0.015"), Decimal("0.01")),
        Trigger.LATENCY: (160, 8, Decimal("0.05"), Decimal("0.05")),
        Trigger.COMPLIANCE: (100, 0, Decimal("96.5"), Decimal("96.0")),
    }


def test_judgements_come_in_the_row_order_of_the_report() -> None:
    _, told = run()
    assert list(told) == [Trigger.COMPLIANCE, Trigger.LATENCY, Trigger.ERRORS]
