"""`demo`: watch Rearguard save a real service."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--breach", type=click.Choice(["compliance", "latency", "errors"]), default="errors", show_default=True)
@click.option(
    "--state", type=click.Path(path_type=Path), default=None, help="A new or empty folder; default: a temporary one."
)
@click.option("--picture", type=click.Path(path_type=Path), default=None, help="Write the live view as SVG.")
@click.option("--json", "as_json", is_flag=True, help="No live view; one JSON object at the end.")
def demo(breach: str, state: Path | None, picture: Path | None, as_json: bool) -> int:
    """Serve a real model to real clients, deploy one that is really bad, and let the officer work. Under 90 seconds."""
    from rearguard.demo.run import DemoOptions, run_demo

    result = run_demo(DemoOptions(breach=breach, state=state, quiet=as_json, picture=picture))
    if as_json:
        click.echo(json.dumps(result.summary, indent=2))
    else:
        click.echo(result.report, nl=False)
        summary = result.summary
        if summary["rto_achieved_ms"] is not None:
            seconds = summary["rto_achieved_ms"] / 1000
            click.echo(
                f"\n{summary['to_version']} was restored {seconds:.1f} s after the first bad answer "
                f"({summary['failed_requests']} of {summary['requests']} requests failed). "
                "The verdict is Partial because no recovery drill has run yet.",
                err=True,
            )
        click.echo(f"evidence: {summary['state_dir']}", err=True)
    return 0 if result.ok else 20
