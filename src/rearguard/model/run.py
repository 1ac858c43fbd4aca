"""Rollback runs: their states, legal moves, and the instants of a recovery."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_MS, Instant, elapsed


class RunState(Enum):
    """Where a run stands. A verdict judges; a run state tracks."""

    REQUESTED = "requested"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    INCONCLUSIVE = "inconclusive"
    CANCELLED = "cancelled"


TERMINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.REFUSED, RunState.INCONCLUSIVE, RunState.CANCELLED})

LEGAL_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.REQUESTED: frozenset({RunState.RUNNING, RunState.REFUSED, RunState.CANCELLED}),
    RunState.RUNNING: TERMINAL,
    **{state: frozenset() for state in TERMINAL},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One durable execution of a rollback plan."""

    id: str
    """`run_` and letters or digits (R51)."""
    place: Place
    incident_id: str | None
    from_digest: Digest | None
    to_digest: Digest | None
    state: RunState
    reason: str
    """Code of why it ended as it did, or empty."""
    requested_by: str
    """`auto` or the name of a person."""
    requested_at: Instant


PARTS = ("detect", "decide", "wait", "restore", "load", "warmup")
"""The six parts of an RTO in order: t0-t1, t1-t2, ... t5-t6 (R36)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The instants t0 ... t7 of a recovery (requirements 10.2); None where it was not reached."""

    t: tuple[Instant | None, ...]
    """Eight entries."""

    def offsets_ms(self) -> tuple[int | None, ...]:
        """Whole milliseconds of each instant since t0, truncated; differences of these telescope exactly."""
        start = self.t[0]
        if start is None:
            return (None,) * 8
        return tuple(None if x is None else elapsed(start, x).ns // NS_PER_MS for x in self.t)

    def parts_ms(self) -> dict[str, int] | None:
        """The six parts in milliseconds, whose sum is the RTO; None unless t0 ... t6 are all known."""
        offsets = self.offsets_ms()
        if any(x is None for x in offsets[:7]):
            return None
        known = [x for x in offsets[:7] if x is not None]
        return {name: known[i + 1] - known[i] for i, name in enumerate(PARTS)}

    def clock_step_ms(self) -> int | None:
        """How far the wall clock jumped between t0 and the last known instant; a finding above 1 s (requirements 10.2).

        The monotonic figures stand. None after a reboot, when there is no clock to compare with.
        """
        known = [x for x in self.t if x is not None]
        if not known or known[0].boot_id != known[-1].boot_id:
            return None
        first, last = known[0], known[-1]
        return ((last.wall_ns - first.wall_ns) - (last.mono_ns - first.mono_ns)) // NS_PER_MS

    def rto_ns(self) -> int | None:
        """t6 - t0 in nanoseconds, credited only once t7 was reached."""
        start, restored, confirmed = self.t[0], self.t[6], self.t[7]
        if start is None or restored is None or confirmed is None:
            return None
        return elapsed(start, restored).ns
