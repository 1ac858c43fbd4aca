"""What systemd is told, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer.systemd import Watchdog, tell


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        yield receiver


def at(seconds: float) -> Instant:
    return Instant(wall_ns=0, mono_ns=int(seconds * NS_PER_S), boot_id="b")


def received(manager: socket.socket) -> list[str]:
    lines: list[str] = []
    try:
        while True:
            lines += manager.recv(4096).decode().splitlines()
    except BlockingIOError:
        return lines


def test_a_path_and_an_abstract_name_are_both_reached(manager: socket.socket, tmp_path: Path) -> None:
    manager.bind(str(tmp_path / "notify"))
    assert tell("READY=1", "STATUS=here", environ={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert received(manager) == ["READY=1", "STATUS=here"]
    name = f"rearguard-unit-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind("\0" + name)
        abstract.setblocking(False)
        assert tell("READY=1", environ={"NOTIFY_SOCKET": f"@{name}"})
        assert received(abstract) == ["READY=1"]


def test_without_systemd_nobody_is_told_and_nothing_fails(tmp_path: Path) -> None:
    assert not tell("READY=1", environ={})
    assert not tell("READY=1", environ={"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_a_sign_is_given_every_half_of_the_limit_and_only_while_healthy(manager: socket.socket, tmp_path: Path) -> None:
    manager.bind(str(tmp_path / "notify"))
    watchdog = Watchdog({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"})
    given = []
    for second in range(0, 100, 5):
        watchdog.tend(at(second), healthy=second < 50, status="")
        given += [second] * received(manager).count("WATCHDOG=1")
    assert given == [0, 15, 30, 45]  # half of 30 s, and nothing from 50 s on


def test_a_watchdog_that_was_meant_for_another_process_gets_nothing(manager: socket.socket, tmp_path: Path) -> None:
    manager.bind(str(tmp_path / "notify"))
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    Watchdog(environ).tend(at(0), healthy=True, status="")
    assert received(manager) == []


def test_a_status_is_told_when_it_changes(manager: socket.socket, tmp_path: Path) -> None:
    manager.bind(str(tmp_path / "notify"))
    watchdog = Watchdog({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for status in ("a", "a", "b"):
        watchdog.tend(at(0), healthy=True, status=status)
    assert received(manager) == ["STATUS=a", "STATUS=b"]
