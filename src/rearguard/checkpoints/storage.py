"""What storage a folder lies on: its storage domain, so that two copies on one disk are not taken for two (R18).

A domain is the whole disk under a file system (`/dev/vda`, also of a partition or of a volume on it), or kind and source
of a file system that has none (`nfs4:server:/export`, `tmpfs:tmpfs`). It knows nothing of what is shared behind that:
two disks of one host, two virtual disks of one array.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
DEVICES = Path("/sys/dev/block")


def domain_of(folder: Path, *, mounts: Path = MOUNTS, devices: Path = DEVICES) -> str:
    """Storage domain of a folder; empty when it cannot be found out. Asks the kernel, reads no file of the folder."""
    try:
        device = os.stat(folder).st_dev
        table = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    disk = _disk(number, devices)
    if disk:
        return disk
    found = _mounted(table, number, os.path.realpath(folder))
    if found is None:
        return ""
    kind, source = found
    # btrfs and others have a device number of their own; the disk is told by the source.
    try:
        below = os.stat(source).st_rdev if source.startswith("/dev/") else 0
    except OSError:
        below = 0
    named = _disk(f"{os.major(below)}:{os.minor(below)}", devices) if below else ""
    return named or f"{kind}:{source}"


def _disk(number: str, devices: Path, depth: int = 8) -> str:
    """The whole disks under a block device, joined by `+`; empty for what is no block device."""
    try:
        node = (devices / number).resolve(strict=True)
    except (OSError, RuntimeError):
        return ""
    below: list[Path] = []
    with contextlib.suppress(OSError):
        below = sorted((node / "slaves").iterdir()) if depth else []
    if below:
        names = {_disk(_number(slave), devices, depth - 1) for slave in below}
        return "" if "" in names else "+".join(sorted(names))
    whole = node.parent if (node / "partition").exists() else node
    return f"/dev/{whole.name}"


def _number(slave: Path) -> str:
    try:
        return (slave / "dev").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _mounted(table: str, number: str, path: str) -> tuple[str, str] | None:
    """Kind and source of the file system: that of the device, else that of the longest mount point above the path."""
    best: tuple[int, int, str, str] | None = None
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 5 or len(right) < 2:
            continue
        point = _unescaped(left[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if not inside and left[2] != number:
            continue
        rank = (int(left[2] == number), len(point) if inside else 0)
        if best is None or rank >= best[:2]:
            best = (*rank, right[0], _unescaped(right[1]))
    return (best[2], best[3]) if best is not None else None


def _unescaped(text: str) -> str:
    """Blanks and the like stand as octal numbers (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
