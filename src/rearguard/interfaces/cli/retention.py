"""`checkpoint gc | mirror | repair`: what leaves the store, and the second copy of what stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import by_option, emit_json, json_option, opened, state_option, table

if TYPE_CHECKING:
    from rearguard.officer.mirroring import MirrorStanding
    from rearguard.officer.retention import Collection, Staying


@click.command()
@click.option("--execute", is_flag=True, help="Do it; without this only what would be done is shown.")
@by_option
@state_option
@json_option
def gc(execute: bool, by: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Show which checkpoints may leave the store and why the others stay; with --execute take them away."""
    from rearguard.officer import retention

    with opened(state, settings_path, write=execute) as office:
        found = retention.collect(office, by=by) if execute else retention.plan(office)
    if as_json:
        emit_json(found)
        return
    lines = [(one.service, one.version, one.digest[7:19], "gone" if execute else "goes") for one in found.leaving]
    lines += [(one.service, one.version, one.digest[7:19], _why(one)) for one in found.staying]
    table(("SERVICE", "VERSION", "DIGEST", "STAYS FOR"), lines, "no checkpoint is registered")
    click.echo(_sum(found))


def _why(one: Staying) -> str:
    return ", ".join(f"{reason.keep.value} {reason.about}".strip() for reason in one.reasons)


def _sum(found: Collection) -> str:
    swept = found.swept
    goes, frees = ("gone", "freed") if found.executed else ("would go", "would be freed")
    parts = [f"{len(found.leaving)} checkpoints {goes}, {len(found.staying)} stay"]
    parts.append(f"{swept.blobs} blobs, {swept.views} views, {swept.temporaries + swept.aside} other files")
    line = f"{'; '.join(parts)}; {swept.freed_bytes} bytes {frees}"
    return line if found.executed else f"{line}. Nothing was done: --execute does it"


@click.command()
@click.option("--now", is_flag=True, help="Bring it in step here and now, as fast as the machine can.")
@click.option("--new-disk", is_flag=True, help="A new and empty disk stands where the old one was; with --now.")
@state_option
@json_option
def mirror(now: bool, new_disk: bool, state: Path | None, settings_path: Path | None, as_json: bool) -> int:
    """How the second copy of all checkpoints stands; with --now bring it in step. Exit 10 while it is not."""
    from rearguard.officer import mirroring

    if new_disk and not now:
        raise click.UsageError("--new-disk needs --now")
    with opened(state, settings_path, write=now) as office:
        if now:
            found = mirroring.bring_in_step(office, anew=new_disk, progress=lambda line: click.echo(line, err=True))
        else:
            found = mirroring.standing(office)
    if as_json:
        emit_json(found)
    else:
        click.echo(_standing(found))
        for name in found.behind:
            click.echo(f"  {name}: no second copy")
    return 10 if found.failure or found.behind or not found.folder else 0


def _standing(found: MirrorStanding) -> str:
    if not found.folder:
        return "no second copy is declared: name a folder on another disk as checkpoints.mirror"
    since = found.in_step_at.rfc3339() if found.in_step_at else "never"
    line = f"{found.folder} ({found.domain or 'storage not known'}): {found.copied} checkpoints, last in step {since}"
    return f"{line}; {found.failure}: {found.message}" if found.failure else line


@click.command()
@click.option("--service", default=None, help="Of this service.")
@click.option("--version", "version", default=None, help="This one.")
@click.option(
    "--all", "everything", is_flag=True, help="Every checkpoint whose last verification failed for its bytes."
)
@by_option
@state_option
@json_option
def repair(
    service: str | None,
    version: str | None,
    everything: bool,
    by: str,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> int:
    """Take blobs that are at fault in the store from the second copy, hashed on the way, and verify anew."""
    from rearguard.officer import repairs

    if everything == (service is not None and version is not None) or (service is None) != (version is None):
        raise click.UsageError("name one with --service and --version, or --all")
    with opened(state, settings_path, write=True) as office:
        rows = repairs.repair(office, service=service, version=version, by=by)
    if as_json:
        emit_json(rows)
    else:
        lines = [
            (r.service, r.version, len(r.blobs), "verified" if r.ok else f"FAILED {r.code}", r.message) for r in rows
        ]
        table(("SERVICE", "VERSION", "BLOBS TAKEN", "RESULT", "DETAIL"), lines, "no checkpoint has bytes at fault")
    return 65 if any(not r.ok for r in rows) else 0
