"""The sign of life that goes somewhere else, so that our silence is noticed there (a dead man's switch).

It is sent only while the officer is healthy, from a thread of its own: a receiver that is down or hangs costs nothing
else, and an officer that hangs says nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from rearguard import plugins
from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.config.channels import filled
from rearguard.database import Connection, sql
from rearguard.errors import RearguardError
from rearguard.model.settings import HeartbeatSettings
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer.housekeeping import Notify
from rearguard.officer.office import Office
from rearguard.officer.supervision import Component, Pulse
from rearguard.ports import Channel, Message

NOTE_EVERY_S = 5.0
RETRY_S = 10.0
"""After a receiver did not take one, if that is sooner than the next would be. Chosen."""
LOOK_EVERY_S = 0.5
LIMIT_S = 60.0
"""A delivery that takes longer than this hangs: channels give up after 10 s."""
_KEY = "heartbeat_sent_at"


class Heartbeat:
    """Sends the sign of life of one officer."""

    def __init__(
        self, office: Office, settings: HeartbeatSettings, healthy: Callable[[], bool], notify: Notify
    ) -> None:
        self._office = office
        self._settings = settings
        self._healthy = healthy
        self._notify = notify
        self._channel: Channel | None = None
        self._tried: Instant | None = None
        self._sent: Instant | None = None
        self._noted: Instant | None = None
        self._failing = False

    def component(self, stop: threading.Event) -> Component:
        """Its thread."""

        def body(pulse: Pulse) -> None:
            while not stop.wait(LOOK_EVERY_S):
                self.turn(self._office.clock.now())
                pulse.beat()

        return Component(name="heartbeat", body=body, limit_s=LIMIT_S, vital=False)

    def age_s(self, now: Instant) -> float | None:
        """Seconds since this officer's last one was taken; None before the first."""
        sent = self._sent
        return None if sent is None else max(0.0, elapsed(sent, now).ns / NS_PER_S)

    def turn(self, now: Instant) -> None:
        """Send one if it is time and all is well."""
        every_s: float = min(self._settings.every_s, RETRY_S) if self._failing else self._settings.every_s
        if self._tried is not None and elapsed(self._tried, now).ns < every_s * NS_PER_S:
            return
        if not self._healthy():
            return
        self._tried = now
        try:
            if self._channel is None:
                build = plugins.load("rearguard.channels", self._settings.channel.kind)
                self._channel = build(filled(self._settings.channel))
            self._channel.deliver(self._message(now))
            self._sent = now
        except RearguardError as error:
            if not self._failing:
                self._notify("heartbeat_failed", {"code": error.code, "message": error.message})
            self._failing = True
            return
        if self._failing:
            self._notify("heartbeat_back", {})
        self._failing = False

    def note(self) -> None:
        """Write down when the newest was taken, for `status`; a job of the house, so that no database delays a sign."""
        sent = self._sent
        if sent is None or sent == self._noted:
            return
        with self._office.database.transaction() as connection:
            connection.execute(
                sql("INSERT INTO meta VALUES (:key, :at) ON CONFLICT (key) DO UPDATE SET value = :at"),
                {"key": _KEY, "at": encode_instant(sent)},
            )
        self._noted = sent

    def _message(self, now: Instant) -> Message:
        host = os.uname().nodename
        return Message(
            key=f"heartbeat-{host}-{now.wall_ns // NS_PER_S}",
            title=f"Rearguard is alive on {host}",
            fields={
                "host": host,
                "pid": str(os.getpid()),
                "state": str(self._office.state),
                "every_s": str(self._settings.every_s),
                "at": now.rfc3339(),
            },
            cause="heartbeat",
        )


def last_sent(connection: Connection) -> Instant | None:
    """When the newest sign of life was taken, of whichever officer; None when none ever was."""
    value = connection.execute(sql("SELECT value FROM meta WHERE key = :key"), {"key": _KEY}).scalar()
    return decode_instant(value) if value else None
