"""`incident list | show | ack | close`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import (
    by_option,
    duration,
    emit_json,
    json_option,
    opened,
    state_option,
    table,
    to_json,
)

if TYPE_CHECKING:
    from rearguard.model.incident import Incident
    from rearguard.officer.incident_view import IncidentView


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


def _say_more(found: IncidentView) -> None:
    click.echo(f"  observed  {found.observed}, {found.figures['samples']} samples")
    for run in found.runs:
        reason = f" ({run.reason})" if run.reason and run.reason != run.state else ""
        ended = f" {run.ended_at.rfc3339()}" if run.ended_at else ""
        to = f", to {run.to_version}" if run.to_version else ""
        rto = f", RTO {duration(run.rto_achieved_ms)}" if run.rto_achieved_ms is not None else ""
        click.echo(f"  rollback  {run.id} by {run.requested_by}: {run.state}{reason}{ended}{to}{rto}")
    if found.holds:
        click.echo(f"  held back {found.holds}")
    if found.closed_at:
        click.echo(f"  closed    {found.closed_at} by {found.closed_by}")


def _say(found: Incident, as_json: bool, more: IncidentView | None = None) -> None:
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.id}  {found.place}  {found.trigger.label}  {found.state.value}")
    click.echo(f"  since     {found.t0.rfc3339_ms()} (detected {found.t1.rfc3339_ms()})")
    click.echo(f"  answering {f'{more.version} ' if more and more.version else ''}{found.digest}")
    click.echo(f"  attached  {', '.join(t.label for t in found.attached) or '-'}")
    if more is None:
        click.echo(f"  run       {found.run_id or '-'}")
    else:
        _say_more(more)
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
    """One incident: what was observed, what was done about it, what holds a rollback back."""
    from rearguard.officer import incident_view

    with opened(state, settings_path, write=False) as office:
        found = incident_view.view(office, incident_id)
    if as_json:
        whole = to_json(found)
        emit_json({**whole.pop("incident"), **whole})
        return
    _say(found.incident, False, found)


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
