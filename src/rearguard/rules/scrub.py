"""When a checkpoint is verified again by itself: a decision about instants, without a disk and without a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant, elapsed

RETRY_AFTER_S = 600
"""After the first failure; each further one doubles it. Chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A checkpoint whose last verification failed, though its stored bytes may be right."""

    digest: Digest
    failures: int
    """In a row, at least 1."""
    last_at: Instant


def next_retry(failing: Iterable[Failing], *, interval_s: int, now: Instant) -> Digest | None:
    """A failed checkpoint to verify again now, the longest overdue one; None while none is due.

    What failed may have been the surroundings: memory, a library, a slow disk. Law: between the failures number n and
    n + 1 lie at least min(`RETRY_AFTER_S` * 2 ** (n - 1), `interval_s`) seconds. A failure from the future is due.
    """
    overdue_ns = []
    for one in failing:
        age_ns = elapsed(one.last_at, now).ns
        wait_ns = min(RETRY_AFTER_S * 2 ** min(one.failures - 1, 30), interval_s) * NS_PER_S
        if age_ns < 0 or age_ns >= wait_ns:
            overdue_ns.append((wait_ns - age_ns, one.digest))
    return min(overdue_ns)[1] if overdue_ns else None


def next_due(proofs: Iterable[tuple[Digest, Instant]], *, interval_s: int, now: Instant) -> Digest | None:
    """The checkpoint to verify again now, the one with the oldest proof; None while nobody is due.

    `proofs` names the end of each checkpoint's last verification. Half of the interval is cut into as many slots as there
    are checkpoints, and work begins when the oldest `k` proofs would need `k` slots to be renewed in time. So proofs that
    were made at once are renewed spread over half the interval, and no sooner than that.
    Law: if somebody asks in each slot and a verification takes less than a slot, no proof becomes older than the
    interval, whatever their ages were, as long as all were younger than half of it. A proof from the future is due (R15).
    """
    ages_ns = sorted(((elapsed(at, now).ns, digest) for digest, at in proofs), key=lambda pair: -pair[0])
    if not ages_ns:
        return None
    if ages_ns[-1][0] < 0:
        return ages_ns[-1][1]
    interval_ns = interval_s * NS_PER_S
    slot_ns = interval_ns // (2 * len(ages_ns))
    for number, (age_ns, _) in enumerate(ages_ns, start=1):
        if interval_ns - age_ns <= number * slot_ns:
            return ages_ns[0][1]
    return None
