"""When a checkpoint is verified again by itself: a decision about instants, without a disk and without a clock."""

from __future__ import annotations

from collections.abc import Iterable

from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant, elapsed


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
