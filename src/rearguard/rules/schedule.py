"""Which periodic jobs are due: a decision about names and instants, without threads and without a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rearguard.model.time import NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """How often a job begins."""

    name: str
    every_s: float
    """Seconds from one begin to the next; 0: whenever somebody looks."""


def due(jobs: Sequence[Period], last_run: Mapping[str, int], now_ns: int) -> tuple[str, ...]:
    """Names of the jobs to begin now, the longest overdue first, jobs that never began before all others.

    `last_run` holds the monotonic nanoseconds of each job's newest begin. A job that began in the future (a clock of
    another boot) is due. Law: with `last_run` set to now for what was due, nothing with a period above 0 is due again
    before its period has passed.
    """
    overdue: list[tuple[float, int, str]] = []
    for order, job in enumerate(jobs):
        began_ns = last_run.get(job.name)
        if began_ns is None or began_ns > now_ns:
            overdue.append((float("-inf"), order, job.name))
            continue
        late_ns = now_ns - began_ns - job.every_s * NS_PER_S
        if late_ns >= 0:
            overdue.append((-late_ns, order, job.name))
    return tuple(name for _, _, name in sorted(overdue))
