"""The brakes: which one holds, and until when. Times are worked out by hand from 2026-11-23T00:00:00Z, a Monday."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rearguard.model.settings import BrakePolicy, FreezeWindow
from rearguard.model.time import NS_PER_S, Instant, parse_rfc3339, rfc3339
from rearguard.rules.brakes import (
    Brake,
    BrakeFacts,
    Held,
    allowed_in,
    brake,
    budget_left,
    clear_at,
    cool_down_left_ns,
    frozen_window,
    thaw_wall_ns,
)

NOW = Instant(wall_ns=parse_rfc3339("2026-11-23T00:00:00Z"), mono_ns=1_000_000 * NS_PER_S, boot_id="a")
POLICY = BrakePolicy(cool_down_s=1800, max_rollbacks=3, budget_period_s=86_400)
WEEKEND = FreezeWindow(reason="weekend", weekday=4, start_of_day_s=16 * 3600, duration_s=64 * 3600)
"""Friday 16:00 to Monday 08:00."""
YEAR_END = FreezeWindow(reason="year end", start_wall_ns=parse_rfc3339("2026-12-24T00:00:00Z"), duration_s=3 * 86_400)


def at(text: str) -> Instant:
    return replace(NOW, wall_ns=parse_rfc3339(text))


def ago(seconds: float) -> Instant:
    return NOW.plus(-int(seconds * NS_PER_S))


def facts(*ended_at: Instant, armed: bool = True, paused: bool = False, now: Instant = NOW) -> BrakeFacts:
    return BrakeFacts(armed=armed, paused=paused, ended_at=ended_at, now=now)


def frozen_at(window: FreezeWindow, text: str, what: Held = Held.ROLLBACKS) -> bool:
    return frozen_window(replace(POLICY, freeze_windows=(window,)), at(text), what=what) is not None


# --- which brake ------------------------------------------------------------------------------------------------------


def test_without_a_reason_to_hold_nothing_holds() -> None:
    assert brake(POLICY, facts()) is None


@pytest.mark.parametrize(
    ("armed", "paused", "frozen", "ends", "expected"),
    [
        (False, True, True, 3, Brake.OBSERVE),
        (True, True, True, 3, Brake.PAUSED),
        (True, False, True, 3, Brake.FREEZE),
        (True, False, False, 3, Brake.COOL_DOWN),
    ],
)
def test_the_first_brake_in_the_order_of_precedence_is_named(
    armed: bool, paused: bool, frozen: bool, ends: int, expected: Brake
) -> None:
    policy = replace(POLICY, freeze_windows=(WEEKEND,) if frozen else ())
    assert brake(policy, facts(*[ago(60)] * ends, armed=armed, paused=paused)) is expected


def test_only_cool_down_and_budget_are_refusals() -> None:
    assert {b for b in Brake if b.refuses} == {Brake.COOL_DOWN, Brake.BUDGET}


@pytest.mark.parametrize(("seconds", "expected"), [(1799.999, Brake.COOL_DOWN), (1800, None), (1800.001, None)])
def test_a_cool_down_is_over_at_its_end(seconds: float, expected: Brake | None) -> None:
    assert brake(POLICY, facts(ago(seconds))) is expected


def test_a_cool_down_of_nothing_never_holds() -> None:
    assert brake(replace(POLICY, cool_down_s=0), facts(ago(0))) is None


@pytest.mark.parametrize(("oldest_s", "expected"), [(86_399.999, Brake.BUDGET), (86_400, None)])
def test_a_rollback_leaves_the_budget_at_the_end_of_the_period(oldest_s: float, expected: Brake | None) -> None:
    assert brake(POLICY, facts(ago(oldest_s), ago(40_000), ago(1800))) is expected


def test_the_budget_left_counts_down() -> None:
    ends = (ago(5000), ago(4000), ago(3000), ago(2000))
    assert [budget_left(POLICY, facts(*ends[:n])) for n in range(5)] == [3, 2, 1, 0, 0]


# --- which clock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1, 10_000])
def test_a_stepped_wall_clock_on_the_same_boot_changes_nothing(hours: int) -> None:
    stepped = replace(NOW, wall_ns=NOW.wall_ns + hours * 3600 * NS_PER_S)
    held, free = facts(ago(1799), now=stepped), facts(ago(1800), now=stepped)
    assert (brake(POLICY, held), brake(POLICY, free)) == (Brake.COOL_DOWN, None)


def test_across_a_boot_the_wall_clock_counts() -> None:
    rebooted = Instant(wall_ns=NOW.wall_ns, mono_ns=5 * NS_PER_S, boot_id="b")
    assert brake(POLICY, facts(ago(1799), now=rebooted)) is Brake.COOL_DOWN
    assert brake(POLICY, facts(ago(1800), now=rebooted)) is None


def test_a_wall_clock_that_was_ahead_before_a_boot_cannot_hold_longer_than_this_boot_is_old() -> None:
    end_in_2099 = replace(NOW, wall_ns=parse_rfc3339("2099-01-01T00:00:00Z"))
    young = Instant(wall_ns=NOW.wall_ns, mono_ns=1799 * NS_PER_S, boot_id="b")
    old = replace(young, mono_ns=1800 * NS_PER_S)
    assert brake(POLICY, facts(end_in_2099, now=young)) is Brake.COOL_DOWN
    assert brake(POLICY, facts(end_in_2099, now=old)) is None


# --- until when -------------------------------------------------------------------------------------------------------


def test_what_a_person_holds_only_a_person_releases() -> None:
    assert clear_at(POLICY, facts(), Brake.OBSERVE) is None
    assert clear_at(POLICY, facts(), Brake.PAUSED) is None


def test_a_cool_down_lets_go_when_the_rest_of_it_has_passed() -> None:
    assert clear_at(POLICY, facts(ago(9000), ago(300)), Brake.COOL_DOWN) == NOW.plus(1500 * NS_PER_S)
    assert cool_down_left_ns(POLICY, facts(ago(300))) == 1500 * NS_PER_S


def test_the_budget_lets_go_when_the_third_newest_leaves_the_period() -> None:
    held = facts(ago(80_000), ago(50_000), ago(40_000), ago(2000))
    assert clear_at(POLICY, held, Brake.BUDGET) == NOW.plus((86_400 - 50_000) * NS_PER_S)


def test_a_freeze_lets_go_at_its_end() -> None:
    policy = replace(POLICY, freeze_windows=(YEAR_END,))
    found = clear_at(policy, facts(now=at("2026-12-25T12:00:00Z")), Brake.FREEZE)
    assert found is not None
    assert found.rfc3339() == "2026-12-27T00:00:00Z"


# --- freeze windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("2026-12-23T23:59:59Z", False),
        ("2026-12-24T00:00:00Z", True),
        ("2026-12-26T23:59:59Z", True),
        ("2026-12-27T00:00:00Z", False),
        ("2027-12-24T00:00:00Z", False),
    ],
)
def test_a_window_that_comes_once_includes_its_start_and_not_its_end(text: str, inside: bool) -> None:
    assert frozen_at(YEAR_END, text) is inside


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("2026-11-27T15:59:59Z", False),
        ("2026-11-27T16:00:00Z", True),  # Friday
        ("2026-11-28T00:00:00Z", True),  # over midnight
        ("2026-11-29T23:59:59Z", True),  # Sunday
        ("2026-11-30T00:00:00Z", True),  # over the end of the week
        ("2026-11-30T07:59:59Z", True),
        ("2026-11-30T08:00:00Z", False),
        ("2027-06-04T16:00:00Z", True),  # a Friday half a year later
    ],
)
def test_a_weekly_window_crosses_midnight_and_the_end_of_the_week(text: str, inside: bool) -> None:
    assert frozen_at(WEEKEND, text) is inside


def test_a_window_holds_what_it_says_and_nothing_else() -> None:
    window = replace(WEEKEND, rollbacks=False)
    assert frozen_at(window, "2026-11-28T00:00:00Z", Held.DEPLOYMENTS)
    assert not frozen_at(window, "2026-11-28T00:00:00Z", Held.ROLLBACKS)


def test_of_several_windows_the_one_that_ends_last_is_named() -> None:
    short = FreezeWindow(reason="lunch", weekday=5, start_of_day_s=0, duration_s=3600)
    policy = replace(POLICY, freeze_windows=(short, WEEKEND, short))
    assert frozen_window(policy, at("2026-11-28T00:30:00Z"), what=Held.ROLLBACKS) is WEEKEND


def test_windows_that_follow_each_other_end_together() -> None:
    monday = FreezeWindow(reason="monday", weekday=0, start_of_day_s=8 * 3600, duration_s=3600)
    policy = replace(POLICY, freeze_windows=(monday, WEEKEND))
    end_ns = thaw_wall_ns(policy, at("2026-11-28T00:00:00Z"), what=Held.ROLLBACKS)
    assert end_ns is not None
    assert rfc3339(end_ns) == "2026-11-30T09:00:00Z"


def test_windows_that_cover_the_week_have_no_end() -> None:
    halves = tuple(FreezeWindow(reason="half", weekday=day, start_of_day_s=0, duration_s=4 * 86_400) for day in (0, 4))
    assert thaw_wall_ns(replace(POLICY, freeze_windows=halves), NOW, what=Held.ROLLBACKS) is None


# --- how many at most -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cool_down_s", "max_rollbacks", "budget_period_s", "period_s", "expected"),
    [
        (1800, 3, 86_400, 600, 1),
        (120, 3, 86_400, 600, 3),
        (120, 1000, 86_400, 600, 6),  # at 0, 120, ... 600
        (0, 3, 86_400, 600, 3),
        (120, 2, 300, 600, 5),  # at 0, 120, 300, 420, 600
    ],
)
def test_the_most_that_can_happen_in_a_period(
    cool_down_s: int, max_rollbacks: int, budget_period_s: int, period_s: int, expected: int
) -> None:
    policy = BrakePolicy(cool_down_s=cool_down_s, max_rollbacks=max_rollbacks, budget_period_s=budget_period_s)
    assert allowed_in(period_s, policy) == expected
