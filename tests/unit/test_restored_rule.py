"""When a restored service is healthy: t6 and t7 (R32, requirements 10.2)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from rearguard.model.breach import Limits
from rearguard.model.outcome import Outcome
from rearguard.model.settings import RecoveryPolicy
from rearguard.model.telemetry import SecondCounts
from rearguard.model.time import NS_PER_MS, NS_PER_S
from rearguard.rules.restored import GoldenProbe, Restored, first_good_window, verdict_at_deadline

POLICY = RecoveryPolicy(window_s=10, min_samples=100, min_probes=5)
LIMITS = Limits(
    latency_limit_ms=Decimal(125),
    error_limit_ratio=Decimal("0.01"),
    compliance_baseline=Decimal(98),
    compliance_drop_points=Decimal(2),
)
T5_NS = 500 * NS_PER_S + 400 * NS_PER_MS


def traffic(start_s: int, end_s: int, **changes: Any) -> list[SecondCounts]:
    return [SecondCounts(second=s, **({"requests": 20, "timed": 20} | changes)) for s in range(start_s, end_s)]


def probes(start_s: float, end_s: float, *, ok: bool = True, latency: str = "5") -> list[GoldenProbe]:
    """One a second, from `start_s` up to and without `end_s`."""
    found, at_ns = [], round(start_s * NS_PER_S)
    while at_ns < round(end_s * NS_PER_S):
        reason = "" if ok else "output_differs"
        found.append(GoldenProbe(at_mono_ns=at_ns, ok=ok, reason=reason, latency_ms=Decimal(latency)))
        at_ns += NS_PER_S
    return found


def find(seconds: list[SecondCounts], golden: list[GoldenProbe], now: float, limits: Limits = LIMITS) -> Restored:
    return first_good_window(
        ready_mono_ns=T5_NS,
        now_mono_ns=round(now * NS_PER_S),
        seconds=seconds,
        probes=golden,
        policy=POLICY,
        limits=limits,
    )


def at_deadline(seconds: list[SecondCounts], golden: list[GoldenProbe], now: float = 530) -> Restored:
    return verdict_at_deadline(
        ready_mono_ns=T5_NS,
        now_mono_ns=round(now * NS_PER_S),
        seconds=seconds,
        probes=golden,
        policy=POLICY,
        limits=LIMITS,
    )


def test_a_service_that_is_healthy_at_once_is_restored_at_t5() -> None:
    found = find(traffic(500, 530), probes(500.5, 530), now=511)
    assert found == Restored(
        outcome=Outcome.PASS,
        t6_mono_ns=T5_NS,
        t7_mono_ns=T5_NS + 10 * NS_PER_S,
        judged_by="traffic",
        samples=180,  # the 10 s after 500.4 hold 9 whole seconds
        reason="in_limit",
    )


def test_t6_is_credited_only_once_the_window_and_its_last_second_are_complete() -> None:
    assert find(traffic(500, 530), probes(500.5, 530), now=510.999).reason == "waiting"
    assert find(traffic(500, 530), probes(500.5, 530), now=511).outcome is Outcome.PASS


def test_a_t6_on_a_whole_second_needs_no_further_second() -> None:
    found = first_good_window(
        ready_mono_ns=500 * NS_PER_S,
        now_mono_ns=510 * NS_PER_S,
        seconds=traffic(500, 510),
        probes=probes(500, 510),
        policy=POLICY,
        limits=LIMITS,
    )
    assert (found.t6_mono_ns, found.samples) == (500 * NS_PER_S, 200)


def test_errors_after_the_switch_move_t6_to_the_first_window_in_limit() -> None:
    # 10 failures in second 503. A window of 10 s with 200 requests may hold 2; the first without it starts at 504.
    seconds = traffic(500, 503) + traffic(503, 504, failures=10) + traffic(504, 530)
    found = find(seconds, probes(500.5, 530), now=530)
    assert (found.t6_mono_ns, found.t7_mono_ns) == (504 * NS_PER_S, 514 * NS_PER_S)


def test_slow_requests_move_t6_too() -> None:
    # Of 200 requests 10 may be over the limit (5 %), so 11 must have left the window.
    seconds = traffic(500, 502) + traffic(502, 503, over_latency=11) + traffic(503, 530)
    assert find(seconds, probes(500.5, 530), now=530).t6_mono_ns == 503 * NS_PER_S


def test_errors_at_exactly_the_limit_do_not_delay() -> None:
    seconds = traffic(500, 502) + traffic(502, 503, failures=2) + traffic(503, 530)
    assert find(seconds, probes(500.5, 530), now=511).t6_mono_ns == 501 * NS_PER_S  # 2 of 200


def test_good_requests_of_a_second_that_t5_cuts_do_not_dilute_failures() -> None:
    # 1000 good requests in second 500, most of them perhaps before t5; 2 of the 180 in the whole seconds after failed.
    seconds = traffic(500, 501, requests=1000) + traffic(501, 502, failures=2) + traffic(502, 530)
    assert find(seconds, probes(500.5, 530), now=511).t6_mono_ns == 501 * NS_PER_S


def test_failures_of_a_second_that_t5_cuts_count_in_full() -> None:
    seconds = traffic(500, 501, failures=2) + traffic(501, 530)
    assert find(seconds, probes(500.5, 530), now=511).t6_mono_ns == 501 * NS_PER_S


def test_a_failed_golden_probe_moves_t6_to_the_whole_second_after_it() -> None:
    golden = probes(500.5, 504) + probes(504.5, 505, ok=False) + probes(505.5, 530)
    assert find(traffic(500, 530), golden, now=530).t6_mono_ns == 505 * NS_PER_S


def test_a_probe_that_fails_at_t7_itself_still_forbids_the_window() -> None:
    at_t7 = GoldenProbe(at_mono_ns=T5_NS + 10 * NS_PER_S, ok=False, reason="no_answer", latency_ms=None)
    assert find(traffic(500, 530), [*probes(500.5, 510), at_t7], now=511).reason == "waiting"


def test_a_failed_probe_before_t5_does_not_matter() -> None:
    golden = probes(500.399, 500.4, ok=False) + probes(500.5, 530)
    assert find(traffic(500, 530), golden, now=511).t6_mono_ns == T5_NS


def test_traffic_alone_without_any_golden_probe_is_not_enough() -> None:
    assert find(traffic(500, 530), [], now=530).reason == "waiting"


def test_with_too_little_traffic_the_golden_probes_decide() -> None:
    found = find(traffic(500, 530, requests=1, timed=1), probes(500.5, 530), now=511)
    assert (found.t6_mono_ns, found.judged_by, found.samples) == (T5_NS, "golden_probes", 10)


@pytest.mark.parametrize(("count", "reason"), [(4, "waiting"), (5, "in_limit")])
def test_the_golden_probes_must_be_enough(count: int, reason: str) -> None:
    assert find([], probes(500.5, 500.5 + count), now=511).reason == reason


def test_slow_golden_probes_do_not_restore() -> None:
    # One of ten is more than 5 %.
    golden = probes(500.5, 501, latency="125.001") + probes(501.5, 530)
    assert find([], golden, now=511).t6_mono_ns == 501 * NS_PER_S
    assert find([], probes(500.5, 530, latency="125.001"), now=530).reason == "waiting"


def test_golden_probes_at_exactly_the_latency_limit_restore() -> None:
    assert find([], probes(500.5, 530, latency="125.000"), now=511).outcome is Outcome.PASS


def test_golden_probes_do_not_outweigh_clients_that_really_failed() -> None:
    # 50 requests, 2 failed: over 1 % even if the 50 that are missing to 100 had all been good.
    few = traffic(500, 530, requests=5, timed=5)
    few[0] = SecondCounts(second=500, requests=5, timed=5, failures=2)
    assert find(few, probes(500.5, 530), now=530).t6_mono_ns == 501 * NS_PER_S
    always = [SecondCounts(second=s, requests=1, failures=1) for s in range(500, 530)]
    assert find(always, probes(500.5, 530), now=530).reason == "waiting"
    assert at_deadline(always, probes(500.5, 530)).reason == "slo_still_breached"


def test_one_failure_of_few_requests_is_not_yet_over_the_limit() -> None:
    few = [SecondCounts(second=500, requests=5, timed=5, failures=1)]
    assert find(few, probes(500.5, 530), now=511).t6_mono_ns == T5_NS


def test_traffic_without_latencies_leaves_latency_to_the_probes() -> None:
    untimed = traffic(500, 530, timed=0)
    assert find(untimed, probes(500.5, 530), now=511).judged_by == "traffic"
    assert find(untimed, probes(500.5, 530, latency="126"), now=530).reason == "waiting"
    assert find(untimed, probes(500.5, 504), now=511).reason == "waiting"  # 4 probes are too few to know


def test_compliance_blocks_only_with_enough_scores() -> None:
    low = {"scores": 10, "score_sum": Decimal(960)}
    assert find(traffic(500, 530, **low), probes(500.5, 530), now=530).reason == "waiting"
    few = {"scores": 9, "score_sum": Decimal(0)}  # 99 in the 11 s that the window touches
    assert find(traffic(500, 530, **few), probes(500.5, 530), now=511).outcome is Outcome.PASS


def test_a_drop_smaller_than_two_points_does_not_block() -> None:
    almost = {"scores": 10, "score_sum": Decimal("960.001")}
    assert find(traffic(500, 530, **almost), probes(500.5, 530), now=511).outcome is Outcome.PASS


def test_triggers_that_are_off_are_not_judged() -> None:
    off = Limits(
        latency_limit_ms=None, error_limit_ratio=None, compliance_baseline=None, compliance_drop_points=Decimal(2)
    )
    bad = traffic(500, 530, failures=20, over_latency=20, scores=20)
    assert find(bad, probes(500.5, 530), now=511, limits=off).outcome is Outcome.PASS


def test_t6_once_found_does_not_move_with_later_data() -> None:
    seconds = traffic(500, 503) + traffic(503, 504, failures=10) + traffic(504, 520) + traffic(520, 560, failures=20)
    found = [find(seconds, probes(500.5, 560), now=now) for now in range(514, 560)]
    assert {one.t6_mono_ns for one in found} == {504 * NS_PER_S}


def test_a_slo_still_in_breach_at_the_deadline_fails() -> None:
    verdict = at_deadline(traffic(500, 530, failures=20), probes(500.5, 530))
    assert (verdict.outcome, verdict.reason) == (Outcome.FAIL, "slo_still_breached")
    assert (verdict.t6_mono_ns, verdict.t7_mono_ns) == (None, None)


def test_a_golden_probe_that_fails_near_the_deadline_fails() -> None:
    verdict = at_deadline(traffic(500, 530), probes(500.5, 525, ok=False) + probes(525.5, 530))
    assert (verdict.outcome, verdict.reason) == (Outcome.FAIL, "golden_probe_failed")


def test_neither_traffic_nor_probes_at_the_deadline_is_inconclusive() -> None:
    verdict = at_deadline([], probes(526.5, 530))
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, "too_few_samples")


def test_nothing_at_all_at_the_deadline_is_inconclusive() -> None:
    assert at_deadline([], []).reason == "too_few_samples"


def test_a_deadline_before_a_whole_window_is_inconclusive() -> None:
    verdict = at_deadline(traffic(500, 509), probes(500.5, 509), now=509)
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, "window_incomplete")


def test_a_good_window_before_the_deadline_passes() -> None:
    verdict = at_deadline(traffic(500, 530), probes(500.5, 530))
    assert (verdict.outcome, verdict.t6_mono_ns) == (Outcome.PASS, T5_NS)
