"""How much memory one more worker may take here, and how much a worker holds: what the kernel says, in bytes.

The smaller of two limits counts: the machine's `MemAvailable` (proc(5)), and what every control group above this
process leaves (cgroup v2, `memory.max` less `memory.current`; the inactive page cache that `memory.stat` counts in is
given back under pressure, so it is added again).
"""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MARGIN_BYTES = 64 * 1024 * 1024
"""Left free beside a load; chosen: what one worker's interpreter takes before it loads anything."""


def enough_for(asked_bytes: int, available: int | None) -> bool:
    """Whether a load that takes `asked_bytes` leaves a tenth of it, and at least `MARGIN_BYTES`, free.

    True when what is available is not known: a kernel that tells nothing is no reason to hold nothing warm.
    """
    return available is None or available >= asked_bytes + max(MARGIN_BYTES, asked_bytes // 10)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken before something is swapped or killed; None when the kernel does not tell."""
    found = [*_of_machine(root / "proc/meminfo"), *_of_groups(root)]
    return min(found) if found else None


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def _of_machine(meminfo: Path) -> list[int]:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _of_groups(root: Path) -> list[int]:
    """What each control group from this process's own up to the root leaves; a group without a limit does not count."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return []
    top = root / "sys/fs/cgroup"
    # Inside a container the path may lead out of what is mounted here; the mounted root is then the container's group.
    parts = [part for part in own.split("/") if part not in ("", "..")]
    groups = [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [left for group in groups if (left := _left_in(group)) is not None]


def _left_in(group: Path) -> int | None:
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    cache = int(stat[stat.index("inactive_file") + 1]) if "inactive_file" in stat else 0
    return max(0, int(limit) - used + cache)
