"""What forbids a rollback or a deployment before anything is written: told from what is known here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rearguard import loaders
from rearguard.errors import ConfigError, RefusedError
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest
from rearguard.model.settings import PlaceSettings
from rearguard.rules.selection import Selection

if TYPE_CHECKING:
    from rearguard.officer.rollbacks import RollbackPlan

ANSWERS_NOTHING = "format_answers_nothing"
FOR_COMMANDS = "such checkpoints are for targets of the kind `command`"


def answers_nothing(format_name: str) -> bool:
    """Whether a checkpoint of this format holds weights alone; False when the format is not installed here."""
    try:
        return not loaders.get_format(format_name).predicts
    except ConfigError:
        return False


def is_mute(settings: PlaceSettings, checkpoint: Checkpoint) -> bool:
    """Whether the place's target answers requests by itself, and has nothing to answer them with."""
    return settings.target.adapter == "oip" and answers_nothing(checkpoint.format)


def refuse_mute(settings: PlaceSettings, checkpoint: Checkpoint) -> None:
    """Raises `RefusedError` `format_answers_nothing`."""
    if is_mute(settings, checkpoint):
        raise RefusedError(
            ANSWERS_NOTHING,
            f"{checkpoint.version} is {checkpoint.format}, which answers no requests: the target of {settings.place} cannot serve it",
            f"{FOR_COMMANDS}: docs/how-to/connect-a-serving-stack.md",
        )


def codes(
    settings: PlaceSettings, wanted: Checkpoint | None, active: Digest | None, selection: Selection, *, busy: bool
) -> tuple[str, ...]:
    """Codes of what stands in the way of a rollback; `wanted` is the checkpoint that a person named."""
    found = []
    if wanted is not None and wanted.digest == active:
        found.append("already_served")
    elif wanted is not None and is_mute(settings, wanted):
        found.append(ANSWERS_NOTHING)
    elif not selection.candidates:
        found.append("no_verified_checkpoint")
    if busy:
        found.append("another_run_open")
    return tuple(found)


def remedy(found: tuple[str, ...], of_place: str) -> str:
    """What to do about the first of them, where that is about the checkpoints."""
    if ANSWERS_NOTHING in found:
        return FOR_COMMANDS
    return of_place if "no_verified_checkpoint" in found else ""


def refuse(proposal: RollbackPlan, to: str | None) -> None:
    """Raises `RefusedError` with the first code of a plan that is refused."""
    if "already_served" in proposal.refusals:
        raise RefusedError(
            "already_served", f"{proposal.place} serves {to} already; nothing was done", "rearguard status"
        )
    if proposal.refusals:
        why = ", ".join(f"{r.version}: {r.reason}" for r in proposal.selection.rejected)
        if proposal.refusals[0] == ANSWERS_NOTHING:
            why = f"its target answers requests, and {to} holds weights alone"
        raise RefusedError(
            proposal.refusals[0],
            f"{proposal.place} cannot be rolled back ({why or proposal.refusals[0]})",
            proposal.remedy or f"rearguard rollback plan {proposal.place.service} --env {proposal.place.env}",
        )
