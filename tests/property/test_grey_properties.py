"""Laws of the grey zone, over whatever traffic and looks."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rearguard.model.breach import Limits, LiteralPolicy, Trigger
from rearguard.model.service import Digest
from rearguard.model.telemetry import SecondCounts
from rearguard.rules.breach import grey
from rearguard.rules.breach.grey import GreyState, Move

POLICY = LiteralPolicy(window_s=5, step_s=5, for_windows=9, min_samples=3)
LIMITS = Limits(
    latency_limit_ms=Decimal(100),
    error_limit_ratio=Decimal("0.1"),
    compliance_baseline=Decimal(90),
    compliance_drop_points=Decimal(2),
)


@st.composite
def second(draw: st.DrawFn, at: int) -> SecondCounts:
    requests = draw(st.integers(0, 5))
    scores = draw(st.integers(0, 5))
    return SecondCounts(
        second=at,
        requests=requests,
        timed=requests,
        failures=draw(st.integers(0, requests)),
        over_latency=draw(st.integers(0, requests)),
        scores=scores,
        score_sum=Decimal(draw(st.integers(0, 100 * scores))),
    )


@st.composite
def looks(draw: st.DrawFn) -> list[tuple[int, tuple[SecondCounts, ...]]]:
    """Instants that never go back, with gaps up to a few minutes, and what was counted before each."""
    now_s, found = 0, []
    for _ in range(draw(st.integers(1, 40))):
        now_s += draw(st.sampled_from([0, 1, 1, 1, 2, 5, 100, 400]))
        found.append((now_s, tuple(draw(second(at)) for at in range(now_s - 5, now_s))))
    return found


def told(steps: list[tuple[int, tuple[SecondCounts, ...]]]) -> list[tuple[int, Trigger, Move]]:
    state = GreyState(digest=Digest("sha256:" + "a" * 64))
    found = []
    for now_s, seconds in steps:
        state, changes = grey.look(state, POLICY, LIMITS, seconds, now_s)
        found += [(now_s, change.finding.trigger, change.move) for change in changes]
    return found


@given(looks())
def test_a_trigger_of_a_digest_is_entered_at_most_once_in_fifteen_minutes(
    steps: list[tuple[int, tuple[SecondCounts, ...]]],
) -> None:
    for trigger in Trigger:
        entered = [at for at, which, move in told(steps) if which is trigger and move is Move.ENTERED]
        assert all(later - earlier >= 900 for earlier, later in pairwise(entered))


@given(looks())
def test_entered_and_left_take_turns_and_begin_with_entered(
    steps: list[tuple[int, tuple[SecondCounts, ...]]],
) -> None:
    for trigger in Trigger:
        moves = [move for _, which, move in told(steps) if which is trigger]
        assert moves == [Move.ENTERED, Move.LEFT] * (len(moves) // 2) + [Move.ENTERED] * (len(moves) % 2)


@given(looks())
def test_what_is_left_was_in_limit_over_a_whole_window_by_a_count_of_our_own(
    steps: list[tuple[int, tuple[SecondCounts, ...]]],
) -> None:
    seconds_at = dict(steps[::-1])  # the first look at an instant stands
    for at, trigger, move in told(steps):
        if trigger is Trigger.ERRORS:
            failures = sum(s.failures for s in seconds_at[at])
            requests = sum(s.requests for s in seconds_at[at])
            assert requests >= 3
            assert (10 * failures > requests) is (move is Move.ENTERED)
