"""`approve` and `key new | enroll | list | revoke`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import by_option, emit_json, json_option, opened, state_option, table

if TYPE_CHECKING:
    from rearguard.officer.approvals import ApprovalRequest
    from rearguard.officer.keys import Key

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("run_id")
@click.option("--key", "key_file", type=_FILE, default=None, help="Private key to sign with; without it: only show.")
@click.option("--as", "name", default=None, metavar="NAME", help="Refuse unless the key is enrolled under this name.")
@state_option
@json_option
def approve(
    run_id: str,
    key_file: Path | None,
    name: str | None,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> None:
    """Show what RUN_ID waits to do and, with --key, sign it: the officer then does it."""
    from rearguard.officer import approvals

    with opened(state, settings_path, write=key_file is not None) as office:
        found = approvals.show(office, run_id)
        if not as_json:
            _say(found)
        if key_file is not None:
            found = approvals.approve(office, run_id, key_file=key_file, name=name)
    if as_json:
        emit_json(found)
    elif key_file is None:
        click.echo("nothing was signed" + (": add --key FILE" if found.approval == "needed" else ""))
    else:
        click.echo(f"approved by {found.approved_by}")
        click.echo(f"next: rearguard runs show {run_id}")


def _say(found: ApprovalRequest) -> None:
    run = found.run
    click.echo(f"{run.id}  {run.place}  {run.state.value}, approval {found.approval or 'not needed'}")
    if found.expires_at is None:
        return
    click.echo(f"  from {found.from_version} to {', then '.join(found.to_versions)}")
    click.echo(
        f"  why: {found.why}{f' ({run.incident_id})' if run.incident_id else ''}, requested by {run.requested_by}"
    )
    click.echo(f"  until {found.expires_at.rfc3339()}; plan {found.plan_sha256}")


@click.group()
def key() -> None:
    """Keys of the people who approve rollbacks."""


@key.command()
@click.argument("name")
@click.option("--out", type=_FILE, required=True, help="File of the private key; must not exist.")
@state_option
@json_option
def new(name: str, out: Path, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Write a private key for NAME into a file of its own; the public key is printed."""
    from rearguard.officer import keys

    public = keys.new(name, out=out, state=state, settings_path=settings_path)
    if as_json:
        emit_json({"name": name, "private_key": out, "public_key": public})
        return
    click.echo(public, nl=False)
    click.echo(f"{out} holds the private key; it has no password, keep it with its owner", err=True)
    click.echo(f"next: save the public key as {name}.pub; rearguard key enroll {name} {name}.pub", err=True)


@key.command()
@click.argument("name")
@click.argument("public_key_file", type=_FILE)
@by_option
@state_option
@json_option
def enroll(
    name: str, public_key_file: Path, by: str, state: Path | None, settings_path: Path | None, as_json: bool
) -> None:
    """Let the owner of a public key approve, under NAME; recorded."""
    from rearguard.officer import keys

    with opened(state, settings_path, write=True) as office:
        found = keys.enroll(office, name, public_key_file=public_key_file, by=by)
    _show_key(found, "enrolled", as_json)


@key.command()
@click.argument("name")
@by_option
@state_option
@json_option
def revoke(name: str, by: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Take the right to approve from NAME; recorded."""
    from rearguard.officer import keys

    with opened(state, settings_path, write=True) as office:
        found = keys.revoke(office, name, by=by)
    _show_key(found, "revoked", as_json)


def _show_key(found: Key, what: str, as_json: bool) -> None:
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.name}: {what} ({found.fingerprint})")


@key.command("list")
@state_option
@json_option
def list_(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """All keys, revoked ones included."""
    from rearguard.officer import keys

    with opened(state, settings_path, write=False) as office:
        found = keys.list_keys(office)
    if as_json:
        emit_json(found)
        return
    lines = [
        (k.name, k.fingerprint, k.enrolled_by, k.enrolled_at.rfc3339(), k.revoked_at.rfc3339() if k.revoked_at else "-")
        for k in found
    ]
    table(("NAME", "FINGERPRINT", "ENROLLED BY", "ENROLLED", "REVOKED"), lines, "no key")
