"""`report render`, `postmortem new`, `log verify`."""

from __future__ import annotations

from pathlib import Path

import click

from rearguard.interfaces.cli.output import emit_json, json_option, opened, state_option


@click.group()
def report() -> None:
    """Render the strict status report."""


_EXIT = {"Ready": 0, "Partial": 10, "Failed": 20}


@report.command()
@click.option("--as-of", default=None, help="RFC 3339 in UTC; default: the newest record's time.")
@click.option("--exit-code", is_flag=True, help="End with 0 Ready, 10 Partial, 20 Failed instead of 0.")
@state_option
@json_option
def render(as_of: str | None, exit_code: bool, state: Path | None, settings_path: Path | None, as_json: bool) -> int:
    """The report in its strict form, byte-identical for the same evidence and --as-of."""
    from rearguard.officer import reporting

    with opened(state, settings_path, write=False) as office:
        found = reporting.status_report(office, as_of=as_of)
    click.echo(reporting.render(found, form="json" if as_json else "markdown"), nl=False)
    return _EXIT[found.verdict.value] if exit_code else 0


@click.group()
def postmortem() -> None:
    """Write a post-mortem."""


@postmortem.command()
@click.argument("incident_id")
@state_option
@json_option
def new(incident_id: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Write postmortems/INCIDENT/postmortem_report.md from the evidence, and a copy as postmortem_report.md."""
    from rearguard.officer import reporting

    with opened(state, settings_path, write=True) as office:
        path = reporting.write_postmortem(office, incident_id)
    if as_json:
        emit_json({"incident": incident_id, "path": path})
        return
    click.echo(str(path))


@click.group()
def log() -> None:
    """Verify the evidence log."""


@log.command()
@state_option
@json_option
def verify(state: Path | None, settings_path: Path | None, as_json: bool) -> int:
    """Check the chain and the named files; exit 65 and the first bad record when something was changed."""
    from rearguard.officer import reporting

    with opened(state, settings_path, write=False) as office:
        found = reporting.verify_evidence(office)
    if as_json:
        emit_json(found)
    elif found.ok:
        click.echo(f"{found.records} records verify, head {found.head}")
    else:
        click.echo(f"{found.file} record {found.id}: {found.message} [{found.code}]")
    return 0 if found.ok else 65
