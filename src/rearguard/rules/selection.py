"""Which checkpoints may a place be rolled back to, in what order, or why none is safe (R10, R15, R28)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, Instant, elapsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A checkpoint that is no target, and why.

    `active`, `quarantined`, `verification_failed`, `never_verified`, `never_served` (here, or only until it was rolled
    back), `not_asked_for`.
    """

    digest: Digest
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint that may be a target."""

    checkpoint: Checkpoint
    stale: bool
    """Older than the limit since its last verification: it is verified inline, never refused for age alone."""
    served_before: bool
    """False only when a person asked for a checkpoint that never served here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Candidates, best first, and everything else with its reason."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    unlisted: int = 0
    """Checkpoints of the service that are in neither list, where the caller had them counted; else 0."""


def select(
    *,
    checkpoints: Sequence[Checkpoint],
    active: Digest | None,
    quarantined: frozenset[Digest],
    served: Sequence[Digest],
    wanted: Digest | None,
    policy: CheckpointPolicy,
    now: Instant,
) -> Selection:
    """Order the candidates of one place.

    `served` lists digests that served here and were not rolled back since, oldest first; the most recent one is the best
    target. A checkpoint that never served here is none: going to it would be a rollout, not a rollback. With `wanted` (a
    person names it) only that one is a candidate, whether it served or not. Only a checkpoint whose last verification
    passed is one at all.
    """
    last_served = {digest: position for position, digest in enumerate(served)}
    candidates, rejected = [], []
    for order, checkpoint in enumerate(checkpoints):
        reason = _reject(checkpoint, active, quarantined, wanted, last_served)
        if reason:
            rejected.append(Rejected(digest=checkpoint.digest, version=checkpoint.version, reason=reason))
            continue
        assert checkpoint.verified_at is not None
        candidate = Candidate(
            checkpoint=checkpoint,
            stale=is_stale(checkpoint.verified_at, policy, now),
            served_before=checkpoint.digest in last_served,
        )
        candidates.append((last_served.get(checkpoint.digest, -1), order, candidate))
    candidates.sort(key=lambda item: (item[0], item[1]), reverse=True)
    return Selection(candidates=tuple(c for _, _, c in candidates), rejected=tuple(rejected))


def is_stale(verified_at: Instant, policy: CheckpointPolicy, now: Instant) -> bool:
    """True when a proof is older than the limit, inclusive (R15), or from the future: its age is then not known."""
    return not 0 <= elapsed(verified_at, now).ns <= policy.max_age_s * NS_PER_S


def _reject(
    checkpoint: Checkpoint,
    active: Digest | None,
    quarantined: frozenset[Digest],
    wanted: Digest | None,
    served: Mapping[Digest, int],
) -> str:
    if wanted is not None and checkpoint.digest != wanted:
        return "not_asked_for"
    if checkpoint.digest == active:
        return "active"
    if checkpoint.digest in quarantined:
        return "quarantined"
    if checkpoint.failure:
        return "verification_failed"
    if checkpoint.verified_at is None:
        return "never_verified"
    if wanted is None and checkpoint.digest not in served:
        return "never_served"
    return ""
