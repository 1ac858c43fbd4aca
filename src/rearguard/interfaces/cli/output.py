"""How values are shown: JSON for programs, tables for people."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rearguard.officer.office import Office
    from rearguard.officer.standing import Stands

F = TypeVar("F", bound=Callable[..., Any])


def state_option(function: F) -> F:
    """`--state` and `--config`, as every command takes them."""
    function = click.option(
        "--config",
        "settings_path",
        envvar="REARGUARD_CONFIG",
        type=click.Path(path_type=Path),
        default=None,
        help="Settings file; default: rearguard.yaml in the state directory, beside it, or here.",
    )(function)
    return click.option(
        "--state",
        envvar="REARGUARD_STATE",
        type=click.Path(path_type=Path),
        default=None,
        help="State directory (REARGUARD_STATE); default: .rearguard beside the settings file.",
    )(function)


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")
by_option = click.option(
    "--by", default=lambda: os.environ.get("USER") or f"uid{os.getuid()}", help="Who acts; recorded."
)
env_option = click.option("--env", default=None, help="Environment; may be left out when the service has one only.")


@contextmanager
def opened(
    state: Path | None,
    settings_path: Path | None,
    *,
    write: bool,
    create: bool = False,
    as_officer: bool = False,
    patient: bool = False,
) -> Iterator[Office]:
    """The office, opened when a command needs it; only a command that may begin a history creates the state."""
    from rearguard.officer.office import open_office

    with open_office(
        state, settings_path, write=write, create=create, as_officer=as_officer, patient=patient
    ) as office:
        yield office
        if office.unpublished is not None:
            click.echo(f"warning: recorded, but {office.unpublished.message}; {office.unpublished.hint}", err=True)
        if office.undelivered is not None:
            click.echo(f"warning: recorded, but a channel was not told: {office.undelivered.message}", err=True)


def to_json(value: Any) -> Any:
    """A value of the officer as JSON: dataclasses become objects, instants RFC 3339, enums their value."""
    if value.__class__.__name__ == "Instant":
        return value.rfc3339_ms()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal | Path):
        return str(value)
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [to_json(v) for v in value]
    return value


def emit_json(value: Any) -> None:
    """One JSON value on standard output."""
    click.echo(json.dumps(to_json(value), indent=2, ensure_ascii=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Columns padded to their widest cell; `empty` is said instead of a table without rows."""
    if not rows:
        click.echo(empty)
        return
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(h), *(len(row[i]) for row in cells)) for i, h in enumerate(headings)]
    for line in [list(headings), *cells]:
        click.echo("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def progress_bar(total_bytes: int, label: str, *, of_rate: Callable[[Any], str] | None = None) -> Any:
    """A bar with time left on standard error; silent when that is no terminal.

    `of_rate` words the second argument of its `update`, such as bytes a second.
    """
    return click.progressbar(
        length=total_bytes, label=label, file=sys.stderr, show_eta=True, show_percent=True, item_show_func=of_rate
    )


def age(seconds: int | None) -> str:
    """`42 s`, `12 min`, `3 h 05`, `2 d`."""
    if seconds is None:
        return "never"
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    if seconds < 172_800:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d}"
    return f"{seconds // 86_400} d"


def duration(milliseconds: int) -> str:
    """`4.2 s` below ten seconds, `41 s`, then as an age."""
    return f"{milliseconds / 1000:.1f} s" if milliseconds < 10_000 else age(round(milliseconds / 1000))


def waits(stands: Stands) -> str:
    """Why nobody is at work on a run, and the command that goes on."""
    return f"{stands.standing.value.replace('_', ' ')}: {stands.next}"
