"""`gate`."""

from __future__ import annotations

from pathlib import Path

import click

from rearguard.interfaces.cli.output import emit_json, env_option, json_option, opened, state_option, table

_EXIT = {"pass": 0, "inconclusive": 10, "fail": 30}
_WORDS = {"pass": "ready", "inconclusive": "partial", "fail": "refused"}
_SIGNS = {"pass": "ok", "fail": "FAIL", "inconclusive": "look"}


@click.command()
@click.argument("service")
@env_option
@click.option("--deploy", default=None, metavar="VERSION", help="May this version be deployed now?")
@state_option
@json_option
def gate(
    service: str, env: str | None, deploy: str | None, state: Path | None, settings_path: Path | None, as_json: bool
) -> int:
    """Ask before a deployment of SERVICE. Exit 0 ready, 10 partial, 30 refused; go on only on 0. Changes nothing."""
    from rearguard.officer import gate as gates

    with opened(state, settings_path, write=False) as office:
        found = gates.gate(office, service=service, env=env, deploy=deploy)
    if as_json:
        emit_json(found)
        return _EXIT[found.outcome.value]
    rows = [(_SIGNS[c.outcome.value], c.name, c.code or "-", c.message) for c in found.checks]
    table(("", "CHECK", "CODE", "FOUND"), rows, "no check")
    for check in found.checks:
        if check.hint:
            click.echo(f"{check.name}: {check.hint}", err=True)
    what = f"deploy {found.deploy} to {found.place}" if found.deploy else f"{found.place}"
    click.echo(f"{what}: {_WORDS[found.outcome.value]}")
    return _EXIT[found.outcome.value]
