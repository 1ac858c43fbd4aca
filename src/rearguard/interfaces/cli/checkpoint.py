"""`checkpoint add | verify | list | release`."""

from __future__ import annotations

from pathlib import Path

import click

from rearguard.interfaces.cli.output import (
    age,
    by_option,
    emit_json,
    json_option,
    opened,
    progress_bar,
    state_option,
    table,
)


@click.group()
def checkpoint() -> None:
    """Register, prove, list and release checkpoints."""


@checkpoint.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--service", required=True)
@click.option("--version", "version", required=True, help="Label of this checkpoint; immutable.")
@click.option("--golden", "golden_file", required=True, type=click.Path(path_type=Path), help="JSON lines of requests.")
@state_option
@json_option
def add(
    path: Path,
    service: str,
    version: str,
    golden_file: Path,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Take the model at PATH in by sha256, prove that it loads and repeats its golden predictions."""
    from rearguard.officer import registration

    with opened(state, settings_path, write=True, create=True) as office:
        found = registration.add(office, path, service=service, version=version, golden_file=golden_file)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{service} {version}  {found.digest}")
    click.echo(f"verified: {found.size_bytes} bytes, cold load {found.load_ms} ms")


@checkpoint.command()
@click.option("--service", default=None, help="Of this service only.")
@click.option("--version", "version", default=None, help="This one only.")
@state_option
@json_option
def verify(
    service: str | None, version: str | None, state: Path | None, settings_path: Path | None, as_json: bool
) -> int:
    """Hash every byte, load cold, repeat the golden predictions. Exit 65 when one is not what was registered."""
    from rearguard.errors import IntegrityError
    from rearguard.officer import checkpoints

    if version is not None and service is None:
        raise click.UsageError("--version needs --service")
    rows, bad = [], 0
    with opened(state, settings_path, write=True) as office:
        if version is not None and service is not None:
            wanted = [checkpoints.find(office, service=service, version=version)]
        else:
            wanted = [row.checkpoint for row in checkpoints.list_checkpoints(office, service)]
        for item in wanted:
            outcome = {
                "service": item.service,
                "version": item.version,
                "digest": item.digest,
                "ok": True,
                "code": "",
                "message": "",
            }
            try:
                with progress_bar(item.size_bytes, f"{item.service} {item.version}") as bar:
                    proven = checkpoints.verify(office, item, bar.update)
                outcome["load_ms"] = proven.load_ms
            except IntegrityError as error:
                bad += 1
                outcome |= {"ok": False, "code": error.code, "message": error.message}
            rows.append(outcome)
    if as_json:
        emit_json(rows)
    else:
        lines = [
            (
                r["service"],
                r["version"],
                "verified" if r["ok"] else "FAILED",
                r["message"] or f"cold load {r.get('load_ms')} ms",
            )
            for r in rows
        ]
        table(("SERVICE", "VERSION", "RESULT", "DETAIL"), lines, "no checkpoint is registered")
    return 65 if bad else 0


@checkpoint.command("list")
@click.option("--service", default=None)
@state_option
@json_option
def list_(service: str | None, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """All checkpoints, their proof and its age."""
    from rearguard.officer import checkpoints

    with opened(state, settings_path, write=False) as office:
        rows = checkpoints.list_checkpoints(office, service)
    if as_json:
        emit_json(rows)
        return
    lines = [
        (
            r.checkpoint.service,
            r.checkpoint.version,
            r.checkpoint.short,
            r.checkpoint.format,
            r.checkpoint.failure or r.state,
            age(r.age_s),
            f"{r.checkpoint.load_ms} ms" if r.checkpoint.load_ms is not None else "-",
            ", ".join(r.quarantined_at) or "-",
        )
        for r in rows
    ]
    headings = ("SERVICE", "VERSION", "DIGEST", "FORMAT", "STATE", "VERIFIED", "LOAD", "QUARANTINED AT")
    table(headings, lines, "no checkpoint is registered; `rearguard checkpoint add` takes one in")


@checkpoint.command()
@click.option("--service", required=True)
@click.option("--version", "version", required=True)
@click.option("--env", required=True)
@click.option("--reason", required=True, help="Why it is fit again; recorded.")
@by_option
@state_option
@json_option
def release(
    service: str,
    version: str,
    env: str,
    reason: str,
    by: str,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Lift the quarantine of a checkpoint that was rolled back."""
    from rearguard.officer import checkpoints

    with opened(state, settings_path, write=True) as office:
        found = checkpoints.release(office, service=service, version=version, env=env, reason=reason, by=by)
    if as_json:
        emit_json({"service": service, "version": found.version, "env": env, "released": True})
        return
    click.echo(f"{service} {found.version} may be deployed at {env} again")
