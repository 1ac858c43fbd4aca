"""Counts of one place: folding, forgetting, the newest digest, the displayed p95, and the compliance baseline."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from decimal import Decimal

import pytest

from rearguard.model.breach import Limits
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import RequestSeen, ScoreSeen, SecondCounts
from rearguard.model.time import NS_PER_S
from rearguard.watch.counts import MAX_DIGESTS, Counts, baseline

PLACE = Place(service="fraud", env="prod")
A, B = Digest("sha256:" + "aa" * 32), Digest("sha256:" + "bb" * 32)
LIMITS = Limits(
    latency_limit_ms=Decimal(125),
    error_limit_ratio=Decimal("0.01"),
    compliance_baseline=Decimal(98),
    compliance_drop_points=Decimal(2),
)


def request(
    at_s: float, latency: str | None = "10", *, failed: bool = False, digest: Digest = A, place: Place = PLACE
) -> RequestSeen:
    return RequestSeen(
        place=place,
        digest=digest,
        at_mono_ns=round(at_s * NS_PER_S),
        at_wall_ns=0,
        latency_ms=None if latency is None else Decimal(latency),
        failed=failed,
    )


def score(at_s: float, value: str, *, digest: Digest = A) -> ScoreSeen:
    return ScoreSeen(place=PLACE, digest=digest, at_mono_ns=round(at_s * NS_PER_S), at_wall_ns=0, score=Decimal(value))


@pytest.fixture
def counts() -> Counts:
    return Counts(PLACE, lambda _: LIMITS)


def test_requests_fold_into_the_second_they_completed_in(counts: Counts) -> None:
    counts.add(
        [
            request(100.9, "125"),
            request(100.1, "125.001"),
            request(100.5, "999", failed=True),
            request(100.2, None, failed=True),
            request(101.0),
        ]
    )
    assert counts.seconds(A, 100, 102) == (
        SecondCounts(
            second=100,
            requests=4,
            failures=2,
            timed=3,
            over_latency=2,
            first_failure_ns=100_200_000_000,
            first_over_latency_ns=100_100_000_000,
        ),
        SecondCounts(second=101, requests=1, timed=1),
    )


def test_scores_fold_into_exact_sums_and_the_first_below_the_baseline(counts: Counts) -> None:
    counts.add([score(7.5, "97.9"), score(7.2, "98"), score(7.4, "0.1")])
    assert counts.seconds(A, 7, 8) == (
        SecondCounts(second=7, scores=3, score_sum=Decimal("196.0"), first_low_score_ns=7_400_000_000),
    )


def test_a_sum_of_many_digits_is_not_rounded(counts: Counts) -> None:
    counts.add([score(7, "99.0000000000000000000000000000001"), score(7, "1")])
    assert counts.seconds(A, 7, 8)[0].score_sum == Decimal("100.0000000000000000000000000000001")


def test_seconds_are_half_open_and_in_order_and_leave_out_the_empty(counts: Counts) -> None:
    counts.add([request(13), request(10), request(12), request(11, digest=B)])
    assert [second.second for second in counts.seconds(A, 10, 13)] == [10, 12]
    assert [second.second for second in counts.seconds(A, 0, 10_000)] == [10, 12, 13]
    assert counts.seconds(Digest("sha256:" + "cc" * 32), 0, 100) == ()


def test_a_late_observation_counts_into_its_own_second(counts: Counts) -> None:
    counts.add([request(200)])
    counts.add([request(140)])
    assert [(s.second, s.requests) for s in counts.seconds(A, 100, 300)] == [(140, 1), (200, 1)]


def test_observations_of_other_places_are_left_out(counts: Counts) -> None:
    counts.add([request(10, place=Place(service="fraud", env="staging"))])
    assert counts.digests() == ()


def test_a_baseline_that_is_set_later_counts_from_then_on() -> None:
    limits = replace(LIMITS, compliance_baseline=None)
    counts = Counts(PLACE, lambda _: limits)
    counts.add([score(10.1, "50")])
    limits = LIMITS
    counts.add([score(10.2, "50")])
    assert counts.seconds(A, 10, 11)[0].first_low_score_ns == 10_200_000_000


def test_limits_are_asked_without_the_lock_so_that_they_may_read_the_counts() -> None:
    seen: list[tuple[Digest, ...]] = []

    def limits_of(_: Digest) -> Limits:
        seen.append(asked.digests())
        return LIMITS

    asked = Counts(PLACE, limits_of)
    asked.add([request(10)])
    assert seen == [()]


def test_the_newest_digest_is_that_of_the_newest_request(counts: Counts) -> None:
    assert counts.newest_digest() is None
    counts.add([request(20, digest=A), request(21, digest=B, failed=True), request(19, digest=A)])
    counts.add([score(30, "99", digest=A)])
    assert counts.newest_digest() == (B, 21 * NS_PER_S)


def test_last_seen_counts_scores_too_and_ignores_the_order(counts: Counts) -> None:
    counts.add([score(30, "99"), request(20)])
    assert counts.last_seen(A) == 30 * NS_PER_S
    assert counts.last_seen(B) is None


def test_digests_come_last_seen_first(counts: Counts) -> None:
    counts.add([request(30, digest=A), request(31, digest=B), request(32, digest=A)])
    assert counts.digests() == (A, B)


def test_what_is_older_than_keep_s_behind_the_newest_is_dropped() -> None:
    counts = Counts(PLACE, lambda _: LIMITS, keep_s=100)
    counts.add([request(1000), request(1001, digest=B)])
    counts.add([request(1101, digest=B)])
    assert counts.digests() == (B,)
    assert [second.second for second in counts.seconds(B, 0, 2000)] == [1001, 1101]
    assert counts.p95_ms(A, 0, 2000) is None


def test_an_observation_too_late_to_be_kept_is_left_out() -> None:
    counts = Counts(PLACE, lambda _: LIMITS, keep_s=100)
    counts.add([request(1101), request(1000)])
    counts.add([request(1000)])
    assert [second.second for second in counts.seconds(A, 0, 2000)] == [1101]


def test_only_the_digests_seen_last_are_kept() -> None:
    counts = Counts(PLACE, lambda _: LIMITS)
    many = [Digest(f"sha256:{number:064x}") for number in range(MAX_DIGESTS + 4)]
    for number, digest in enumerate(many):
        counts.add([request(100 + number, digest=digest)])
    assert counts.digests() == tuple(reversed(many[4:]))


def test_p95_is_the_nearest_rank(counts: Counts) -> None:
    # Of 20 latencies the 19th smallest: ceil(0.95 * 20) = 19. Of 21 the 20th: ceil(19.95) = 20.
    counts.add([request(10, str(value)) for value in range(20, 0, -1)])
    assert counts.p95_ms(A, 10, 11) == 19
    counts.add([request(10, "21"), request(11, "9999"), request(10, None)])
    assert counts.p95_ms(A, 10, 11) == 20
    assert counts.p95_ms(A, 12, 20) is None


def test_the_gauge_is_the_mean_of_each_trailing_window() -> None:
    counts = Counts(PLACE, lambda _: LIMITS)
    counts.add([score(10, "90"), score(10, "92"), score(12, "97")])
    # Windows of 2 s ending at 11: {90, 92}; 12: {90, 92}; 13: {97}; 14: {97}; 15: none.
    expected = (Decimal(91), Decimal(91), Decimal(97), Decimal(97))
    assert counts.gauge_history(A, 2, 10, 20) == expected
    assert counts.gauge_history(A, 2, 0, 1000) == expected
    assert counts.gauge_history(A, 2, 11, 13) == (Decimal(91), Decimal(97))
    assert counts.gauge_history(A, 2, 0, 1000, min_scores=2) == (Decimal(91), Decimal(91))
    # A window of 3 s ending at 13 holds all three: 279 / 3.
    assert counts.gauge_history(A, 3, 12, 13) == (Decimal(93),)
    assert counts.gauge_history(B, 2, 0, 1000) == ()


def test_requests_do_not_move_the_gauge(counts: Counts) -> None:
    counts.add([score(10, "90"), request(11), request(12)])
    assert counts.gauge_history(A, 1, 0, 100) == (Decimal(90),)


@pytest.mark.parametrize(
    ("history", "median"),
    [
        ([], None),
        (["98"], "98"),
        (["99", "97", "98"], "98"),
        (["99", "97.1", "98", "1"], "97.55"),
        (["97.0000000000000000000000000000001", "97"], "97.00000000000000000000000000000005"),
    ],
)
def test_the_baseline_is_the_exact_median(history: list[str], median: str | None) -> None:
    assert baseline([Decimal(value) for value in history]) == (None if median is None else Decimal(median))


def test_threads_may_count_and_read_at_once(counts: Counts) -> None:
    faults: list[Exception] = []

    def count(first_s: int) -> None:
        try:
            for second in range(first_s, first_s + 600):
                counts.add([request(second)])
        except Exception as fault:
            faults.append(fault)

    def read() -> None:
        try:
            while writers[0].is_alive() or writers[1].is_alive():
                counts.seconds(A, 0, 10**9)  # goes over all kept seconds while others are added
        except Exception as fault:
            faults.append(fault)

    writers = [threading.Thread(target=count, args=(first_s,)) for first_s in (0, 600)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in [*writers, *readers]:
            thread.start()
        for thread in [*writers, *readers]:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert faults == []
    assert sum(second.requests for second in counts.seconds(A, 0, 1200)) == 1200
