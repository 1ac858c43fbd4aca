"""What systemd is told, by its notification protocol (`sd_notify(3)`): one datagram of `NAME=value` lines.

Without `NOTIFY_SOCKET` in the environment nobody is told and nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from rearguard.model.time import NS_PER_S, Instant

_NS_PER_US = 1_000


def tell(*lines: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send lines such as `READY=1`; False when nobody listens. An address with a leading `@` is an abstract socket."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a service manager that does not read must not hold the officer
        sender.sendto("\n".join(lines).encode("utf-8"), address)
        return True
    return False


class Watchdog:
    """The signs that systemd's watchdog waits for, given by the loop that must not hang."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        micros, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        asked = micros.isdigit() and (not pid or pid == str(os.getpid()))
        self._environ = environ
        # Half of the limit, as `sd_watchdog_enabled(3)` recommends; once a second when nobody asked, for STATUS alone.
        self._every_ns = int(micros) * _NS_PER_US // 2 if asked else NS_PER_S
        self._asked = asked
        self._told_ns: int | None = None
        self._status = ""

    def tend(self, now: Instant, *, healthy: bool, status: str) -> None:
        """Tell that all is well, if it is and it is time; and the status when it changed."""
        lines = []
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        late = self._told_ns is None or now.mono_ns - self._told_ns >= self._every_ns
        if self._asked and healthy and late:
            self._told_ns = now.mono_ns
            lines.append("WATCHDOG=1")
        if lines:
            tell(*lines, environ=self._environ)
