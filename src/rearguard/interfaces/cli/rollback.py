"""`rollback plan | run` and `runs list | show | cancel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import by_option, emit_json, env_option, json_option, opened, state_option, table

if TYPE_CHECKING:
    from rearguard.officer.rollbacks import RollbackPlan

_EXIT = {"succeeded": 0, "inconclusive": 10, "failed": 20, "refused": 30, "cancelled": 30}


@click.group()
def rollback() -> None:
    """Plan or run a rollback by hand."""


def _say_plan(found: RollbackPlan) -> None:
    click.echo(f"{found.place}: now {found.from_version or found.from_digest or 'nothing known'}")
    for number, candidate in enumerate(found.selection.candidates, 1):
        stale = ", verified inline first (its proof is stale)" if candidate.stale else ""
        served = "served here before" if candidate.served_before else "never served here"
        click.echo(f"  {number}. {candidate.checkpoint.version} {candidate.checkpoint.short}: {served}{stale}")
    for rejected in found.selection.rejected:
        click.echo(f"  -  {rejected.version} {rejected.digest[7:19]}: no target ({rejected.reason})")
    for name, owner, limit_s in found.steps:
        click.echo(f"     {name:<9} {owner} (limit {limit_s} s)")
    if found.from_version and not found.refusals:
        after = [c.checkpoint.version for c in found.selection.candidates[1:]]
        click.echo(f"  then {found.from_version} is quarantined; the next way back is {after[0] if after else 'NONE'}")
    if found.refusals:
        click.echo(f"refused: {', '.join(found.refusals)}")
    else:
        click.echo(f"next: rearguard rollback run {found.place.service} --env {found.place.env} --execute")


@rollback.command()
@click.argument("service")
@env_option
@click.option("--to", default=None, help="This version or digest only.")
@state_option
@json_option
def plan(
    service: str, env: str | None, to: str | None, state: Path | None, settings_path: Path | None, as_json: bool
) -> int:
    """Show what a rollback of SERVICE would do, and why it is safe or refused (exit 30). Changes nothing."""
    from rearguard.officer import rollbacks

    with opened(state, settings_path, write=False) as office:
        found = rollbacks.plan(office, service=service, env=env, to=to)
    if as_json:
        emit_json(found)
    else:
        _say_plan(found)
    return 30 if found.refusals else 0


@rollback.command("run")
@click.argument("service")
@env_option
@click.option("--to", default=None, help="This version or digest only.")
@click.option("--execute", is_flag=True, help="Really do it; without it only the plan is shown.")
@by_option
@state_option
@json_option
def run_(
    service: str,
    env: str | None,
    to: str | None,
    execute: bool,
    by: str,
    state: Path,
    settings_path: Path | None,
    as_json: bool,
) -> int:
    """Roll SERVICE back and wait: the living officer does it, or this process when there is none."""
    from rearguard.officer import rollbacks

    with opened(state, settings_path, write=execute) as office:
        if not execute:
            found = rollbacks.plan(office, service=service, env=env, to=to)
            if as_json:
                emit_json({"executed": False, "plan": found})
            else:
                _say_plan(found)
                click.echo("nothing was done: add --execute")
            return 30 if found.refusals else 0
        done = rollbacks.run(
            office,
            service=service,
            env=env,
            to=to,
            by=by,
            progress=lambda run_id: click.echo(f"{run_id} requested", err=True),
            on_step=lambda done: click.echo(f"{done.run_id}: {done.step} done ({done.took_ms} ms)", err=True),
        )
    if as_json:
        emit_json({"executed": True, "run": done})
    else:
        click.echo(f"{done.id}: {done.state.value}{f' ({done.reason})' if done.reason else ''}")
        click.echo(f"next: rearguard runs show {done.id}")
    return _EXIT[done.state.value]


@click.group()
def runs() -> None:
    """List, show and cancel runs."""


@runs.command("list")
@click.option(
    "--run-state", default=None, help="requested, running, succeeded, failed, refused, inconclusive, cancelled."
)
@state_option
@json_option
def list_(run_state: str | None, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """All runs, oldest first."""
    from rearguard.officer import rollbacks

    with opened(state, settings_path, write=False) as office:
        found = rollbacks.list_runs(office, state=run_state)
    if as_json:
        emit_json(found)
        return
    lines = [
        (
            r.id,
            str(r.place),
            r.state.value,
            r.reason or "-",
            r.incident_id or "-",
            r.requested_by,
            r.requested_at.rfc3339(),
        )
        for r in found
    ]
    table(("RUN", "PLACE", "STATE", "REASON", "INCIDENT", "BY", "REQUESTED"), lines, "no run")


@runs.command()
@click.argument("run_id")
@state_option
@json_option
def show(run_id: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """One run: its steps with their times, and its evidence."""
    from rearguard.model.time import NS_PER_MS, rfc3339_ms
    from rearguard.officer import rollbacks

    with opened(state, settings_path, write=False) as office:
        found = rollbacks.show(office, run_id)
    if as_json:
        emit_json(found)
        return
    run = found.run
    click.echo(f"{run.id}  {run.place}  {run.state.value}{f' ({run.reason})' if run.reason else ''}")
    click.echo(f"  {found.from_version or run.from_digest or '-'} -> {found.to_version or run.to_digest or '-'}")
    click.echo(f"  incident {run.incident_id or '-'}, requested {run.requested_at.rfc3339_ms()} by {run.requested_by}")
    steps = []
    for step in found.steps:
        started, ended = step["started_at_epoch_ms"], step["completed_at_epoch_ms"]
        took = f"{ended - started} ms" if started is not None and ended is not None else "-"
        began = rfc3339_ms(started * NS_PER_MS) if started is not None else "-"
        steps.append((step["function_id"], step["function_name"], began, took, step["error"] or "-"))
    table(("#", "STEP", "STARTED", "TOOK", "ERROR"), steps, "no step has begun")
    for record in found.records:
        click.echo(f"  {record.ts}  #{record.id}  {record.kind}")


@runs.command()
@click.argument("run_id")
@by_option
@state_option
@json_option
def cancel(run_id: str, by: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Ask a run to end; honoured only before traffic moves."""
    from rearguard.officer import rollbacks

    with opened(state, settings_path, write=True) as office:
        found = rollbacks.cancel(office, run_id, by=by)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{run_id}: cancel requested (now {found.state.value})")
