"""`watch` and `status`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rearguard.interfaces.cli.output import age, emit_json, json_option, opened, state_option, table

if TYPE_CHECKING:
    from rearguard.officer.overview import PlaceOverview


@click.command()
@state_option
@json_option
def watch(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Watch every declared place until SIGTERM; take up what a dead officer left. One line an event."""
    from rearguard.model.time import rfc3339_ms
    from rearguard.officer import watching

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with opened(state, settings_path, write=True, create=True) as office:

        def notify(name: str, fields: dict[str, Any]) -> None:
            ts = rfc3339_ms(office.clock.now().wall_ns)
            if as_json:
                click.echo(json.dumps({"ts": ts, "event": name, **fields}))
            else:
                click.echo(f"{ts} {name} " + " ".join(f"{k}={v}" for k, v in fields.items() if v not in ("", None)))

        landed = watching.watch(office, stop, notify)
        if not landed:
            # An order is still under way in a thread that cannot be called back; it must not outlive the lock.
            sys.stdout.flush()
            os._exit(0)


@click.command()
@state_option
@json_option
def status(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """What is served, armed and open at each place, and whether an officer is alive."""
    from rearguard.officer import overview

    with opened(state, settings_path, write=False) as office:
        found = overview.overview(office)
    if as_json:
        emit_json(found)
        return
    click.echo("officer: " + ("alive" if found.officer_alive else "not running (start it: rearguard watch)"))
    lines = [
        (
            str(p.place),
            "armed" if p.armed else "observe",
            _serves(p),
            p.rollback_target or "NONE",
            age(p.rollback_target_age_s) if p.rollback_target else "-",
            p.open_incident or "-",
            _run(p),
        )
        for p in found.places
    ]
    table(
        ("PLACE", "AUTOMATION", "SERVES", "ROLLS BACK TO", "PROVEN", "INCIDENT", "RUN"), lines, "no place is declared"
    )


def _serves(place: PlaceOverview) -> str:
    """What serves, or what is being switched; `?` until a run has proven its target."""
    if place.open_run:
        return f"{place.from_version or '?'} -> {place.to_version or '?'}"
    return place.version or "-"


def _run(place: PlaceOverview) -> str:
    if not place.open_run:
        return "-"
    return f"{place.open_run}: {place.step or 'not begun'}, {place.running_s} s"
