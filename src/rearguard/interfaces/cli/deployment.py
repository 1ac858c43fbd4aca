"""`deploy` and `deployment record | list`."""

from __future__ import annotations

from pathlib import Path

import click

from rearguard.interfaces.cli.output import by_option, emit_json, env_option, json_option, opened, state_option, table


@click.command()
@click.argument("service")
@click.argument("version")
@env_option
@by_option
@state_option
@json_option
def deploy(
    service: str, version: str, env: str | None, by: str, state: Path | None, settings_path: Path | None, as_json: bool
) -> None:
    """Put checkpoint VERSION of SERVICE in front of traffic, through the target that a rollback uses."""
    from rearguard.officer import deployments

    with opened(state, settings_path, write=True) as office:
        found = deployments.deploy(office, service=service, env=env, version=version, by=by)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.place}: {found.version} answers ({found.digest[7:19]})")
    if found.compliance_baseline is not None:
        click.echo(f"compliance baseline frozen at {found.compliance_baseline:.2f}")


@click.group()
def deployment() -> None:
    """Record or list deployments."""


@deployment.command()
@click.argument("service")
@click.argument("version")
@env_option
@by_option
@state_option
@json_option
def record(
    service: str, version: str, env: str | None, by: str, state: Path | None, settings_path: Path | None, as_json: bool
) -> None:
    """Announce a rollout that another tool does. Refused (30) for a quarantined checkpoint or during a rollback."""
    from rearguard.officer import deployments

    with opened(state, settings_path, write=True) as office:
        found = deployments.record(office, service=service, env=env, version=version, by=by)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.place}: {found.version} recorded")


@deployment.command("list")
@click.option("--service", default=None)
@state_option
@json_option
def list_(service: str | None, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """All deployments, oldest first."""
    from rearguard.officer import deployments

    with opened(state, settings_path, write=False) as office:
        found = deployments.list_deployments(office, service)
    if as_json:
        emit_json(found)
        return
    lines = [
        (
            d.started_at.rfc3339(),
            str(d.place),
            d.version or "-",
            d.digest[7:19],
            d.source,
            d.state,
            d.compliance_baseline or "-",
        )
        for d in found
    ]
    headings = ("SINCE", "PLACE", "VERSION", "DIGEST", "SOURCE", "STATE", "COMPLIANCE BASELINE")
    table(headings, lines, "nothing was deployed yet")
