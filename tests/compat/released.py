"""A state directory of an earlier release, unpacked, and the clock of the host that it was left on."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

from make_state import POINTS, write_settings

from rearguard.edge import SystemClock
from rearguard.model.time import Instant, parse_rfc3339

HERE = Path(__file__).parent
SCHEMAS = {"c2ed177": "1", "2da4c1f": "2"}
"""By release, oldest first."""
KILLED = tuple(f"killed-{point.replace(':', '-').replace('_', '-')}" for point in POINTS)
NAMES = tuple(f"{release}/{killed}" for release in SCHEMAS for killed in KILLED)
BEFORE_SWITCH, AFTER_SWITCH, AFTER_PROOF = (f"c2ed177/{killed}" for killed in KILLED)
"""Of the oldest release, for what is the same with each."""


class GoingOn:
    """The clock of the host on which the process died, from the newest record of its log on."""

    def __init__(self, state: Path) -> None:
        ((ts, mono, boot),) = rows(
            state, "SELECT ts, monotonic_ns, boot_id FROM evidence WHERE id = (SELECT MAX(id) FROM evidence)"
        )
        self._real = SystemClock()
        self._began_ns = self._real.now().mono_ns
        self._died = Instant(wall_ns=parse_rfc3339(ts), mono_ns=int(mono), boot_id=boot)

    def now(self) -> Instant:
        return self._died.plus(self._real.now().mono_ns - self._began_ns)

    def sleep(self, seconds: float) -> None:
        self._real.sleep(seconds)


def unpacked(name: str, folder: Path) -> Path:
    """The state directory as the process left it, with settings for this machine."""
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    write_settings(folder / "state")
    return folder / "state"


def rows(state: Path, query: str, *values: str) -> list[tuple[str, ...]]:
    """What stands in the database, read past the product."""
    raw = sqlite3.connect(state / "rearguard.db")
    try:
        return raw.execute(query, values).fetchall()
    finally:
        raw.close()


def digest_of(state: Path, version: str) -> str:
    """Digest of a checkpoint, by its label."""
    return rows(state, "SELECT digest FROM checkpoints WHERE version = ?", version)[0][0]
