"""A run's steps as people read them: times, attempts, errors and keys.

Puts together what three rooms know: the engine's notes of what is done, the attempts at effects outside, and the records
that say why a step failed. Pure; whoever calls it reads the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rearguard.model.evidence import Record
from rearguard.model.time import NS_PER_MS, Instant, rfc3339_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often a step's effect outside was begun. A row is written before each attempt."""

    tries: int
    first_at: Instant
    last_at: Instant
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step of a run."""

    name: str
    """As the playbook names it; from the second rung of a ladder on with the rung, `activate#2`."""
    state: str
    """`done`, `failed`, or `under_way`: begun and not recorded."""
    owner: str | None
    """From the playbook; None when the playbook cannot be read or does not name the step."""
    started_at: str | None
    """RFC 3339 with milliseconds; of the first attempt."""
    took_ms: int | None
    """To the end of its record, by the wall clock: a label, not a measurement. None while it is under way."""
    attempts: int | None
    """Begins of its effect, those that a dead officer made included. None: it touches nothing outside."""
    key: str
    """Idempotency key, `run id:step`; what a target has seen under it changes nothing there a second time."""
    error: str
    """Why its newest attempt failed, or empty."""


def step_rows(
    run_id: str,
    notes: Iterable[Mapping[str, Any]],
    attempts: Mapping[str, Attempts],
    records: Iterable[Record],
    owners: Mapping[str, str],
) -> tuple[StepRow, ...]:
    """The steps of a run in the order in which they were begun.

    `notes` are those of `engine.durable.step_history`, `records` the run's evidence. A step with attempts and without a
    note is under way, or was when its officer died.
    """
    halves: dict[str, dict[str, Mapping[str, Any]]] = {}
    for note in notes:
        step, _, half = str(note["function_name"]).partition(".")
        if half in ("effect", "record"):
            halves.setdefault(step, {})[half] = note
    begun = sorted((found.first_at.wall_ns, name) for name, found in attempts.items() if name not in halves)
    failures = _failures(records)
    return tuple(
        _row(run_id, step, halves.get(step, {}), attempts.get(step), failures.get(step, ""), owners)
        for step in (*halves, *(name for _, name in begun))
    )


def _row(
    run_id: str,
    step: str,
    halves: Mapping[str, Mapping[str, Any]],
    tried: Attempts | None,
    failure: str,
    owners: Mapping[str, str],
) -> StepRow:
    effect, record = halves.get("effect"), halves.get("record")
    first = effect or record
    started_ms = first["started_at_epoch_ms"] if first else None
    if tried is not None:
        began_ms = tried.first_at.wall_ns // NS_PER_MS
        started_ms = began_ms if started_ms is None else min(began_ms, started_ms)
    error = failure or next((str(n["error"]) for n in (record, effect) if n and n["error"]), "")
    last = record or (effect if error else None)
    state = "failed" if error and last else ("done" if record else "under_way")
    if not error and tried is not None and state == "under_way":
        error = tried.last_error
    ended_ms = last["completed_at_epoch_ms"] if last else None
    return StepRow(
        name=step,
        state=state,
        owner=owners.get(step.partition("#")[0]),
        started_at=rfc3339_ms(started_ms * NS_PER_MS) if started_ms is not None else None,
        took_ms=ended_ms - started_ms if ended_ms is not None and started_ms is not None else None,
        attempts=tried.tries if tried else None,
        key=f"{run_id}:{step}",
        error=error,
    )


def _failures(records: Iterable[Record]) -> dict[str, str]:
    """Step -> reason and message, as the records that end a rung or a run tell them."""
    found = {}
    for record in records:
        body = record.body
        if record.kind == "rung_lost":
            step, rung = body["step"], body["rung"]
        elif record.kind == "rollback_finished" and body.get("failed_step"):
            step, rung = body["failed_step"], body.get("rungs", 1)
        else:
            continue
        name = step if rung == 1 or step in ("lock", "freeze", "select") else f"{step}#{rung}"
        found[name] = f"{body['reason']}: {body['message']}"
    return found
