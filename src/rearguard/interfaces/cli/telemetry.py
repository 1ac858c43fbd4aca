"""`telemetry`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearguard.interfaces.cli.output import emit_json, env_option, json_option, opened, state_option, table

if TYPE_CHECKING:
    from rearguard.officer.telemetry import TelemetryMinute

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


@click.command()
@click.argument("service")
@env_option
@click.option("--last", default="1h", show_default=True, help="How far back, 1min to 24h.")
@state_option
@json_option
def telemetry(
    service: str, env: str | None, last: str, state: Path | None, settings_path: Path | None, as_json: bool
) -> None:
    """Requests, errors, slow answers and scores of a place, per minute and version, as the watch counted them."""
    from rearguard.officer import telemetry as counted

    with opened(state, settings_path, write=False) as office:
        found = counted.telemetry(office, service=service, env=env, last=last)
    if as_json:
        emit_json(found)
        return
    for digest in dict.fromkeys(m.digest for m in found.minutes):
        _sparks([m for m in found.minutes if m.digest == digest])
    lines = [
        (
            m.at[:16] + "Z",
            _name(m),
            m.requests,
            m.failures,
            _figure(m.error_ratio),
            _figure(m.over_latency_ratio),
            m.scores,
            _figure(m.mean_score),
        )
        for m in found.minutes
    ]
    headings = ("MINUTE", "VERSION", "REQUESTS", "ERRORS", "ERROR RATIO", "OVER LATENCY", "SCORES", "MEAN SCORE")
    table(headings, lines, f"nothing was counted in the last {last}")
    click.echo(f"saved by the watch: {found.saved_at or 'never (start it: rearguard watch)'}")
    if found.rejected or found.late:
        click.echo(f"not counted since the watch began: {found.rejected} not understood, {found.late} too late")


def _name(minute: TelemetryMinute) -> str:
    return minute.version or minute.digest.removeprefix("sha256:")[:12]


def _sparks(minutes: Sequence[TelemetryMinute]) -> None:
    click.echo(_name(minutes[0]))
    for label, values in (
        ("requests", [Decimal(m.requests) for m in minutes]),
        ("error ratio", [m.error_ratio for m in minutes]),
        ("over latency", [m.over_latency_ratio for m in minutes]),
        ("mean score", [m.mean_score for m in minutes]),
    ):
        known = [v for v in values if v is not None]
        if known:
            click.echo(f"  {label:<12}  {_spark(values)}  {_figure(min(known))} to {_figure(max(known))}")


def _spark(values: Sequence[Decimal | None]) -> str:
    """One bar a minute, the newest `_WIDTH` of them; a blank where there is no figure."""
    shown = values[-_WIDTH:]
    known = [v for v in shown if v is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    steps = len(_BARS) - 1
    return "".join(
        " " if v is None else _BARS[int((v - low) / (high - low) * steps) if high > low else 0] for v in shown
    )


def _figure(value: Decimal | None) -> str:
    if value is None:
        return "-"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
