"""Supervision: every thread of the daemon shows progress; one that died is started again, one that hangs is named.

A thread that hangs cannot be ended from outside, so nothing is tried with it: the process calls itself unhealthy, stops
its signs of life, and whoever watches it (systemd, an orchestrator, a standby officer) ends or replaces it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer.housekeeping import Notify

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Between two starts of a component that dies again and again; doubled in between, and forgotten once it has lived for
as long as this. Chosen."""


class Pulse:
    """Where one component shows that it makes progress. Any thread may read it."""

    def __init__(self, name: str, limit_s: float, now: Callable[[], Instant]) -> None:
        """`limit_s`: without progress for longer than this it counts as hung."""
        self.name = name
        self.limit_s = limit_s
        self._now = now
        self.at = now()
        self.trouble = ""
        self.stuck = False
        self.waits = False

    def beat(self) -> None:
        """Progress was made."""
        self.at = self._now()
        self.trouble, self.stuck, self.waits = "", False, False

    def fail(self, why: str, *, stuck: bool = False) -> None:
        """It is there and cannot do its work: no progress, with a reason. `stuck`: it counts as hung from now on."""
        self.trouble, self.stuck, self.waits = why, stuck, False

    def wait(self, why: str) -> None:
        """As `fail`, but only for something outside, of which a new process would be no cure: no reason to end this one."""
        self.trouble, self.stuck, self.waits = why, False, True


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A thread of the daemon: `body` works until the daemon stops and beats on the way; its return is its death."""

    name: str
    body: Callable[[Pulse], None]
    limit_s: float
    vital: bool = True
    """False: without it the officer still does its duty, so it is no reason to end the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentHealth:
    """How one component is."""

    name: str
    ok: bool
    state: str
    """`alive`, `hung` (no progress for longer than its limit) or `dead` (it is about to be started again)."""
    since: Instant
    """Its last progress."""
    idle_s: float
    vital: bool = True
    detail: str = ""


@dataclass
class _Attended:
    component: Component
    pulse: Pulse
    thread: threading.Thread
    began_ns: int
    pause_s: float = FIRST_PAUSE_S
    restart_at_ns: int | None = None
    death: str = field(default="")


class Supervisor:
    """Starts components and keeps them alive. `look` is called by one thread, `health` by any."""

    def __init__(self, now: Callable[[], Instant], notify: Notify, stop: threading.Event) -> None:
        self._now = now
        self._notify = notify
        self._stop = stop
        self._pulses: dict[str, Pulse] = {}
        self._attended: dict[str, _Attended] = {}

    def pulse(self, name: str, limit_s: float) -> Pulse:
        """The pulse of something that has a thread already."""
        return self._pulses.setdefault(name, Pulse(name, limit_s, self._now))

    def drop(self, name: str) -> None:
        """Expect nothing more of something that had a pulse."""
        self._pulses.pop(name, None)

    def start(self, component: Component) -> None:
        """Begin a component."""
        pulse = Pulse(component.name, component.limit_s, self._now)
        attended = _Attended(component, pulse, threading.Thread(), self._now().mono_ns)
        self._attended[component.name] = attended
        self._begin(attended)

    def look(self) -> None:
        """Start again what has died, each with a pause that grows."""
        now_ns = self._now().mono_ns
        for attended in list(self._attended.values()):
            if attended.thread.is_alive() or self._stop.is_set():
                continue
            if attended.restart_at_ns is None:
                if now_ns - attended.began_ns > LONGEST_PAUSE_S * NS_PER_S:
                    attended.pause_s = FIRST_PAUSE_S
                attended.restart_at_ns = now_ns + int(attended.pause_s * NS_PER_S)
                attended.pause_s = min(LONGEST_PAUSE_S, attended.pause_s * 2)
            if now_ns >= attended.restart_at_ns:
                attended.restart_at_ns = None
                name, death = attended.component.name, attended.death
                self._begin(attended)
                self._notify("component_restarted", {"component": name, "error": death})

    def health(self) -> tuple[ComponentHealth, ...]:
        """How every component is, by name."""
        now = self._now()
        found = [_standing(pulse, now) for pulse in list(self._pulses.values())]
        for attended in list(self._attended.values()):
            dead = "" if attended.thread.is_alive() else attended.death or "it returned"
            found.append(_standing(attended.pulse, now, dead, vital=attended.component.vital))
        return tuple(sorted(found, key=lambda component: component.name))

    def _begin(self, attended: _Attended) -> None:
        attended.pulse.beat()
        attended.began_ns = self._now().mono_ns
        attended.thread = threading.Thread(
            target=self._live, args=(attended,), name=attended.component.name, daemon=True
        )
        attended.thread.start()

    def _live(self, attended: _Attended) -> None:
        try:
            attended.component.body(attended.pulse)
            attended.death = "it returned"
        except Exception as error:
            attended.death = f"{type(error).__name__}: {error}"


def _standing(pulse: Pulse, now: Instant, dead: str = "", *, vital: bool = True) -> ComponentHealth:
    idle_s = max(0.0, elapsed(pulse.at, now).ns / NS_PER_S)
    state = "dead" if dead else "hung" if pulse.stuck or idle_s > pulse.limit_s else "alive"
    return ComponentHealth(
        name=pulse.name,
        ok=state == "alive",
        state=state,
        since=pulse.at,
        idle_s=round(idle_s, 3),
        vital=vital and not pulse.waits,
        detail=dead or pulse.trouble,
    )
