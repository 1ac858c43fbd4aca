"""Which jobs of the house are due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rearguard.rules.schedule import Period, due

S = 1_000_000_000
FAST, SLOW = Period(name="fast", every_s=0.5), Period(name="slow", every_s=60)


def test_a_job_that_never_ran_is_due_at_once() -> None:
    assert due((FAST, SLOW), {}, 7 * S) == ("fast", "slow")


def test_a_job_is_due_when_its_period_has_passed_and_not_before() -> None:
    assert due((SLOW,), {"slow": 100 * S}, 160 * S - 1) == ()
    assert due((SLOW,), {"slow": 100 * S}, 160 * S) == ("slow",)


def test_the_longest_overdue_comes_first() -> None:
    # At 200 s: fast (every 0.5 s, begun at 199 s) is 0.5 s late, slow (every 60 s, begun at 100 s) is 40 s late.
    assert due((FAST, SLOW), {"fast": 199 * S, "slow": 100 * S}, 200 * S) == ("slow", "fast")


def test_a_begin_in_the_future_is_another_boot_s_and_the_job_is_due() -> None:
    assert due((SLOW,), {"slow": 900 * S}, 10 * S) == ("slow",)


@given(
    st.lists(st.floats(min_value=0.001, max_value=1000), min_size=1, max_size=5),
    st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=50),
)
def test_no_job_begins_twice_within_its_period(periods_s: list[float], steps_ns: list[int]) -> None:
    jobs = tuple(Period(name=str(i), every_s=period_s) for i, period_s in enumerate(periods_s))
    last: dict[str, int] = {}
    now_ns = 0
    for step_ns in steps_ns:
        now_ns += step_ns
        for name in due(jobs, last, now_ns):
            if name in last:
                assert now_ns - last[name] >= jobs[int(name)].every_s * S
            last[name] = now_ns
