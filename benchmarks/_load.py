"""How much of the machine went to work that is not ours, so that a noisy figure can be told from a quiet one."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuStamp:
    """CPU seconds spent so far: by the whole machine, and by this process with all its descendants."""

    at_ns: int
    machine_s: float
    ours_s: float


def stamp() -> CpuStamp:
    """Now, from `/proc`."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in first[:8])
    machine = user + nice + system + irq + softirq + steal
    return CpuStamp(
        at_ns=time.monotonic_ns(), machine_s=machine / _TICKS_PER_S, ours_s=_ours_ticks(os.getpid()) / _TICKS_PER_S
    )


def shares(start: CpuStamp, end: CpuStamp) -> dict[str, float]:
    """Share of all cores between two stamps, 0 to 1: this benchmark's processes, and everything else."""
    capacity_s = (end.at_ns - start.at_ns) / 1e9 * len(os.sched_getaffinity(0))
    ours_s = end.ours_s - start.ours_s
    others_s = max(0.0, end.machine_s - start.machine_s - ours_s)
    return {"benchmark_share": round(ours_s / capacity_s, 3), "others_share": round(others_s / capacity_s, 3)}


def _ours_ticks(root: int) -> int:
    """CPU ticks of a process and its descendants; those that ended stand in what their parent has waited for."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        pid = int(folder.name)
        children[int(fields[1])].append(pid)
        ticks[pid] = sum(int(x) for x in fields[11:15])  # utime, stime, cutime, cstime
    total, open_pids = 0, [root]
    while open_pids:
        pid = open_pids.pop()
        total += ticks.get(pid, 0)
        open_pids += children[pid]
    return total
