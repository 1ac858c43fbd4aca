"""Which checkpoint should stand warm at a place, whether it does, and when to try again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rearguard.model.service import Digest
from rearguard.model.standby import StandbyState, WarmStandby
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.rules.selection import Candidate

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
"""Chosen: a machine without memory for a standby is asked every five minutes, and notices it hardly."""
BYTES_CHANGED = "standby_bytes_changed"
"""It stands, and its stored files were written since their last proof."""
STABLE_AFTER_S = 60.0
"""A standby that stood so long since the last try begins again at the first pause. Chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How it stands with the standby of a place."""

    state: StandbyState
    digest: Digest | None
    version: str
    reason: str = ""
    detail: str = ""
    arm: bool = False
    """True when the target should be told to load it, once `due`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Attempts at one digest since it last stood for a while."""

    digest: Digest
    count: int
    last_at: Instant


def judge(
    best: Candidate | None, held: Mapping[Digest, str], before: WarmStandby | None, *, untouched: bool
) -> Finding:
    """How it stands, given what the target holds and what was known before.

    `held` maps each digest that the target holds loaded beside the active one to why it is not ready, or to "". Only the
    best candidate counts: another one that stands is no standby, for the next rollback would not go there. One whose
    proof is too old is not loaded, but one that stands already goes on standing.

    `untouched` says whether its stored files were not written since their last proof. Law: what stood beside files that
    were is no standby until it has been let go and loaded anew, whatever is proven of them meanwhile.
    """
    if best is None:
        return Finding(state=StandbyState.NONE, digest=None, version="", reason="no_verified_checkpoint")
    digest, version = best.checkpoint.digest, best.checkpoint.version
    why_not = held.get(digest)
    if why_not == "" and (not untouched or (before is not None and before.reason == BYTES_CHANGED)):
        detail = "its stored files were written after their last proof"
        return Finding(
            state=StandbyState.LOST, digest=digest, version=version, reason=BYTES_CHANGED, detail=detail, arm=True
        )
    if why_not == "":
        return Finding(state=StandbyState.STANDING, digest=digest, version=version)
    if best.stale:
        return Finding(state=StandbyState.NONE, digest=digest, version=version, reason="proof_stale")
    if why_not is not None:
        reason, detail = "standby_not_ready", why_not
    elif before is None or before.digest != digest or before.state not in (StandbyState.STANDING, StandbyState.LOST):
        return Finding(state=StandbyState.NONE, digest=digest, version=version, reason="not_loaded", arm=True)
    elif before.state is StandbyState.STANDING:
        reason, detail = "standby_gone", "the target does not hold it any more"
    else:
        reason, detail = before.reason, before.detail
    return Finding(state=StandbyState.LOST, digest=digest, version=version, reason=reason, detail=detail, arm=True)


def held_back(finding: Finding, before: WarmStandby | None, brake: str) -> Finding:
    """What is found where a brake (its code, or empty) forbids to load: nothing should stand then, and why.

    One that stood and is gone is told as lost first, so that nobody goes on counting on it.
    """
    just_lost = finding.state is StandbyState.LOST and before is not None and before.state is StandbyState.STANDING
    if not brake:
        return finding
    if just_lost:
        return replace(finding, arm=False)
    return replace(finding, state=StandbyState.NONE, reason=brake, detail="", arm=False)


def pause_s(count: int) -> float:
    """Seconds to wait after so many tries: doubling from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`."""
    return 0.0 if count == 0 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(count - 1, 16))


def is_due(tries: Tries | None, digest: Digest, now: Instant) -> bool:
    """True when a digest may be tried now; another digest than the one that was tried is tried at once."""
    if tries is None or tries.digest != digest:
        return True
    return elapsed(tries.last_at, now).ns >= pause_s(tries.count) * NS_PER_S


def after_try(tries: Tries | None, digest: Digest, now: Instant) -> Tries:
    """One more try of a digest. One that went well counts too: a standby that dies at once is not loaded at once."""
    count = tries.count if tries is not None and tries.digest == digest else 0
    return Tries(digest=digest, count=count + 1, last_at=now)


def after_standing(tries: Tries | None, now: Instant) -> Tries | None:
    """What is left of earlier tries while it stands: nothing once it has stood for `STABLE_AFTER_S`."""
    if tries is None or elapsed(tries.last_at, now).ns >= STABLE_AFTER_S * NS_PER_S:
        return None
    return tries
