"""Incidents: open from detection to confirmed recovery."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearguard.model.breach import Trigger
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant


class IncidentState(Enum):
    """Where an incident stands."""

    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """`R-<n>`: one fault of one place, named by the trigger with the earliest t0."""

    id: str
    place: Place
    trigger: Trigger
    digest: Digest
    """What answered when it broke."""
    state: IncidentState
    t0: Instant
    t1: Instant
    run_id: str | None
    acked_by: str
    false_positive: bool
    attached: tuple[Trigger, ...] = ()
    """Further triggers that fired while it was open."""
