"""`automation pause | resume | show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import age, by_option, emit_json, json_option, opened, state_option, table

if TYPE_CHECKING:
    from rearguard.model.time import Instant
    from rearguard.officer.automation import Switched

scope_env_option = click.option("--env", default=None, help="One environment; default: every one.")


@click.group()
def automation() -> None:
    """Pause, resume and show what the officer does by itself."""


def _scope(service: str, env: str) -> str:
    if service == env == "*":
        return "everywhere"
    return f"{'every service' if service == '*' else service}/{'every environment' if env == '*' else env}"


def _say(found: Switched, word: str, as_json: bool) -> None:
    if as_json:
        emit_json(found)
        return
    click.echo(f"{_scope(found.service, found.env)}: {word}" + ("" if found.changed else "; it was before"))
    for pause_ in found.paused:
        click.echo(f"paused {_scope(pause_.service, pause_.env)} by {pause_.by}: {pause_.reason}")


@automation.command()
@click.argument("service", required=False)
@scope_env_option
@click.option("--reason", required=True, help="Why; recorded.")
@by_option
@state_option
@json_option
def pause(
    service: str | None,
    env: str | None,
    reason: str,
    by: str,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Hold back every automatic rollback, of SERVICE or everywhere. Breaches are recorded and told; recorded itself."""
    from rearguard.officer import automation as operations
    from rearguard.officer import rollbacks

    with opened(state, settings_path, write=True) as office:
        found = operations.pause(office, service=service, env=env, by=by, reason=reason)
        under_way = [
            run.id
            for run in rollbacks.unfinished(office)
            if run.requested_by == "auto" and service in (None, run.place.service) and env in (None, run.place.env)
        ]
    _say(found, "paused (a breach is recorded and told, nothing is done)", as_json)
    for run_id in under_way:
        if not as_json:
            click.echo(f"{run_id} is under way; it ends unless traffic has moved: rearguard runs show {run_id}")


@automation.command()
@click.argument("service", required=False)
@scope_env_option
@click.option("--reason", default="", help="Why; recorded.")
@by_option
@state_option
@json_option
def resume(
    service: str | None,
    env: str | None,
    reason: str,
    by: str,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> int:
    """Take back the pause that was given with the same words (exit 30: none was); what still breaches is rolled back."""
    from rearguard.officer import automation as operations

    with opened(state, settings_path, write=True) as office:
        found = operations.resume(office, service=service, env=env, by=by, reason=reason)
    _say(found, "resumed" if found.changed else "not paused with these words", as_json)
    for pause_ in () if found.changed else found.paused:
        click.echo(f"to resume what is paused: {operations.resume_command(pause_)}", err=True)
    return 0 if found.changed else 30


@automation.command()
@state_option
@json_option
def show(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """What holds automation back at each place, and until when."""
    from rearguard.officer import automation as operations
    from rearguard.officer import settings_in_force

    with opened(state, settings_path, write=False) as office:
        found = operations.standing(office)
    if as_json:
        emit_json(found)
        return
    lines = [
        (
            str(s.place),
            s.automation,
            s.held_by or "-",
            _instant(s.until),
            age(s.cool_down_left_s) if s.cool_down_left_s else "-",
            f"{s.budget_left} of {s.max_rollbacks} in {age(s.budget_period_s)}",
            _instant(s.deployments_frozen_until),
        )
        for s in found
    ]
    headings = ("PLACE", "AUTOMATION", "HELD BY", "UNTIL", "COOL-DOWN LEFT", "ROLLBACKS LEFT", "NO DEPLOYMENTS UNTIL")
    table(headings, lines, "no place is declared")
    if any(s.settings_changed for s in found):
        click.echo(settings_in_force.CHANGED)
    for place in found:
        if place.holds:
            click.echo(f"{place.place}: {place.holds}")
        for command in place.resume:
            click.echo(f"{place.place}: to resume: {command}")
        if place.approval_required and place.approvers < 1:
            click.echo(f"{place.place}: {operations.NO_APPROVER}: {operations.ENROLL}")
    told = {(p.service, p.env): p for s in found for p in s.paused}
    for pause_ in told.values():
        click.echo(
            f"paused {_scope(pause_.service, pause_.env)} since {pause_.since.rfc3339()} by {pause_.by}: {pause_.reason}"
        )


def _instant(at: Instant | None) -> str:
    return at.rfc3339() if at else "-"
