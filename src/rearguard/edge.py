"""The edge: the only place where the system clock, the boot id and randomness are read."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from rearguard.model.time import Instant

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, lower case: no look-alikes in an id that people read aloud."""


def read_boot_id() -> str:
    """The kernel's id of this boot: monotonic stamps with different boot ids never subtract."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class SystemClock:
    """`ports.Clock` on the kernel's clocks."""

    def __init__(self) -> None:
        self._boot_id = read_boot_id()

    def now(self) -> Instant:
        """Both clocks, read one after the other."""
        return Instant(wall_ns=time.time_ns(), mono_ns=time.monotonic_ns(), boot_id=self._boot_id)

    def sleep(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)


class SystemIds:
    """`ports.IdSource` from the kernel's randomness."""

    def run_id(self) -> str:
        """`run_` and 16 letters or digits: 80 random bits."""
        return "run_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
