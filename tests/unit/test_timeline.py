"""Instants, spans and the six parts of an RTO."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearguard.model.run import LEGAL_MOVES, PARTS, TERMINAL, RunState, Timeline
from rearguard.model.time import Instant, elapsed, parse_rfc3339, rfc3339, rfc3339_ms

# 2026-11-23T09:14:03Z: 20,780 days since 1970-01-01 (56 years with 14 leap days, then 326 days) and 33,243 s.
WALL_S = 20_780 * 86_400 + 9 * 3600 + 14 * 60 + 3
HOUR_NS = 3_600_000_000_000


def at(mono_ns: int, *, step_ns: int = 0, boot: str = "boot") -> Instant:
    """An instant whose wall clock was stepped by `step_ns`."""
    return Instant(wall_ns=WALL_S * 10**9 + mono_ns + step_ns, mono_ns=mono_ns, boot_id=boot)


def timeline(*mono_ms: float | None) -> Timeline:
    return Timeline(t=tuple(None if m is None else at(int(m * 1_000_000)) for m in mono_ms))


def test_the_six_parts_are_the_differences_of_neighbouring_instants() -> None:
    found = timeline(1000, 1100, 1130, 1135, 1175, 1275, 1775, 9000).parts_ms()
    assert found == {"detect": 100, "decide": 30, "wait": 5, "restore": 40, "load": 100, "warmup": 500}


def test_parts_are_truncated_as_offsets_so_that_they_still_sum() -> None:
    """0.6 ms each: offsets 0, 0, 1, 1, 2, 3, 3 (truncated 0.6, 1.2, 1.8, 2.4, 3.0, 3.6), sum 3."""
    found = timeline(0, 0.6, 1.2, 1.8, 2.4, 3.0, 3.6, 5).parts_ms()
    assert found == {"detect": 0, "decide": 1, "wait": 0, "restore": 1, "load": 1, "warmup": 0}


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), min_size=7, max_size=7))
def test_the_parts_sum_exactly_to_the_rto(start_ns: int, gaps_ns: list[int]) -> None:
    stamps = [start_ns + sum(gaps_ns[:n]) for n in range(8)]
    found = Timeline(t=tuple(at(ns) for ns in stamps))
    parts, rto_ns = found.parts_ms(), found.rto_ns()
    assert parts is not None
    assert rto_ns is not None
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == rto_ns // 1_000_000 == found.offsets_ms()[6]


def test_an_rto_is_from_the_first_breach_to_the_restored_service() -> None:
    assert timeline(1000, 1100, 1130, 1135, 1175, 1275, 1775, 9000).rto_ns() == 775_000_000


def test_an_rto_is_credited_only_once_the_window_has_held() -> None:
    assert timeline(1000, 1100, 1130, 1135, 1175, 1275, 1775, None).rto_ns() is None


@pytest.mark.parametrize("missing", range(7))
def test_parts_need_every_instant(missing: int) -> None:
    stamps: list[float | None] = [0, 1, 2, 3, 4, 5, 6, 7]
    stamps[missing] = None
    assert timeline(*stamps).parts_ms() is None


def test_without_a_first_instant_nothing_has_an_offset() -> None:
    assert timeline(None, 1, 2, 3, 4, 5, 6, 7).offsets_ms() == (None,) * 8


@pytest.mark.parametrize("stepped_from", range(1, 8))
def test_a_wall_clock_set_back_by_an_hour_leaves_the_rto_as_it_was(stepped_from: int) -> None:
    """R35."""
    stamps = [n * 1_000_000_000 for n in range(8)]
    found = Timeline(t=tuple(at(ns, step_ns=-HOUR_NS if n >= stepped_from else 0) for n, ns in enumerate(stamps)))
    assert found.rto_ns() == 6_000_000_000


def test_across_a_reboot_the_wall_clock_counts_and_the_basis_says_so() -> None:
    before = Instant(wall_ns=100, mono_ns=9_000, boot_id="one")
    after = Instant(wall_ns=350, mono_ns=10, boot_id="two")
    found = elapsed(before, after)
    assert (found.ns, found.basis) == (250, "wall")


def test_on_one_boot_the_monotonic_clock_counts_and_the_basis_says_so() -> None:
    found = elapsed(at(10), at(35, step_ns=-HOUR_NS))
    assert (found.ns, found.basis) == (25, "monotonic")


@pytest.mark.parametrize(
    ("wall_ns", "seconds", "milliseconds"),
    [
        (0, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
        (WALL_S * 10**9, "2026-11-23T09:14:03Z", "2026-11-23T09:14:03.000Z"),
        (WALL_S * 10**9 + 999_999_999, "2026-11-23T09:14:03Z", "2026-11-23T09:14:03.999Z"),
        (-1, "1969-12-31T23:59:59Z", "1969-12-31T23:59:59.999Z"),
        (951_782_400 * 10**9, "2000-02-29T00:00:00Z", "2000-02-29T00:00:00.000Z"),
    ],
)
def test_an_instant_is_written_in_utc_and_truncated(wall_ns: int, seconds: str, milliseconds: str) -> None:
    """951,782,400 s is the leap day of 2000 (date -u -d 2000-02-29 +%s)."""
    assert (rfc3339(wall_ns), rfc3339_ms(wall_ns)) == (seconds, milliseconds)


@pytest.mark.parametrize(
    ("text", "wall_ns"),
    [
        ("2026-11-23T09:14:03Z", WALL_S * 10**9),
        ("2026-11-23T10:14:03+01:00", WALL_S * 10**9),
        ("2026-11-23T09:14:03.125Z", WALL_S * 10**9 + 125_000_000),
        ("1969-12-31T23:59:59Z", -(10**9)),
    ],
)
def test_a_written_instant_is_read_back(text: str, wall_ns: int) -> None:
    assert parse_rfc3339(text) == wall_ns


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-23T09:14:03", "2026-11-23", "2026-13-01T00:00:00Z"])
def test_what_is_no_instant_with_an_offset_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_rfc3339(text)


@given(st.integers(0, 4 * 10**9), st.integers(0, 999))
def test_writing_and_reading_are_inverse_to_the_millisecond(seconds: int, ms: int) -> None:
    wall_ns = seconds * 10**9 + ms * 10**6
    assert parse_rfc3339(rfc3339_ms(wall_ns)) == wall_ns


def test_plus_moves_both_clocks() -> None:
    assert at(5).plus(7) == at(12)


def test_no_move_leaves_an_end() -> None:
    assert all(LEGAL_MOVES[state] == frozenset() for state in TERMINAL)


def test_a_run_cannot_succeed_without_having_run() -> None:
    assert RunState.SUCCEEDED not in LEGAL_MOVES[RunState.REQUESTED]
