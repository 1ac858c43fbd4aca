"""One place's telemetry: its source, its counts and the limits in force, shared by the watcher and a run.

Both poll; a lock makes that one reader at a time.
"""

from __future__ import annotations

import threading
from decimal import Decimal

from rearguard.model.breach import Limits
from rearguard.model.service import Digest
from rearguard.model.settings import PlaceSettings
from rearguard.model.telemetry import SourceHealth
from rearguard.model.time import Instant
from rearguard.ports import TelemetrySource
from rearguard.watch.counts import Counts


class Feed:
    """Poll, count, and answer."""

    def __init__(self, settings: PlaceSettings, source: TelemetrySource) -> None:
        self.settings = settings
        self._source = source
        self._lock = threading.Lock()
        self._limits: dict[Digest, Limits] = {}
        self._default = limits_for(settings, baseline=None)
        self.counts = Counts(settings.place, self.limits_of)

    def limits_of(self, digest: Digest) -> Limits:
        """Limits in force for a digest: the policy's, with the baseline frozen at its rollout."""
        return self._limits.get(digest, self._default)

    def set_limits(self, limits: dict[Digest, Limits]) -> None:
        """Replace what is in force (a rollout froze a baseline)."""
        self._limits = dict(limits)

    def poll(self, now: Instant) -> int:
        """Read what is new; returns the number of observations. Raises `DependencyError` when the source is down."""
        with self._lock:
            observations = self._source.poll(now)
            self.counts.add(observations)
            return len(observations)

    def catch_up(self, now: Instant) -> None:
        """Poll until nothing is new: how a process that has just started reads the past."""
        while self.poll(now):
            continue

    def health(self) -> SourceHealth:
        """What the source knows of itself."""
        with self._lock:
            return self._source.health()

    def close(self) -> None:
        """Let go of the source."""
        with self._lock:
            self._source.close()


def limits_for(settings: PlaceSettings, *, baseline: Decimal | None) -> Limits:
    """The policy's thresholds as limits; a baseline in the policy wins over the measured one (R20)."""
    triggers = settings.triggers
    return Limits(
        latency_limit_ms=(
            triggers.latency_target_p95_ms + triggers.latency_margin_ms
            if triggers.latency_target_p95_ms is not None
            else None
        ),
        error_limit_ratio=triggers.error_limit_percent / 100 if triggers.error_limit_percent is not None else None,
        compliance_baseline=triggers.compliance_baseline if triggers.compliance_baseline is not None else baseline,
        compliance_drop_points=triggers.compliance_drop_points,
    )
