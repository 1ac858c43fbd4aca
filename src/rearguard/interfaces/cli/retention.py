"""`checkpoint gc | mirror | repair`: what leaves the store, and the second copy of what stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import by_option, emit_json, json_option, opened, state_option, table

if TYPE_CHECKING:
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
