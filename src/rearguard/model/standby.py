"""The warm standby of a place: the best rollback target, loaded beside what serves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant


class StandbyState(Enum):
    """Whether one stands."""

    STANDING = "standing"
    """Its process is up and has answered an inference: a rollback to it needs no load."""
    LOST = "lost"
    """It should stand and does not."""
    NONE = "none"
    """Nothing should stand, or not yet."""
    UNSUPPORTED = "unsupported"
    """The target cannot hold one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStandby:
    """What is known of the standby of one place."""

    place: Place
    digest: Digest | None
    """What stands or should; None when nothing should."""
    version: str
    state: StandbyState
    reason: str
    """Code of why it does not stand; empty while it does."""
    detail: str
    """The same in words."""
    since: Instant
    """When it became so."""
