"""The daemon: one watch, supervised, that can be asked how it is, by people, probes, Prometheus and systemd.

Owns what surrounds a watch: standing by until the office is free, the sign of life, systemd's notifications, and the
answers of `/healthz`, `/readyz` and `/metrics`. Health is answered from memory alone, so that a hung disk or database
cannot hide that something hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rearguard.database import make_way, officer_presence
from rearguard.errors import ConflictError, DatabaseBusyError, DependencyError
from rearguard.handoffs.courier import Couriers
from rearguard.model.time import Instant
from rearguard.officer import systemd, watching
from rearguard.officer.fresh_settings import FreshSettings
from rearguard.officer.heartbeat import NOTE_EVERY_S, Heartbeat
from rearguard.officer.housekeeping import Job, Notify
from rearguard.officer.metrics import Figure, Living, Metrics
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.supervision import Component, ComponentHealth, Supervisor

STANDBY_LOOK_S = 0.5
"""Between two looks of a standby officer at the office."""
RETRY_S = 2.0
"""Between two take-overs that fail for the database. Chosen."""
STARTING, STANDBY, IN_OFFICE, STOPPING, FAILING = "starting", "standby", "ok", "stopping", "failing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What `/healthz` and `/readyz` answer."""

    ok: bool
    status: str
    """`ok`, `starting`, `standby`, `stopping`, or `failing` when a part makes no progress."""
    components: tuple[ComponentHealth, ...]
    heartbeat_age_s: float | None
    """Seconds since the sign of life was last taken; None when none is declared, or before the first."""
    reason: str = ""
    """What is wrong with the files of settings: a standby would take over on those that it has read before. Else empty."""


class Daemon:
    """What of a daemon can be asked from any thread."""

    def __init__(
        self,
        office: Office,
        notify: Notify,
        stop: threading.Event,
        *,
        each_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`each_turn` is called by the loop that watches, or stands by."""
        self.office = office
        self.each_turn = each_turn
        self.notify = notify
        self.stop = stop
        self.supervisor = Supervisor(office.clock.now, notify, stop)
        self.phase = STARTING
        self.officer: watching._Officer | None = None
        self.heartbeat: Heartbeat | None = None
        self._started = office.clock.now()
        self._metrics = Metrics(office)
        self._couriers: Couriers | None = None
        self._told = ""
        self.fresh = FreshSettings(office, notify)

    def ask_to_stop(self) -> None:
        """Finish what cannot be called back, or hand over; safe in a signal handler."""
        self.stop.set()
        systemd.tell("STOPPING=1", "STATUS=handing over")

    def health(self) -> Health:
        """Whether every part makes progress; true of a standby too, whose part is to wait."""
        components, now = self.supervisor.health(), self.office.clock.now()
        stopping = self.stop.is_set()  # its parts end one after the other, and that is as it should be
        ok = stopping or all(component.ok for component in components)
        return Health(
            ok=ok,
            status=(STOPPING if stopping else self.phase) if ok else FAILING,
            components=components,
            heartbeat_age_s=self.heartbeat.age_s(now) if self.heartbeat else None,
        )

    def ready(self) -> Health:
        """As `health`, but true only of the officer in office."""
        found = self.health()
        return Health(
            ok=found.ok and found.status == IN_OFFICE,
            status=found.status,
            components=found.components,
            heartbeat_age_s=found.heartbeat_age_s,
            reason=self.fresh.trouble.message if self.fresh.trouble else "",
        )

    def vital(self) -> bool:
        """Whether the parts without which the officer cannot do its duty make progress."""
        return all(component.ok for component in self.supervisor.health() if component.vital)

    def cry(self, title: str, fields: dict[str, str], *, cause: str) -> None:
        """Page without a record, as `Couriers.cry`: while nobody is in office there may be nobody who delivers one."""
        if self._couriers is None:
            self._couriers = Couriers(self.office.database, self.office.clock, self.office.channels(), self.notify)
        self._couriers.cry(title, fields, cause=cause)

    def stand_down(self, error: DependencyError) -> None:
        """The office could be taken and not be held, for the database: told, and this process stands by again."""
        self.office.retire()
        self.officer, self.heartbeat, self.phase = None, None, STANDBY
        for name in watching.LOOP_PARTS:
            self.supervisor.drop(name)
        systemd.tell("READY=1")
        if error.message != self._told:
            self._told = error.message
            self.notify("take_over_failed", {"code": error.code, "message": error.message, "next": error.hint})
        fields = {"state": str(self.office.state), "error": error.message, "next": error.hint}
        self.cry("Rearguard cannot write its records, and no officer is in office", fields, cause="database")

    def figures(self) -> tuple[Figure, ...]:
        """All metrics. Raises `DependencyError` when the database cannot be read."""
        now = self.office.clock.now()
        health, officer = self.health(), self.officer
        living = Living(
            up=health.ok and self.phase == IN_OFFICE,
            started=self._started,
            health=health.components,
            jobs=officer.housekeeper.standing() if officer else (),
            watches=officer.watches if officer else (),
            standby_rss_bytes=officer.standbys.rss_bytes() if officer else {},
            freeable_bytes=officer.store_look.freeable_bytes if officer else None,
            heartbeat_age_s=health.heartbeat_age_s,
        )
        return self._metrics.collect(living, now)


def listen(daemon: Daemon, bind: Callable[[], tuple[str, int]], *, wait: bool) -> None:
    """Take the endpoint's address before anything else is done, so that a wrong one is said at once.

    Raises `DependencyError` `listen_failed`; but not while somebody holds the office: an officer that hangs keeps its
    port, and who takes over from it must not fail for that. The address is then tried again and again.
    """
    try:
        host, port = bind()
    except DependencyError as error:
        if not wait and not officer_presence(daemon.office.state, daemon.office.clock.now()).held:
            raise
        daemon.notify("endpoint_unavailable", {"code": error.code, "message": error.message})
        return
    daemon.notify("endpoint_listening", {"host": host, "port": port})


@operation(Effect.COMMIT)
def run(daemon: Daemon, *, wait: bool, components: Sequence[Component] = ()) -> bool:
    """Be the officer until the daemon's `stop` is set; returns and raises as `watching.watch`.

    `components` live from the first to the last moment. With `wait`, stands by until the office is free or its holder
    hangs; without it, `ConflictError` `officer_alive` when somebody shows progress there. With `wait`, a database that
    cannot be written at the take-over is no end either: somebody is paged, and this process tries again.
    """
    office, watchdog = daemon.office, systemd.Watchdog()
    for component in components:
        daemon.supervisor.start(component)

    def attend(officer: watching._Officer) -> tuple[Component, ...]:
        daemon.officer = officer
        daemon.phase = IN_OFFICE
        systemd.tell("READY=1")
        daemon.fresh.page()
        beat = office.settings.heartbeat
        if beat is None:
            return ()

        def healthy() -> bool:
            # Asked anew by a process that has just woken up: it may have been replaced meanwhile.
            return officer.held() and daemon.health().ok

        daemon.heartbeat = Heartbeat(office, beat, healthy, daemon.notify)
        officer.housekeeper.add(Job(name="heartbeat", every_s=NOTE_EVERY_S, work=daemon.heartbeat.note))
        return (daemon.heartbeat.component(daemon.stop),)

    def each_turn() -> None:
        daemon.each_turn()
        vital = daemon.vital()
        watchdog.tend(office.clock.now(), healthy=vital, status="watching" if vital else "a part makes no progress")

    while not wait or _stand_by(daemon, watchdog):
        try:
            return watching.watch(
                office,
                daemon.stop,
                daemon.notify,
                supervisor=daemon.supervisor,
                attend=attend,
                each_turn=each_turn,
            )
        except ConflictError as error:
            if not wait or error.code != "officer_alive":
                raise  # else another one who stood by was faster
        except DependencyError as error:
            # Still holding the office: an order is under way in a thread that cannot be called back.
            if not wait or error.code != "database_unavailable" or office.held():
                raise
            daemon.stand_down(error)
            daemon.each_turn()
            watchdog.tend(office.clock.now(), healthy=True, status="standing by: the database cannot be written")
            daemon.stop.wait(RETRY_S)
    return True


def _make_way(office: Office, now: Instant) -> bool:
    """A hung officer that keeps everybody from writing is ended; False when the office is not to be taken now.

    It shows progress again, or somebody else keeps it and everybody from writing.
    """
    try:
        make_way(office.state, now)
    except (ConflictError, DatabaseBusyError):
        return False
    return True


def _stand_by(daemon: Daemon, watchdog: systemd.Watchdog) -> bool:
    """Wait for the office; False when the daemon was stopped meanwhile."""
    office, told = daemon.office, False
    _ = office.settings, office.playbook  # what cannot be read is said now, not when it is needed
    office.refuse_silent_channels()
    pulse = daemon.supervisor.pulse("standby", watching.LOOP_LIMIT_S)
    while not daemon.stop.is_set():
        now = office.clock.now()
        pulse.beat()
        presence = officer_presence(office.state, now)
        if (not presence.held or presence.hung) and _make_way(office, now):
            daemon.supervisor.drop("standby")
            daemon.fresh.read()
            return True
        daemon.fresh.look()
        if not told:
            told = True
            daemon.phase = STANDBY
            systemd.tell("READY=1")
            daemon.notify("standing_by", {"pid": presence.pid or 0})
        daemon.supervisor.look()
        daemon.each_turn()
        watchdog.tend(now, healthy=True, status=f"standing by for process {presence.pid or 'unknown'}")
        daemon.stop.wait(STANDBY_LOOK_S)
    daemon.supervisor.drop("standby")
    return False
