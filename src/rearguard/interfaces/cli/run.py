"""`run`: the daemon. And how a process that watches ends, which `watch` shares."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rearguard.interfaces.cli.output import json_option, opened, state_option

if TYPE_CHECKING:
    from rearguard.interfaces.cli.log_lines import LogLines
    from rearguard.officer.office import Office

STOP_WITHIN_S = 25.0
"""From the first signal to the end at the latest; below the 30 s that the unit gives us. Runs are durable, so one that
is left in its middle goes on with the next officer."""
DEFAULT_LISTEN = "127.0.0.1:9464"
"""The port that OpenTelemetry's Prometheus exporters have as their default."""

Notify = Callable[[str, dict[str, Any]], None]


@click.command()
@click.option(
    "--listen", default=DEFAULT_LISTEN, show_default=True, help="HOST:PORT of /healthz, /readyz and /metrics, or off."
)
@click.option("--log", "log_path", type=click.Path(path_type=Path, dir_okay=False), help="File; default: stdout.")
@click.option(
    "--log-max-mib", type=click.FloatRange(min=0), default=10, show_default=True, help="Rotate above; 0 never."
)
@click.option("--log-keep", type=click.IntRange(min=1), default=5, show_default=True, help="Rotated files to keep.")
@click.option("--wait", is_flag=True, help="Stand by until no officer is alive, or the one there hangs.")
@state_option
@json_option
def run(
    listen: str,
    log_path: Path | None,
    log_max_mib: float,
    log_keep: int,
    wait: bool,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Be the officer of this state directory: watch, roll back, keep house, answer probes. One JSON line an event."""
    from rearguard.errors import DependencyError
    from rearguard.interfaces.cli.log_lines import LogLines
    from rearguard.interfaces.endpoint import parse_address

    address = parse_address(listen)
    try:
        lines = LogLines(log_path, max_mib=log_max_mib, keep=log_keep)
    except OSError as error:
        hint = "make its folder writable, or name another with --log"
        raise DependencyError("log_unwritable", f"cannot write {log_path}: {error.strerror}", hint) from error
    with (
        closing(lines),
        opened(state, settings_path, write=True, create=True, as_officer=True, patient=wait) as office,
    ):
        _run(office, lines, address, wait=wait)


def _run(office: Office, lines: LogLines, address: tuple[str, int] | None, *, wait: bool) -> None:
    from rearguard.interfaces.endpoint import Endpoint, Sources
    from rearguard.officer import daemon as daemons

    def notify(name: str, fields: dict[str, Any]) -> None:
        lines.write(office.clock.now().rfc3339_ms(), name, fields)

    us = daemons.Daemon(office, notify, threading.Event(), each_turn=lines.tend)
    components = []
    if address is not None:
        endpoint = Endpoint(*address, Sources(us.health, us.ready, us.figures))
        daemons.listen(us, endpoint.bind, wait=wait)
        components.append(endpoint.component(us.stop))

    def ask_to_stop() -> None:
        us.ask_to_stop()
        timer = threading.Timer(STOP_WITHIN_S, end_now, (0,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGHUP, lambda *_: lines.ask_to_reopen())
    stop_on_signals(ask_to_stop)
    until_ended(lambda: daemons.run(us, wait=wait, components=components), notify)


def stop_on_signals(ask_to_stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT asks, a second one ends the process at once (130)."""
    asked = False

    def on_signal(*_: Any) -> None:
        nonlocal asked
        if asked:
            end_now(130)
        asked = True
        ask_to_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def until_ended(watch: Callable[[], bool], notify: Notify) -> None:
    """Work until the watch ends; where threads are left that must do nothing more, the process ends with it.

    Superseded by another officer: says so and ends with 75, closing, flushing and writing nothing else.
    """
    from rearguard.errors import ConflictError

    try:
        landed = watch()
    except ConflictError as error:
        if error.code != "officer_superseded":
            raise
        notify(error.code, {"message": error.message})
        sys.stderr.write(f"error: {error.message} [{error.code}]\n")
        end_now(error.exit_code)
        raise
    if not landed:
        # An order is still under way in a thread that cannot be called back; it must not outlive the lock.
        end_now(0)


def end_now(code: int) -> None:
    """End this process without another word, whatever its threads are doing."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(code)
