"""Law of the scrub: whoever works through what is due keeps every proof younger than the interval, and does no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant
from rearguard.rules.scrub import next_due

INTERVAL_S = 43_200
START = Instant(wall_ns=1_800_000_000 * NS_PER_S, mono_ns=1_000_000 * NS_PER_S, boot_id="boot")


@given(st.lists(st.integers(0, INTERVAL_S // 2), min_size=1, max_size=12))
def test_no_proof_gets_older_than_the_interval(ages_s: list[int]) -> None:
    """Three intervals long; a look every minute, as the officer does, and at most one verification in it."""
    proofs = {Digest(f"sha256:{number:064x}"): START.plus(-age * NS_PER_S) for number, age in enumerate(ages_s)}
    now, renewed = START, 0
    while now.mono_ns < START.mono_ns + 3 * INTERVAL_S * NS_PER_S:
        due = next_due(proofs.items(), interval_s=INTERVAL_S, now=now)
        if due is not None:
            assert proofs[due].mono_ns == min(at.mono_ns for at in proofs.values())
            proofs[due], renewed = now, renewed + 1
        now = now.plus(60 * NS_PER_S)
        assert all(now.mono_ns - at.mono_ns <= INTERVAL_S * NS_PER_S for at in proofs.values())
    assert renewed <= 6 * len(proofs)  # never before half of the interval: at most twice an interval each


@given(st.lists(st.integers(-10, 100_000), max_size=12))
def test_nothing_is_due_before_half_of_the_interval(ages_s: list[int]) -> None:
    proofs = [(Digest(f"sha256:{n:064x}"), START.plus(-age * NS_PER_S)) for n, age in enumerate(ages_s)]
    due = next_due(proofs, interval_s=INTERVAL_S, now=START)
    if all(0 <= age < INTERVAL_S // 2 for age in ages_s):
        assert due is None
    if any(age >= INTERVAL_S or age < 0 for age in ages_s):
        assert due is not None
