"""Deployments: which checkpoint was put where, when and by whom."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A checkpoint at a place from an instant on."""

    id: int
    place: Place
    digest: Digest
    version: str
    """Empty when nobody announced it."""
    source: str
    """`deploy` (through us), `recorded` (a foreign CD announced it), `unregistered` (seen answering), `rollback`."""
    state: str
    """`activating`, `active`, `ended` (another one followed), `rolled_back`, `failed` (it never answered)."""
    started_at: Instant
    compliance_baseline: Decimal | None
    """Median of the compliance gauge before the rollout, frozen at its start (R20)."""
