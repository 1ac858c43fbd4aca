"""`registry export | diff | import | verify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rearguard.interfaces.cli.output import by_option, emit_json, json_option, opened, state_option

if TYPE_CHECKING:
    from rearguard.officer.registry import Proposal

_SHOWN = 20
"""Lines of one kind. Chosen: what a person reads before saying yes; `--json` has them all."""
_SLOW_BYTES = 524_288
"""From here on reading takes a second or more, and says so."""

blobs_option = click.option(
    "--blobs",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder with the bytes of new checkpoints: blobs, an OCI layout, or another state directory.",
)
file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def registry() -> None:
    """Export, compare and take in the registry as a file."""


@registry.command()
@state_option
@json_option
def export(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Write checkpoint_registry.yaml anew from the database."""
    from rearguard.officer import registry as operations

    with opened(state, settings_path, write=True) as office:
        found = operations.export(office)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.path}: {found.checkpoints} checkpoints")


@registry.command()
@state_option
@json_option
def verify(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Compare checkpoint_registry.yaml with the database. Exit 65 when it was edited or is missing."""
    from rearguard.officer import registry as operations

    with opened(state, settings_path, write=False) as office:
        found = operations.verify(office)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.path}: {found.checkpoints} checkpoints, as the database says")


@registry.command()
@file_argument
@blobs_option
@state_option
@json_option
def diff(file: Path, blobs: Path | None, state: Path | None, settings_path: Path | None, as_json: bool) -> int:
    """What importing FILE would change, or why it would be refused; changes nothing."""
    from rearguard.officer import registry as operations

    _say_slow(file)
    with opened(state, settings_path, write=False) as office:
        found = operations.diff(office, file, blobs)
    if as_json:
        emit_json(_as_json(found))
    else:
        _say(found)
    return found.exit_code


@registry.command("import")
@file_argument
@blobs_option
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal it is required.")
@by_option
@state_option
@json_option
def import_(
    file: Path,
    blobs: Path | None,
    yes: bool,
    by: str,
    state: Path | None,
    settings_path: Path | None,
    as_json: bool,
) -> int:
    """Show what FILE would change, ask, take it in, and prove each new checkpoint. Exit 65 when a proof fails."""
    from rearguard.officer import registry as operations

    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked without a terminal: see `rearguard registry diff`, then add --yes")
    _say_slow(file)
    with opened(state, settings_path, write=True, create=True) as office:
        found = operations.diff(office, file, blobs)
        if not as_json or not yes:
            _say(found, err=as_json)
        if not yes and found.difference.changes and not found.exit_code:
            click.confirm("Import this?", abort=True, err=True)
        done = operations.take_in(office, found, by=by, progress=lambda line: click.echo(line, err=True))
    failed = [p for p in done.verified if not p.ok]
    if as_json:
        emit_json(done)
    else:
        for proven in done.verified:
            outcome = "verified" if proven.ok else f"FAILED {proven.code}: {proven.message}"
            click.echo(f"{proven.service} {proven.version}: {outcome}")
        click.echo(
            f"imported: {_many(done.added, 'checkpoint')}, {_many(done.quarantined, 'quarantine')}; "
            f"{len(done.verified) - len(failed)} verified, {len(failed)} failed"
        )
    return 65 if failed else 0


def _say_slow(file: Path) -> None:
    """A large file is read by a careful parser: seconds, and somebody waits."""
    try:
        size = file.stat().st_size
    except OSError:
        return
    if size > _SLOW_BYTES:
        click.echo(f"reading {file}, {size / 1_048_576:.1f} MiB: about {size / 700_000:.0f} s", err=True)


def _say(proposal: Proposal, *, err: bool = False) -> None:
    """The difference in words."""
    found = proposal.difference

    def lines(rows: Sequence[str]) -> None:
        for row in rows[:_SHOWN]:
            click.echo(row, err=err)
        if len(rows) > _SHOWN:
            click.echo(f"  … and {len(rows) - _SHOWN} more", err=err)

    lines([f"refused: {found.file}:{r.line}: {r.message} [{r.code}]\n  hint: {r.hint}" for r in found.refusals])
    lines(
        [
            f"+ {e.name} {e.digest[7:19]} ({e.format}, {e.size_bytes} bytes): added as unverified, then verified"
            for e in found.added
        ]
    )
    lines([f"~ {e.name} {e.digest[7:19]}: registered, never verified; verified now" for e in found.unproven])
    lines([f"! {q.digest[7:19]} is quarantined at {q.place}" for q in found.quarantined])
    lines(
        [
            f"= {h.digest[7:19]} stays quarantined at {h.place}; `rearguard checkpoint release` lifts it with a reason"
            for h in found.still_held
        ]
    )
    notes = [f"{_many(found.unchanged, 'checkpoint')} as registered"]
    if found.not_listed:
        notes.append(f"{_many(len(found.not_listed), 'checkpoint')} not in the file: an import takes nothing away")
    if found.proofs_ignored:
        notes.append(f"{found.proofs_ignored} said to be validated: not believed, proven here")
    click.echo("; ".join(notes), err=err)
    if found.refusals:
        click.echo("nothing would be imported", err=err)
    elif not found.changes and not found.unproven:
        click.echo("nothing to import", err=err)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _as_json(proposal: Proposal) -> dict[str, Any]:
    """The public form of a difference."""
    found = proposal.difference
    return {
        "file": found.file,
        "sha256": found.sha256,
        "added": [_row(e) for e in found.added],
        "unproven": [_row(e) for e in found.unproven],
        "quarantined": [
            {"line": q.line, "service": q.place.service, "env": q.place.env, "digest": q.digest}
            for q in found.quarantined
        ],
        "unchanged": found.unchanged,
        "not_listed": list(found.not_listed),
        "still_quarantined": [
            {"service": h.place.service, "env": h.place.env, "digest": h.digest} for h in found.still_held
        ],
        "proofs_ignored": found.proofs_ignored,
        "refusals": [{"code": r.code, "line": r.line, "message": r.message, "hint": r.hint} for r in found.refusals],
    }


def _row(entry: Any) -> dict[str, Any]:
    return {
        "line": entry.line,
        "service": entry.service,
        "version": entry.version,
        "digest": entry.digest,
        "format": entry.format,
        "size_bytes": entry.size_bytes,
    }
