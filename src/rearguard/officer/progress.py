"""How far a run has come, read from the engine's own history of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rearguard.database import Database
from rearguard.engine.durable import step_history
from rearguard.recovery.rollback import following


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A step whose record is committed."""

    run_id: str
    step: str
    ended_epoch_ms: int
    took_ms: int
    """From the begin of its effect to the end of its record, by the wall clock: a label, not a measurement."""


def steps_done(database: Database, run_id: str) -> tuple[StepDone, ...]:
    """The steps that a run has finished, oldest first; a step that failed has no record and is not among them."""
    found: list[StepDone] = []
    began_ms: int | None = None
    for note in step_history(database, run_id):
        step, _, half = str(note["function_name"]).partition(".")
        if half == "effect":
            began_ms = note["started_at_epoch_ms"]
        ended_ms = note["completed_at_epoch_ms"]
        if half == "record" and ended_ms is not None and not note["error"]:
            took_ms = ended_ms - (began_ms if began_ms is not None else ended_ms)
            found.append(StepDone(run_id=run_id, step=step, ended_epoch_ms=ended_ms, took_ms=took_ms))
    return tuple(found)


def current_step(history: tuple[dict[str, Any], ...]) -> str | None:
    """The step that is under way after what the engine noted; None before the first note and after the last step."""
    noted = [str(note["function_name"]).partition(".") for note in history]
    known = [(step, half) for step, _, half in noted if half in ("effect", "record")]
    if not known:
        return None
    step, half = known[-1]
    return step if half == "effect" else following(step)


class Follower:
    """Tells each finished step of one run once."""

    def __init__(self, database: Database, run_id: str, tell: Callable[[StepDone], None], *, since_ms: int = 0) -> None:
        """Steps that ended before `since_ms` (Unix epoch) were somebody else's and are not told."""
        self._database = database
        self._run_id = run_id
        self._tell = tell
        self._since_ms = since_ms
        self.seen: set[str] = set()

    def look(self) -> None:
        """Tell what is new."""
        for done in steps_done(self._database, self._run_id):
            if done.step in self.seen:
                continue
            self.seen.add(done.step)
            if done.ended_epoch_ms >= self._since_ms:
                self._tell(done)
