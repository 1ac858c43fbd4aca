"""`incident list | show | ack | close`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import by_option, emit_json, json_option, opened, state_option, table

if TYPE_CHECKING:
    from rearguard.model.incident import Incident


@click.group()
def incident() -> None:
    """List, show, acknowledge and close incidents."""


@incident.command("list")
@state_option
@json_option
def list_(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """All incidents, oldest first."""
    from rearguard.officer import incidents

    with opened(state, settings_path, write=False) as office:
        found = incidents.list_incidents(office)
    if as_json:
        emit_json(found)
        return
    lines = [
        (i.id, str(i.place), i.trigger.label, i.state.value, i.t0.rfc3339(), i.run_id or "-", i.acked_by or "-")
        for i in found
    ]
    table(("INCIDENT", "PLACE", "TRIGGER", "STATE", "SINCE", "RUN", "ACKNOWLEDGED BY"), lines, "no incident")


def _say(found: Incident, as_json: bool) -> None:
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.id}  {found.place}  {found.trigger.label}  {found.state.value}")
    click.echo(f"  since     {found.t0.rfc3339_ms()} (detected {found.t1.rfc3339_ms()})")
    click.echo(f"  answering {found.digest}")
    click.echo(f"  attached  {', '.join(t.label for t in found.attached) or '-'}")
    click.echo(f"  run       {found.run_id or '-'}")
    click.echo(f"  acknowledged by {found.acked_by or '-'}{'; false positive' if found.false_positive else ''}")
    if found.run_id:
        click.echo(f"next: rearguard runs show {found.run_id}")
    elif found.state.value == "open":
        click.echo(f"next: rearguard rollback plan {found.place.service} --env {found.place.env}")


@incident.command()
@click.argument("incident_id")
@state_option
@json_option
def show(incident_id: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """One incident."""
    from rearguard.officer import incidents

    with opened(state, settings_path, write=False) as office:
        _say(incidents.show(office, incident_id), as_json)


@incident.command()
@click.argument("incident_id")
@by_option
@state_option
@json_option
def ack(incident_id: str, by: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Say that you have it."""
    from rearguard.officer import incidents

    with opened(state, settings_path, write=True) as office:
        _say(incidents.acknowledge(office, incident_id, by=by), as_json)


@incident.command()
@click.argument("incident_id")
@click.option("--false-positive", is_flag=True, help="There was no fault: the rule was wrong.")
@by_option
@state_option
@json_option
def close(
    incident_id: str, false_positive: bool, by: str, state: Path | None, settings_path: Path | None, as_json: bool
) -> None:
    """Close by hand."""
    from rearguard.officer import checkpoints, incidents

    with opened(state, settings_path, write=True) as office:
        found = incidents.close(office, incident_id, by=by, false_positive=false_positive)
        held = [
            r for r in checkpoints.list_checkpoints(office, found.place.service) if r.checkpoint.digest == found.digest
        ]
    _say(found, as_json)
    for row in held:
        if found.place.env in row.quarantined_at and not as_json:
            version, place = row.checkpoint.version, found.place
            click.echo(
                f"{version} is still quarantined at {place.env}; to lift it: rearguard checkpoint release "
                f"--service {place.service} --version {version} --env {place.env} --reason TEXT"
            )
