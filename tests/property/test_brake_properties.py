"""Laws of the brakes, by simulation second by second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rearguard.model.settings import BrakePolicy, FreezeWindow
from rearguard.model.time import NS_PER_S, Instant
from rearguard.rules.brakes import BrakeFacts, Held, allowed_in, brake, clear_at, frozen_window, thaw_wall_ns

START = Instant(wall_ns=1_795_392_000 * NS_PER_S, mono_ns=10_000_000 * NS_PER_S, boot_id="a")
WEEK_S = 7 * 86_400

policies = st.builds(
    BrakePolicy,
    cool_down_s=st.integers(0, 60),
    max_rollbacks=st.integers(1, 5),
    budget_period_s=st.integers(1, 200),
)
weekly = st.builds(
    FreezeWindow,
    reason=st.just("w"),
    weekday=st.integers(0, 6),
    start_of_day_s=st.integers(0, 86_399),
    duration_s=st.integers(1, WEEK_S - 1),
    rollbacks=st.booleans(),
)
once = st.builds(
    FreezeWindow,
    reason=st.just("o"),
    start_wall_ns=st.integers(-WEEK_S, WEEK_S).map(lambda s: START.wall_ns + s * NS_PER_S),
    duration_s=st.integers(1, 3 * WEEK_S),
    rollbacks=st.booleans(),
)


def begun(policy: BrakePolicy, durations_s: list[int], period_s: int) -> int:
    """How many rollbacks begin in [0, period] when the signal never stops breaching and each takes its time."""
    ends: list[Instant] = []
    count, second, at_work_s = 0, 0, 0
    while second <= period_s:
        now = START.plus(second * NS_PER_S)
        free = second >= at_work_s
        if free and brake(policy, BrakeFacts(armed=True, paused=False, ended_at=tuple(ends), now=now)) is None:
            took_s = durations_s[count % len(durations_s)]
            ends.append(now.plus(took_s * NS_PER_S))
            at_work_s = second + took_s
            count += 1
            if not took_s and count <= allowed_in(period_s, policy):
                continue  # a rollback that takes no time may be followed by one in the same second
        second += 1
    return count


@given(policies, st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 400))
def test_no_signal_begins_more_rollbacks_than_are_allowed(
    policy: BrakePolicy, durations_s: list[int], period_s: int
) -> None:
    assert begun(policy, durations_s, period_s) <= allowed_in(period_s, policy)


@given(policies, st.integers(0, 400))
def test_rollbacks_that_take_no_time_reach_what_is_allowed(policy: BrakePolicy, period_s: int) -> None:
    assert begun(policy, [0], period_s) == allowed_in(period_s, policy)


@given(policies, st.lists(st.integers(0, 400), max_size=8))
def test_a_brake_holds_to_the_last_nanosecond_before_it_lets_go_and_not_after(
    policy: BrakePolicy, ages_s: list[int]
) -> None:
    ends = tuple(START.plus(-age * NS_PER_S) for age in ages_s)
    held = brake(policy, BrakeFacts(armed=True, paused=False, ended_at=ends, now=START))
    if held is None:
        return
    until = clear_at(policy, BrakeFacts(armed=True, paused=False, ended_at=ends, now=START), held)
    assert until is not None
    before, then = (
        brake(policy, BrakeFacts(armed=True, paused=False, ended_at=ends, now=at)) for at in (until.plus(-1), until)
    )
    assert before is held
    assert then is not held


@given(st.lists(weekly | once, max_size=4), st.sampled_from(Held))
def test_a_thaw_is_the_first_instant_outside_every_window(windows: list[FreezeWindow], what: Held) -> None:
    policy = BrakePolicy(freeze_windows=tuple(windows))
    end_ns = thaw_wall_ns(policy, START, what=what)
    if end_ns is None:
        samples = range(0, 5 * WEEK_S, 3600)
        assert all(frozen_window(policy, START.plus(s * NS_PER_S), what=what) for s in samples)
        return
    assert frozen_window(policy, START.plus(end_ns - START.wall_ns), what=what) is None
    if end_ns > START.wall_ns:
        assert frozen_window(policy, START.plus(end_ns - START.wall_ns - 1), what=what) is not None
        assert frozen_window(policy, START, what=what) is not None


@given(weekly, st.integers(-5 * WEEK_S, 5 * WEEK_S))
def test_a_weekly_window_is_the_same_in_every_week(window: FreezeWindow, seconds: int) -> None:
    policy = BrakePolicy(freeze_windows=(window,))
    now, later = START.plus(seconds * NS_PER_S), START.plus((seconds + WEEK_S) * NS_PER_S)
    for what in Held:
        assert frozen_window(policy, now, what=what) == frozen_window(policy, later, what=what)
