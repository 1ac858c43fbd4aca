"""The command `rearguard`: words in, one call to the officer out.

Command modules are imported when their command is called; they import the officer inside the call. `rearguard --help`
therefore loads neither the engine nor the database (tested).
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module

import click

from rearguard import __version__

_COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("setup", "Write commented settings and playbook."),
    "doctor": ("setup", "Check that everything the settings name works."),
    "serve": ("serve", "Run the embedded model server."),
    "checkpoint": ("checkpoint", "Register, prove, carry, list and release checkpoints."),
    "registry": ("registry", "Export, compare and take in the registry as a file."),
    "deploy": ("deployment", "Put a checkpoint in front of traffic."),
    "gate": ("gate", "Ask before a deployment: ready, partial or refused."),
    "deployment": ("deployment", "Record or list deployments."),
    "arm": ("setup", "Let a breach start a rollback."),
    "disarm": ("setup", "Only observe."),
    "automation": ("automation", "Pause, resume and show what happens by itself."),
    "run": ("run", "Be the officer: a supervised daemon."),
    "watch": ("watch", "Watch, judge, and roll back, on a terminal."),
    "status": ("watch", "What is served, watched and open."),
    "telemetry": ("telemetry", "What was counted lately, per minute and version."),
    "incident": ("incident", "List, show, acknowledge and close incidents."),
    "messages": ("messages", "What people were told, and what still waits."),
    "rollback": ("rollback", "Plan or run a rollback by hand."),
    "runs": ("rollback", "List, show, cancel and mend runs."),
    "approve": ("approve", "Show and sign what a rollback waits to do."),
    "key": ("approve", "Keys of the people who approve."),
    "report": ("report", "Render the strict status report."),
    "postmortem": ("report", "Write a post-mortem."),
    "log": ("report", "Verify the evidence log."),
    "demo": ("demo", "Watch Rearguard save a real service."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a working day."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the command."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"rearguard.interfaces.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, and name the nearest command for one that is misspelt."""
        if args and args[0] not in _COMMANDS and (near := get_close_matches(args[0], _COMMANDS, n=1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and one line each, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "REARGUARD"})
@click.version_option(__version__, prog_name="rearguard")
def cli() -> None:
    """Rollback & Recovery Officer for machine-learning models in production.

    Exit codes: 0 done, 10 partial, 20 failed, 30 refused, 64 usage, 65 bad evidence, 69 dependency down, 70 internal,
    75 try again, 78 configuration, 130 interrupted, 141 nobody reads the output.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(words))


def _run(words: list[str]) -> int:
    from rearguard.errors import RearguardError

    as_json, stdout = "--json" in words, sys.stdout
    try:
        result = cli.main(args=words, prog_name="rearguard", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        # click turns the one into the other; a command leaves notes on the first about what it leaves behind.
        notes = getattr(error.__cause__ or error, "__notes__", [])
        sys.stderr.write("\n".join(["interrupted", *notes]) + "\n")
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return 64
    except click.ClickException as error:
        usage = error.ctx.get_usage() + "\n" if isinstance(error, click.UsageError) and error.ctx else ""
        _tell(as_json, "usage", error.format_message(), usage.strip())
        return 64
    except RearguardError as error:
        _tell(as_json, error.code, error.message, error.hint)
        return error.exit_code
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit:
        if sys.stdout is not stdout:  # click's own answer to a broken pipe: it muffles the stream and would end with 1
            return _reader_gone()
        raise
    except Exception as error:
        if os.environ.get("REARGUARD_DEBUG"):
            raise
        _tell(
            as_json,
            "internal",
            f"{type(error).__name__}: {error}",
            "set REARGUARD_DEBUG=1 for the traceback, and report it",
        )
        return 70


def _reader_gone() -> int:
    """The reader went away (`rearguard ... | head`): as if SIGPIPE had ended us, and never 0, for nobody had the answer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _tell(as_json: bool, code: str, message: str, hint: str) -> None:
    if as_json:
        import json

        sys.stdout.write(json.dumps({"error": {"code": code, "message": message, "hint": hint}}) + "\n")
    sys.stderr.write(f"error: {message} [{code}]\n" + (f"hint: {hint}\n" if hint else ""))
