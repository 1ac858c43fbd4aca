"""Which proof is renewed when: hand-made instants."""

from __future__ import annotations

import pytest

from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant
from rearguard.rules.scrub import Failing, next_due, next_retry

NOW = Instant(wall_ns=1_800_000_000 * NS_PER_S, mono_ns=10_000_000 * NS_PER_S, boot_id="boot")
INTERVAL_S = 12 * 3600


def due(*ages_s: int) -> str | None:
    """The first is `a`, the next `b`, and so on."""
    proofs = [(Digest("abcdefgh"[number]), NOW.plus(-age * NS_PER_S)) for number, age in enumerate(ages_s)]
    return next_due(proofs, interval_s=INTERVAL_S, now=NOW)


def test_nothing_is_due_where_nothing_was_proven() -> None:
    assert due() is None


@pytest.mark.parametrize(("age_s", "answer"), [(21_599, None), (21_600, "a"), (43_200, "a"), (90_000, "a"), (-1, "a")])
def test_the_only_proof_is_renewed_from_half_of_the_interval_on(age_s: int, answer: str | None) -> None:
    assert due(age_s) == answer


def test_the_oldest_proof_comes_first() -> None:
    assert due(30_000, 43_000, 100) == "b"


def test_proofs_that_were_made_at_once_are_renewed_one_slot_after_the_other() -> None:
    """Four checkpoints, slots of 43 200 / 8 = 5 400 s: the first at 21 600 s, the second 5 400 s later, and so on."""
    assert due(21_599, 21_599, 21_599, 21_599) is None
    assert due(21_600, 21_600, 21_600, 21_600) == "a"
    assert due(0, 21_600, 21_600, 21_600) is None
    assert due(5_399, 26_999, 26_999, 26_999) is None
    assert due(5_400, 27_000, 27_000, 27_000) == "b"


def test_proofs_that_are_spread_out_wait_for_their_last_slot() -> None:
    """Two, slots of 10 800 s: the older one is renewed 10 800 s before its time."""
    assert due(32_399, 10_000) is None
    assert due(32_400, 10_000) == "a"


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 600), (2, 1200), (3, 2400), (4, 3600), (99, 3600)])
def test_each_failure_doubles_the_wait_up_to_the_interval(failures: int, wait_s: int) -> None:
    """600 * 2 ** (n - 1), at most the hour that is given."""

    def due(age_s: int) -> Digest | None:
        failing = Failing(digest=Digest("a"), failures=failures, last_at=NOW.plus(-age_s * NS_PER_S))
        return next_retry([failing], interval_s=3600, now=NOW)

    assert (due(wait_s - 1), due(wait_s)) == (None, "a")


def test_the_longest_overdue_failure_is_tried_first() -> None:
    failing = [
        Failing(digest=Digest(name), failures=1, last_at=NOW.plus(-age_s * NS_PER_S))
        for name, age_s in (("a", 700), ("b", 900), ("c", 100))
    ]
    assert next_retry(failing, interval_s=3600, now=NOW) == "b"
