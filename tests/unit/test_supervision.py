"""Supervision on a clock that the test moves: hung, dead, started again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer.housekeeping import Housekeeper, Job
from rearguard.officer.supervision import Component, Pulse, Supervisor


class Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.mono_ns = 10**12

    def now(self) -> Instant:
        return Instant(wall_ns=self.mono_ns, mono_ns=self.mono_ns, boot_id="b")

    def pass_s(self, seconds: float) -> None:
        self.mono_ns += int(seconds * NS_PER_S)


class Told:
    """Events, as people would see them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.changed = threading.Condition()

    def __call__(self, name: str, fields: dict[str, Any]) -> None:
        with self.changed:
            self.events.append((name, fields))
            self.changed.notify_all()


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_component_without_progress_is_hung_after_its_limit_and_not_before(stop: threading.Event) -> None:
    time = Time()
    supervisor = Supervisor(time.now, Told(), stop)
    supervisor.pulse("loop", 10)
    time.pass_s(10)
    assert supervisor.health()[0].state == "alive"
    time.pass_s(1)
    (health,) = supervisor.health()
    assert (health.state, health.ok, health.idle_s) == ("hung", False, 11.0)


def test_a_part_that_waits_for_something_outside_is_hung_and_no_reason_to_end_the_process(
    stop: threading.Event,
) -> None:
    time = Time()
    supervisor = Supervisor(time.now, Told(), stop)
    pulse = supervisor.pulse("loop", 10)
    time.pass_s(11)
    pulse.wait("database_unavailable")
    (health,) = supervisor.health()
    assert (health.state, health.vital, health.detail) == ("hung", False, "database_unavailable")
    pulse.beat()
    (health,) = supervisor.health()
    assert (health.state, health.vital) == ("alive", True)


def test_a_thread_that_died_is_named_with_its_error_and_started_again_after_a_pause(stop: threading.Event) -> None:
    time, told, starts = Time(), Told(), []
    supervisor = Supervisor(time.now, told, stop)

    def body(pulse: Pulse) -> None:
        starts.append(1)
        if len(starts) == 1:
            raise ValueError("broken")
        stop.wait()

    supervisor.start(Component(name="part", body=body, limit_s=10))
    while supervisor.health()[0].state != "dead":
        pass
    assert supervisor.health()[0].detail == "ValueError: broken"
    supervisor.look()
    assert len(starts) == 1  # one second of pause first
    time.pass_s(1)
    supervisor.look()
    assert supervisor.health()[0].state == "alive"
    assert told.events == [("component_restarted", {"component": "part", "error": "ValueError: broken"})]


def test_the_pause_doubles_while_a_component_dies_at_once(stop: threading.Event) -> None:
    time, told = Time(), Told()
    supervisor = Supervisor(time.now, told, stop)
    supervisor.start(Component(name="part", body=lambda _pulse: None, limit_s=10))
    for pause_s in (1, 2, 4, 8):
        while supervisor.health()[0].state != "dead":
            pass
        supervisor.look()
        time.pass_s(pause_s - 0.001)
        supervisor.look()
        before = len(told.events)
        time.pass_s(0.001)
        supervisor.look()
        assert len(told.events) == before + 1


def house(time: Time, told: Told, *jobs: Job, allowed: bool = True) -> Housekeeper:
    return Housekeeper(jobs, time.now, told, lambda: allowed)


def test_a_job_that_hangs_keeps_no_other_from_running_and_is_not_begun_twice() -> None:
    time, told, release, runs = Time(), Told(), threading.Event(), threading.Semaphore(0)
    begun: list[int] = []

    def hang() -> None:
        begun.append(1)
        release.wait(30)

    keeper = house(time, told, Job(name="hangs", every_s=0, work=hang), Job(name="works", every_s=0, work=runs.release))
    for _ in range(3):
        keeper.turn()
        assert runs.acquire(timeout=10)
        while keeper.standing()[1].running_s is not None:
            pass
        time.pass_s(1)
    hanging, working = keeper.standing()
    release.set()
    keeper.close(10)
    assert len(begun) == 1
    assert hanging.running_s == 3.0  # begun with the first turn, three seconds ago
    assert (hanging.succeeded_age_s, working.succeeded_age_s) == (3.0, 1.0)


def test_a_job_that_fails_is_told_and_runs_again() -> None:
    time, told = Time(), Told()
    answers = iter([ValueError("first"), None])
    done = threading.Event()

    def work() -> None:
        answer = next(answers, None)
        if answer is not None:
            raise answer
        done.set()

    keeper = house(time, told, Job(name="job", every_s=0, work=work))
    keeper.turn()
    with told.changed:
        assert told.changed.wait_for(lambda: told.events, timeout=10)
    assert told.events == [("housekeeping_failed", {"job": "job", "code": "internal", "message": "ValueError: first"})]
    while not done.is_set():
        keeper.turn()
    keeper.close(10)
    assert not keeper.standing()[0].failing


def test_an_officer_that_was_replaced_does_no_more_jobs() -> None:
    time, told, worked = Time(), Told(), []
    keeper = house(time, told, Job(name="job", every_s=0, work=lambda: worked.append(1)), allowed=False)
    keeper.turn()
    keeper.close(10)
    assert worked == []
