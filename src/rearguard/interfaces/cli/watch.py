"""`watch` and `status`."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rearguard.interfaces.cli.output import age, duration, emit_json, json_option, opened, state_option, table, waits
from rearguard.interfaces.cli.run import stop_on_signals, until_ended

if TYPE_CHECKING:
    from rearguard.officer.overview import LastRollback, OfficerStanding, PlaceOverview


@click.command()
@state_option
@json_option
def watch(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Watch every declared place until SIGTERM; take up what a dead officer left. One line an event."""
    from rearguard.model.time import rfc3339_ms
    from rearguard.officer import watching

    stop = threading.Event()
    stop_on_signals(stop.set)
    with opened(state, settings_path, write=True, create=True, as_officer=True) as office:

        def notify(name: str, fields: dict[str, Any]) -> None:
            ts = rfc3339_ms(office.clock.now().wall_ns)
            if as_json:
                click.echo(json.dumps({"ts": ts, "event": name, **fields}))
            else:
                click.echo(f"{ts} {name} " + " ".join(f"{k}={v}" for k, v in fields.items() if v not in ("", None)))

        until_ended(lambda: watching.watch(office, stop, notify), notify)


@click.command()
@state_option
@json_option
def status(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """What is served, armed and open at each place, and whether an officer is alive."""
    from rearguard.officer import overview, settings_in_force

    with opened(state, settings_path, write=False) as office:
        found = overview.overview(office)
    if as_json:
        emit_json(found)
        return
    click.echo(f"officer: {_officer(found.officer)}")
    if found.officer.settings_changed:
        click.echo(settings_in_force.CHANGED)
    lines = [
        (
            str(p.place),
            _automation(p),
            _serves(p),
            p.rollback_target or "NONE",
            age(p.rollback_target_age_s) if p.rollback_target else "-",
            _standby(p, officer_alive=found.officer_alive),
            p.open_incident or "-",
            _run(p),
        )
        for p in found.places
    ]
    table(
        ("PLACE", "AUTOMATION", "SERVES", "ROLLS BACK TO", "PROVEN", "WARM STANDBY", "INCIDENT", "RUN"),
        lines,
        "no place is declared",
    )
    for p in found.places:
        if p.last_rollback is not None:
            click.echo(_last(p, p.last_rollback))


def _standby(place: PlaceOverview, *, officer_alive: bool) -> str:
    """The version that stands loaded, or why none does; with nobody in office, what was known last."""
    known = place.standby
    if known is None:
        return "-"
    text = known.version if known.state.value == "standing" else f"none: {known.reason}"
    return text if officer_alive else f"{text} (not looked after)"


def _officer(officer: OfficerStanding) -> str:
    sent = f", heartbeat {age(officer.heartbeat_age_s)} ago" if officer.heartbeat_age_s is not None else ""
    match officer.state:
        case "alive":
            return f"alive (process {officer.pid}){sent}"
        case "hung":
            return f"hung since {officer.idle_s} s (process {officer.pid}); `rearguard run` takes over{sent}"
        case _:
            return f"not running (start it: rearguard run){sent}"


_SPENT = {"cool_down": "cool-down", "budget_spent": "budget spent"}


def _last(place: PlaceOverview, last: LastRollback) -> str:
    reason = f" ({last.reason})" if last.reason and last.reason != last.state else ""
    rto = f", RTO {duration(last.rto_achieved_ms)}" if last.rto_achieved_ms is not None else ""
    to = f" → {last.to_version}" if last.to_version else ""
    what = f"{last.from_version or '?'}{to} {last.state}{reason} {age(last.ended_s)} ago{rto}"
    return f"last rollback of {place.place}: {what}: {last.run_id}"


def _automation(place: PlaceOverview) -> str:
    if not place.armed:
        return "observe"
    if place.held_by in _SPENT:
        until = f" until {place.held_until.rfc3339()}" if place.held_until else ""
        return f"{_SPENT[place.held_by]}{until}"
    return "paused" if place.paused else ("frozen" if place.frozen else "armed")


def _serves(place: PlaceOverview) -> str:
    """What serves, or what is being switched; `?` until a run has proven its target."""
    if place.open_run:
        return f"{place.from_version or '?'} -> {place.to_version or '?'}"
    return place.version or "-"


def _run(place: PlaceOverview) -> str:
    if not place.open_run:
        return "-"
    text = (
        f"{place.open_run}: {place.step or 'not begun'}, {place.running_s if place.step_s is None else place.step_s} s"
    )
    return f"{text}, {waits(place.stands)}" if place.stands and place.stands.next else text
