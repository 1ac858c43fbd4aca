"""Triggers, limits, and what a rule concludes about a digest."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest


class Trigger(Enum):
    """The three automatic rollback triggers, in the report's row order (R20-R22, R60)."""

    COMPLIANCE = "compliance"
    LATENCY = "latency"
    ERRORS = "errors"

    @property
    def label(self) -> str:
        """The exact label of the strict report (R60)."""
        return {"compliance": "Compliance Drop", "latency": "P95 Latency", "errors": "Error Rate"}[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The thresholds that a rule compares with; None switches a trigger off."""

    latency_limit_ms: Decimal | None
    """Target p95 plus margin (5 ms); breached when p95 is strictly above (R21)."""
    error_limit_ratio: Decimal | None
    """0.01 for 1 %; breached when failures / requests is strictly above (R22)."""
    compliance_baseline: Decimal | None
    """Frozen at the rollout's start, 0 to 100. None: no baseline yet, so compliance is INCONCLUSIVE."""
    compliance_drop_points: Decimal | None
    """2.0; breached when baseline - current >= it (R20)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteralPolicy:
    """The spec's own rule: thresholds over a window, persistence, minimum of samples (R27)."""

    window_s: int = 60
    step_s: int = 60
    """Distance between the ends of successive windows; equal to `window_s` they do not overlap."""
    for_windows: int = 2
    min_samples: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one evaluation says of one trigger of one digest."""

    trigger: Trigger
    digest: Digest
    outcome: Outcome
    """FAIL only once the breach persisted for the policy's number of windows."""
    reason: str
    """`in_limit`, `over_limit` (a window breached, persistence not reached: outcome INCONCLUSIVE), `breach`,
    `too_few_samples`, `no_baseline`, `off`."""
    window_start_s: int
    window_end_s: int
    """Half-open window of monotonic seconds [start, end)."""
    samples: int
    exceedances: int
    """Failures, or timed requests over the latency limit; 0 for compliance."""
    observed: Decimal | None
    """errors: ratio; latency: share over the limit; compliance: mean score. None without samples."""
    limit: Decimal | None
    """errors: limit ratio; latency: 0.05 (p95 > L is the same statement as share > 5 %); compliance: baseline - drop."""
    streak: int
    first_bad_mono_ns: int | None
    """First bad observation of the breaching run of windows: t0 of an incident (requirements 10.2)."""
