"""The outcome of a check: three values, and how they combine."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Outcome(Enum):
    """PASS, FAIL or INCONCLUSIVE; a missing answer is INCONCLUSIVE, never PASS."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def combine(outcomes: Iterable[Outcome]) -> Outcome:
    """FAIL wins over INCONCLUSIVE, which wins over PASS; no checks at all is INCONCLUSIVE."""
    seen = set(outcomes)
    if Outcome.FAIL in seen:
        return Outcome.FAIL
    if Outcome.INCONCLUSIVE in seen or not seen:
        return Outcome.INCONCLUSIVE
    return Outcome.PASS
