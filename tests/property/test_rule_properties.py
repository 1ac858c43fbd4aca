"""Laws of the literal rule, of the counts under it, and of the proof of a recovery."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from rearguard.model.breach import Judgement, Limits, LiteralPolicy, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.settings import RecoveryPolicy
from rearguard.model.telemetry import RequestSeen, SecondCounts
from rearguard.model.time import NS_PER_S
from rearguard.rules.breach.literal import MAX_CATCH_UP_WINDOWS, initial, judge
from rearguard.rules.breach.window import compliance_dropped, errors_over, p95_over
from rearguard.rules.restored import GoldenProbe, first_good_window
from rearguard.watch.counts import Counts

PLACE = Place(service="fraud", env="prod")
DIGEST = Digest("sha256:" + "ab" * 32)
LIMITS = Limits(
    latency_limit_ms=Decimal(125),
    error_limit_ratio=Decimal("0.01"),
    compliance_baseline=Decimal(98),
    compliance_drop_points=Decimal(2),
)

latencies_ms = st.decimals(min_value=0, max_value=250, places=3)
ratios = st.decimals(min_value=0, max_value=1, places=6)
points = st.decimals(min_value=0, max_value=100, places=6)
policies = st.builds(
    LiteralPolicy,
    window_s=st.integers(1, 12),
    step_s=st.integers(1, 12),
    for_windows=st.integers(1, 4),
    min_samples=st.integers(0, 30),
)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[SecondCounts, ...]:
    found = []
    for second in range(draw(st.integers(0, 60))):
        requests, scores = draw(st.integers(0, 20)), draw(st.integers(0, 20))
        failures, over = draw(st.integers(0, requests)), draw(st.integers(0, requests))
        found.append(
            SecondCounts(
                second=second,
                requests=requests,
                failures=failures,
                timed=requests,
                over_latency=over,
                first_failure_ns=second * NS_PER_S + 1 if failures else None,
                first_over_latency_ns=second * NS_PER_S + 2 if over else None,
                scores=scores,
                score_sum=Decimal(scores * draw(st.integers(90, 100))),
                first_low_score_ns=None,
            )
        )
    return tuple(found)


@given(st.lists(latencies_ms, min_size=1, max_size=200), latencies_ms)
def test_nearest_rank_p95_above_the_limit_is_more_than_five_percent_over_it(
    latencies: list[Decimal], limit: Decimal
) -> None:
    rank = 1
    while 100 * rank < 95 * len(latencies):  # nearest rank by its definition: the first with at least 95 % at or below
        rank += 1
    p95 = sorted(latencies)[rank - 1]
    over = sum(latency > limit for latency in latencies)
    assert p95_over(over, len(latencies)) == (p95 > limit) == (Fraction(over, len(latencies)) > Fraction(5, 100))


@given(st.lists(latencies_ms, min_size=1, max_size=200))
def test_the_displayed_p95_agrees_with_the_counted_exceedances(latencies: list[Decimal]) -> None:
    counts = Counts(PLACE, lambda _: LIMITS)
    counts.add(
        RequestSeen(place=PLACE, digest=DIGEST, at_mono_ns=NS_PER_S, at_wall_ns=0, latency_ms=value, failed=False)
        for value in latencies
    )
    [second] = counts.seconds(DIGEST, 1, 2)
    shown = counts.p95_ms(DIGEST, 1, 2)
    assert shown is not None
    assert p95_over(second.over_latency, second.timed) == (shown > 125)


@given(st.integers(0, 10**6), st.integers(1, 10**6), ratios)
def test_errors_are_compared_as_fractions(failures: int, requests: int, limit: Decimal) -> None:
    assert errors_over(failures, requests, limit) == (Fraction(failures, requests) > Fraction(limit))


@given(st.lists(points, min_size=1, max_size=50), points, st.decimals(min_value=0, max_value=5, places=6))
def test_compliance_is_compared_as_fractions(scores: list[Decimal], baseline: Decimal, drop: Decimal) -> None:
    mean = sum((Fraction(value) for value in scores), Fraction(0)) / len(scores)
    dropped = Fraction(baseline) - mean >= Fraction(drop)
    assert compliance_dropped(sum(scores, Decimal(0)), len(scores), baseline, drop) == dropped


@given(st.integers(1, 10_000), st.integers(0, 60))
def test_an_exact_drop_on_a_0_to_1_scale_always_fires(baseline_parts: int, samples: int) -> None:
    baseline = Decimal(baseline_parts) / 10_000
    current = baseline - Decimal("0.02")
    assert compliance_dropped(current * (samples + 1), samples + 1, baseline, Decimal("0.02"))


@given(timelines(), policies, st.lists(st.integers(1, 20), max_size=30))
def test_judging_in_pieces_equals_judging_at_once(
    seconds: tuple[SecondCounts, ...], policy: LiteralPolicy, pieces: list[int]
) -> None:
    end_s = min(len(seconds), policy.step_s * MAX_CATCH_UP_WINDOWS)
    at_once, told_at_once = judge(initial(DIGEST, 0), policy, LIMITS, DIGEST, seconds[:end_s], end_s)
    state, now_s = initial(DIGEST, 0), 0
    newest: dict[Trigger, Judgement] = {}
    failed: dict[Trigger, Judgement] = {}
    for piece in [*pieces, end_s]:
        now_s = min(end_s, now_s + piece)
        state, told = judge(state, policy, LIMITS, DIGEST, seconds[:now_s], now_s)
        for judgement in told:
            newest[judgement.trigger] = judgement
            if judgement.outcome is Outcome.FAIL:
                failed.setdefault(judgement.trigger, judgement)
    assert state == at_once
    assert {judgement.trigger: judgement for judgement in told_at_once} == newest | failed


@given(timelines(), policies, st.integers(1, 60))
def test_a_sustained_breach_of_each_trigger_always_fires(
    before: tuple[SecondCounts, ...], policy: LiteralPolicy, requests: int
) -> None:
    # Whatever came before, `for_windows` whole windows over every limit follow, each with enough samples.
    each = max(requests, policy.min_samples)
    length_s = policy.window_s + policy.step_s * policy.for_windows
    start_s = len(before)
    bad = tuple(
        SecondCounts(
            second=second,
            requests=each,
            failures=each,
            timed=each,
            over_latency=each,
            scores=each,
            score_sum=Decimal(96 * each),
        )
        for second in range(start_s, start_s + length_s)
    )
    state, fired = initial(DIGEST, 0), set()
    for now_s in range(start_s + length_s + 1):
        known = tuple(second for second in before + bad if second.second < now_s)
        state, told = judge(state, policy, LIMITS, DIGEST, known, now_s)
        if now_s > start_s:
            fired |= {judgement.trigger for judgement in told if judgement.outcome is Outcome.FAIL}
    assert fired == set(Trigger)


@st.composite
def seconds_in_limit(draw: st.DrawFn) -> tuple[SecondCounts, ...]:
    """Each second is at or below every limit, so every window is: the limits are on ratios and means."""
    found = []
    for second in range(draw(st.integers(0, 60))):
        requests, scores = draw(st.integers(0, 400)), draw(st.integers(0, 20))
        found.append(
            SecondCounts(
                second=second,
                requests=requests,
                failures=draw(st.integers(0, requests // 100)),
                timed=requests,
                over_latency=draw(st.integers(0, requests // 20)),
                scores=scores,
                score_sum=scores * draw(st.decimals(min_value=Decimal("96.0001"), max_value=100, places=4)),
            )
        )
    return tuple(found)


@given(seconds_in_limit(), policies)
def test_what_stays_in_limit_never_fires(seconds: tuple[SecondCounts, ...], policy: LiteralPolicy) -> None:
    state = initial(DIGEST, 0)
    for now_s in range(len(seconds) + 1):
        state, told = judge(state, policy, LIMITS, DIGEST, seconds[:now_s], now_s)
        assert all(judgement.reason in {"in_limit", "too_few_samples"} for judgement in told)


@settings(max_examples=60)
@given(timelines(), st.integers(0, 5 * NS_PER_S), st.lists(st.booleans(), min_size=60, max_size=60))
def test_every_good_window_is_in_limit_and_t6_does_not_depend_on_when_it_is_asked(
    seconds: tuple[SecondCounts, ...], ready_ns: int, answers: list[bool]
) -> None:
    policy = RecoveryPolicy(window_s=5, min_samples=20, min_probes=3)
    probes = [
        GoldenProbe(at_mono_ns=s * NS_PER_S + 1, ok=ok, reason="", latency_ms=Decimal(1))
        for s, ok in enumerate(answers)
    ]
    first = None
    for now_s in range(len(seconds) + 1):
        found = first_good_window(
            ready_mono_ns=ready_ns,
            now_mono_ns=now_s * NS_PER_S,
            seconds=seconds[:now_s],
            probes=[probe for probe in probes if probe.at_mono_ns <= now_s * NS_PER_S],
            policy=policy,
            limits=LIMITS,
        )
        if first is not None:
            assert found == first
        elif found.outcome is Outcome.PASS:
            first = found
            t6, t7 = found.t6_mono_ns, found.t7_mono_ns
            assert t6 is not None
            assert t7 is not None
            assert ready_ns <= t6 < t7 == t6 + 5 * NS_PER_S <= now_s * NS_PER_S
            assert all(probe.ok for probe in probes if t6 <= probe.at_mono_ns <= t7)
            inside = [s for s in seconds if t6 // NS_PER_S <= s.second < -(-t7 // NS_PER_S)]
            requests = max(sum(s.requests for s in inside), 20)
            assert 100 * sum(s.failures for s in inside) <= requests
            assert 100 * sum(s.over_latency for s in inside) <= 5 * requests
