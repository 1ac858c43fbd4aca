"""`rollback plan | run` and `runs list | show | cancel | mend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rearguard.interfaces.cli.output import (
    by_option,
    duration,
    emit_json,
    env_option,
    json_option,
    opened,
    state_option,
    table,
    to_json,
    waits,
)

if TYPE_CHECKING:
    from rearguard.model.run import Run
    from rearguard.officer.office import Office
    from rearguard.officer.rollbacks import RollbackPlan, RunStory

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
    if found.selection.unlisted:
        click.echo(f"  -  {found.selection.unlisted} more, not looked at: registered or served longer ago")
    if found.selection.candidates:
        click.echo(f"  {_warmth(found)}")
    for name, owner, limit_s in found.steps:
        click.echo(f"     {name:<9} {owner} (limit {limit_s} s)")
    if found.from_version and not found.refusals:
        after = [c.checkpoint.version for c in found.selection.candidates[1:]]
        click.echo(f"  then {found.from_version} is quarantined; the next way back is {after[0] if after else 'NONE'}")
    if found.automation_held_by:
        until = f" until {found.automation_held_until.rfc3339()}" if found.automation_held_until else ""
        click.echo(f"  automation is held back by {found.automation_held_by}{until}; a rollback by hand is not")
    if found.refusals:
        click.echo(f"refused: {', '.join(found.refusals)}")
        if found.remedy:
            click.echo(f"next: {found.remedy}")
    else:
        click.echo(f"next: rearguard rollback run {found.place.service} --env {found.place.env} --execute")


def _warmth(found: RollbackPlan) -> str:
    best = found.selection.candidates[0].checkpoint
    if found.warm:
        return f"warm: {best.version} stands loaded beside what serves, so the switch needs no load"
    load = "an unknown time" if best.load_ms is None else f"about {duration(best.load_ms)}, as when it was verified"
    if found.warm is None:
        return f"not known whether it stands warm (no officer looks after it); a cold load takes {load}"
    return f"cold: {best.version} must be loaded first, which takes {load}"


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
        done = _run_to_its_end(
            office,
            service=service,
            env=env,
            to=to,
            by=by,
            progress=lambda run_id: click.echo(f"{run_id} requested", err=True),
            on_waiting=lambda asked: click.echo(
                f"waiting for approval until {asked.expires_at.rfc3339() if asked.expires_at else '-'}: "
                f"rearguard approve {asked.run.id} --key FILE",
                err=True,
            ),
            on_step=lambda done: click.echo(f"{done.run_id}: {done.step} done ({done.took_ms} ms)", err=True),
        )
    if as_json:
        emit_json({"executed": True, "run": done})
    else:
        click.echo(f"{done.id}: {done.state.value}{f' ({done.reason})' if done.reason else ''}")
        click.echo(f"next: rearguard runs show {done.id}")
    return _EXIT[done.state.value]


def _run_to_its_end(office: Office, **words: Any) -> Run:
    """As `rollbacks.run`. A process that another officer has replaced ends at once: its threads must do nothing more."""
    from rearguard.errors import ConflictError
    from rearguard.interfaces.cli.run import end_now
    from rearguard.officer import rollbacks

    requested: list[str] = []
    tell = words.pop("progress")

    def progress(run_id: str) -> None:
        requested.append(run_id)
        tell(run_id)

    try:
        return rollbacks.run(office, progress=progress, **words)
    except KeyboardInterrupt as interrupt:
        for run_id in requested:
            interrupt.add_note(_still_open(office, run_id))
        raise
    except ConflictError as error:
        if error.code == "officer_superseded":
            click.echo(f"error: {error.message} [{error.code}]\nhint: {error.hint}", err=True)
            end_now(error.exit_code)
        raise


def _still_open(office: Office, run_id: str) -> str:
    from rearguard.officer import approvals

    asked = approvals.show(office, run_id)
    stands = "still waits for approval" if asked.approval == approvals.NEEDED else "has not ended and is durable"
    return f"{run_id} {stands}; to cancel it: rearguard runs cancel {run_id}"


@click.group()
def runs() -> None:
    """List, show, cancel and mend runs."""


@runs.command("list")
@click.option(
    "--run-state", default=None, help="requested, running, succeeded, failed, refused, inconclusive, cancelled."
)
@state_option
@json_option
def list_(run_state: str | None, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """All runs, oldest first."""
    from rearguard.officer import rollbacks, standing

    with opened(state, settings_path, write=False) as office:
        found = rollbacks.list_runs(office, state=run_state)
        stands = standing.standings(office, found)
    if as_json:
        emit_json([{**to_json(r), "stands": stands[r.id]} for r in found])
        return
    lines = [
        (
            r.id,
            str(r.place),
            r.state.value,
            waits(stands[r.id]) if stands[r.id].next else "-",
            r.reason or "-",
            r.incident_id or "-",
            r.requested_by,
            r.requested_at.rfc3339(),
        )
        for r in found
    ]
    table(("RUN", "PLACE", "STATE", "WAITS", "REASON", "INCIDENT", "BY", "REQUESTED"), lines, "no run")


def _say_times(found: RunStory) -> None:
    """RTO, and the time from the request to the end; not across a restart of the machine."""
    finished = next((r for r in found.records if r.kind == "rollback_finished"), None)
    if finished is None:
        return
    rto_ms, asked_at = finished.body["rto_achieved_ms"], found.run.requested_at
    parts = [f"RTO {duration(rto_ms)}"] if isinstance(rto_ms, int) else []
    if finished.boot_id == asked_at.boot_id:
        parts.append(f"from request to end {duration((int(finished.monotonic_ns) - asked_at.mono_ns) // 1_000_000)}")
    if parts:
        click.echo(f"  {', '.join(parts)}")


@runs.command()
@click.argument("run_id")
@state_option
@json_option
def show(run_id: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """One run: its steps with times, attempts, keys and errors, and its evidence."""
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
    if found.execution is not None:
        engine = found.execution
        times = "once" if engine.recovery_attempts == 1 else f"{engine.recovery_attempts} times"
        click.echo(f"  engine {engine.version}: {engine.status.lower()}, begun {times}, last by {engine.executor}")
    if found.stands.next:
        click.echo(f"  {waits(found.stands)}")
    _say_times(found)
    steps = [
        (
            step.name,
            step.state.replace("_", " "),
            step.owner or "-",
            step.started_at or "-",
            "-" if step.took_ms is None else f"{step.took_ms} ms",
            "-" if step.attempts is None else step.attempts,
            step.key,
            step.error or "-",
        )
        for step in found.steps
    ]
    headings = ("STEP", "STATE", "OWNER", "STARTED", "TOOK", "ATTEMPTS", "KEY", "ERROR")
    table(headings, steps, "no step has begun")
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


@runs.command()
@click.argument("run_id")
@click.option("--reason", required=True, help="Why it is given up; recorded.")
@by_option
@state_option
@json_option
def mend(run_id: str, reason: str, by: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """End a stranded run as failed, and let go of its place; refused for any other run."""
    from rearguard.officer import standing

    with opened(state, settings_path, write=True) as office:
        found = standing.mend(office, run_id, by=by, reason=reason)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{run_id}: {found.state.value} ({found.reason}); what it did to traffic stays as it is")
    click.echo(f"next: rearguard rollback plan {found.place.service} --env {found.place.env}")
