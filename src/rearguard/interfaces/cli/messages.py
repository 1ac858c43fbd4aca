"""`messages list | ack | retry`."""

from __future__ import annotations

from pathlib import Path

import click

from rearguard.interfaces.cli.output import age, by_option, emit_json, json_option, opened, state_option, table


@click.group("messages")
def group() -> None:
    """What people were told, and what still waits."""


messages = group


@group.command("list")
@click.option("--open", "only_open", is_flag=True, help="Only those that a channel has not taken.")
@state_option
@json_option
def list_(only_open: bool, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Messages, oldest first, with age and the newest error of those that wait."""
    from rearguard.officer import messages

    with opened(state, settings_path, write=False) as office:
        found = messages.list_messages(office, only_open=only_open)
    if as_json:
        emit_json(found)
        return
    lines = [
        (
            m.id,
            m.state,
            m.severity,
            age(m.age_s) if m.age_s is not None else "-",
            m.title,
            ", ".join(m.waiting_for) or "-",
            m.acked_by or "-",
            m.last_error or "-",
        )
        for m in found
    ]
    headings = ("ID", "STATE", "SEVERITY", "AGE", "TITLE", "WAITS FOR", "ACKNOWLEDGED BY", "ERROR")
    table(headings, lines, "no message")


@group.command()
@click.argument("message")
@by_option
@state_option
@json_option
def ack(message: str, by: str, state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Say that you have seen MESSAGE, named by its ID or key; it is still delivered to the channels that lack it."""
    from rearguard.officer import messages

    with opened(state, settings_path, write=True) as office:
        found = messages.acknowledge(office, message, by=by)
    if as_json:
        emit_json(found)
        return
    click.echo(f"{found.id}  {found.title}  {found.state}")
    click.echo(f"  acknowledged by {found.acked_by}")


@group.command()
@state_option
@json_option
def retry(state: Path | None, settings_path: Path | None, as_json: bool) -> None:
    """Let the living officer try every channel at once."""
    from rearguard.officer import messages

    with opened(state, settings_path, write=True) as office:
        channels = messages.retry(office)
    if as_json:
        emit_json({"channels": channels})
        return
    click.echo("tried again: " + ", ".join(channels) if channels else "no channel was being left alone")
