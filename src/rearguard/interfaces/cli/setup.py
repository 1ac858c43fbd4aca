"""`init`, `doctor`, `arm`, `disarm`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path

import click

from rearguard.interfaces.cli.output import by_option, emit_json, env_option, json_option, opened, state_option


def _milliseconds(_context: click.Context, _parameter: click.Parameter, value: str) -> Decimal:
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or number <= 0:
        raise click.BadParameter(f"{value!r} is not a number of milliseconds > 0, for example 120")
    return number


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("."))
@click.option("--service", default="my-model", show_default=True, help="Name of the service.")
@click.option("--env", default="prod", show_default=True, help="Name of the environment.")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where the model server answers.")
@click.option("--model", default=None, help="Model name on that server; default: the service's name.")
@click.option(
    "--requests-log", default="requests.jsonl", show_default=True, help="Request log, as seen from the settings file."
)
@click.option("--scores-log", default=None, help="Labelled samples; left out: the compliance trigger is off.")
@click.option("--target-p95-ms", default="100", show_default=True, callback=_milliseconds, help="Latency target.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@json_option
def init(
    folder: Path,
    service: str,
    env: str,
    url: str,
    model: str | None,
    requests_log: str,
    scores_log: str | None,
    target_p95_ms: Decimal,
    force: bool,
    as_json: bool,
) -> None:
    """Write a commented rearguard.yaml and rollback_playbook.yaml into FOLDER, in observe mode."""
    from rearguard.officer import setup

    paths = setup.init(
        folder,
        service=service,
        env=env,
        url=url,
        model=model or service,
        requests_log=requests_log,
        scores_log=scores_log,
        target_p95_ms=target_p95_ms,
        force=force,
    )
    if as_json:
        emit_json({"settings": paths[0], "playbook": paths[1]})
        return
    click.echo(f"wrote {paths[0]} and {paths[1]}")
    click.echo("next: edit the settings, then `rearguard doctor`")


_SIGNS = {"pass": "ok  ", "fail": "FAIL", "inconclusive": "look"}


@click.command()
@state_option
@json_option
def doctor(state: Path | None, settings_path: Path | None, as_json: bool) -> int:
    """Check that what the settings name is reachable, writable and feasible. Exit 0 all well, 10 look, 20 failed."""
    from rearguard.officer import setup

    with opened(state, settings_path, write=True, create=True) as office:
        checks = setup.doctor(office)
    if as_json:
        emit_json(checks)
    else:
        for check in checks:
            click.echo(f"{_SIGNS[check.outcome.value]}  {check.name}: {check.message}")
            if check.hint:
                click.echo(f"      -> {check.hint}")
    found = {check.outcome.value for check in checks}
    return 20 if "fail" in found else (10 if "inconclusive" in found else 0)


def _switch(
    state: Path | None, settings_path: Path | None, service: str, env: str | None, by: str, armed: bool, as_json: bool
) -> None:
    from rearguard.officer import automation, rollbacks

    with opened(state, settings_path, write=True) as office:
        place = office.place(service, env).place
        changed = automation.set_armed(office, place, armed=armed, by=by)
        under_way = [r.id for r in rollbacks.unfinished(office) if r.place == place]
        (stands,) = [found for found in automation.standing(office) if found.place == place]
    if armed and stands.approval_required and stands.approvers < 1:
        click.echo(f"warning: {place}: {automation.NO_APPROVER}: {automation.ENROLL}", err=True)
    word = "armed" if armed else "observe"
    if as_json:
        emit_json({"service": place.service, "env": place.env, "automation": word, "changed": changed})
        return
    meaning = "a breach starts a rollback" if armed else "a breach is recorded, nothing is done"
    click.echo(f"{place}: {word} ({meaning})" + ("" if changed else "; it was before"))
    if not armed:
        for run_id in under_way:
            click.echo(f"{run_id} is under way; it ends unless traffic has moved: rearguard runs show {run_id}")
    click.echo(f"state: {office.state}", err=True)


@click.command()
@click.argument("service")
@env_option
@by_option
@state_option
@json_option
def arm(service: str, env: str | None, by: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Let a breach of SERVICE start a rollback by itself; recorded."""
    _switch(state, settings_path, service, env, by, True, as_json)


@click.command()
@click.argument("service")
@env_option
@by_option
@state_option
@json_option
def disarm(
    service: str, env: str | None, by: str, state: Path | None, settings_path: Path | None, as_json: bool
) -> None:
    """Only observe SERVICE: judge and record, touch nothing; recorded."""
    _switch(state, settings_path, service, env, by, False, as_json)
