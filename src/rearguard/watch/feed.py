"""One place's telemetry: its source, its counts and the limits in force, shared by the watcher and a run.

Both poll; a lock makes that one reader at a time, and makes the counts and the place in the source one thing to save.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from decimal import Decimal

from rearguard.model.breach import Limits
from rearguard.model.service import Digest
from rearguard.model.settings import PlaceSettings
from rearguard.model.telemetry import SourceHealth
from rearguard.model.time import NS_PER_S, Instant
from rearguard.ports import ResumableSource, TelemetrySource
from rearguard.watch.counts import Counts
from rearguard.watch.memory import Remembered, Snapshot, WatchState

COMPLETE_AFTER_S = 5
"""A second of a source that cannot resume is saved this long after it. Chosen: what comes later is lost by a restart."""


class Feed:
    """Poll, count, and answer; with `remembered`, from where an earlier process left off."""

    def __init__(self, settings: PlaceSettings, source: TelemetrySource, remembered: Remembered | None = None) -> None:
        self.settings = settings
        self._source = source
        self._lock = threading.Lock()
        self._limits: dict[Digest, Limits] = {}
        self._default = limits_for(settings, baseline=None)
        self.counts = Counts(settings.place, self.limits_of)
        self.remembered = remembered.state if remembered is not None else None
        if remembered is not None:
            self.counts.restore(remembered.counts, remembered.state.newest_request)
            if isinstance(source, ResumableSource) and remembered.state.position is not None:
                source.resume(remembered.state.position, remembered.counted_to)

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
        """What the source knows of itself, and what came too late to be counted."""
        with self._lock:
            return self._health()

    def snapshot(self, now: Instant) -> Snapshot:
        """What is to be saved, all of one instant; of the watch only what the feed knows.

        Raises `DependencyError` when the source cannot tell where it is.
        """
        with self._lock:
            position = self._source.position() if isinstance(self._source, ResumableSource) else None
            changes = self.counts.take_changes()
            state = WatchState(
                at=now,
                digest=None,
                newest_request=self.counts.newest_digest(),
                rules=(),
                silent_since=None,
                position=position,
                health=self._health(),
            )
        if position is None:
            complete_to_s = now.mono_ns // NS_PER_S - COMPLETE_AFTER_S
            self.counts.put_back({key: counts for key, counts in changes.items() if key[1] > complete_to_s})
            changes = {key: counts for key, counts in changes.items() if key[1] <= complete_to_s}
        return Snapshot(settings=self.settings, state=state, changes=changes)

    def _health(self) -> SourceHealth:
        found = self._source.health()
        return replace(found, late=found.late + self.counts.left_out())

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
