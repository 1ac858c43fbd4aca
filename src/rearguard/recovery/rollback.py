"""A rollback as durable steps: lock, freeze, select, verify, activate, probe, window, record, close.

Each step has an *effect* (outside; at least once, idempotent) and a *record* (one transaction; exactly once). What a
second call of an effect does stands in its docstring. A step that cannot go on returns a failure instead of raising; the
run then skips to `record` and `close`, so that a run which failed is recorded and lets go of its lock like any other.

Instants t0 ... t7 are those of requirements 10.2: t2 ends the selection, t3 begins and t4 ends the proof of the bytes, t5
is the first full round of golden predictions answered by the restored digest itself, t6 and t7 bound the first window
in which every SLO and every golden prediction held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rearguard.database import Connection
from rearguard.engine.durable import Steps
from rearguard.errors import DependencyError, RearguardError
from rearguard.model.run import Run
from rearguard.model.settings import STEP_NAMES
from rearguard.recovery import effects, records
from rearguard.recovery.context import RecoveryContext, read_run

State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the list from which execution, fault points and documentation derive."""

    name: str
    effect: Callable[[RecoveryContext, Run, State], State]
    record: Callable[[RecoveryContext, Connection, Run, State], State]
    always: bool = False
    """True for the steps that run also after a failure."""
    cancellable: bool = False
    """True before traffic moves: a cancel is honoured when the step begins."""


STEPS: tuple[Step, ...] = (
    Step(name="lock", effect=effects.nothing, record=records.lock, cancellable=True),
    Step(name="freeze", effect=effects.nothing, record=records.freeze, cancellable=True),
    Step(name="select", effect=effects.select_target, record=records.selected, cancellable=True),
    Step(name="verify", effect=effects.verify_target, record=records.verified, cancellable=True),
    Step(name="activate", effect=effects.activate, record=records.activated),
    Step(name="probe", effect=effects.probe, record=records.probed),
    Step(name="window", effect=effects.hold_window, record=records.held),
    Step(name="record", effect=effects.nothing, record=records.finish, always=True),
    Step(name="close", effect=effects.nothing, record=records.close, always=True),
)
assert tuple(step.name for step in STEPS) == STEP_NAMES


def rollback(context: RecoveryContext, steps: Steps, run_id: str) -> State:
    """The body of a run; deterministic but for its steps, so that a successor can take it up anywhere."""
    state: State = {}
    for step in STEPS:
        if state.get("failure") and not step.always:
            continue
        state.update(steps.effect(step.name, partial(_guarded, context, step, run_id, state)))
        if state.get("failure") and not step.always:
            # The step's own record would claim what did not happen; `record` tells the failure.
            continue
        state.update(steps.record(step.name, partial(_write, context, step, run_id, state)))
    return {"state": state["final_state"], "reason": state.get("reason", "")}


def _guarded(context: RecoveryContext, step: Step, run_id: str, state: State) -> State:
    try:
        with context.database.reading() as connection:
            run = read_run(connection, run_id)
            cancelled = step.cancellable and records.cancel_requested(connection, run_id)
        if cancelled:
            return _failed(step, "cancelled", "cancelled", "cancelled by hand before traffic moved")
        return step.effect(context, run, state)
    except RearguardError as error:
        kind = "failed" if isinstance(error, DependencyError) or step.name not in ("select", "verify") else "refused"
        return _failed(step, kind, error.code, error.message)


def _failed(step: Step, state: str, reason: str, message: str) -> State:
    return {"failure": {"step": step.name, "state": state, "reason": reason, "message": message[:500]}}


def _write(context: RecoveryContext, step: Step, run_id: str, state: State, connection: Connection) -> State:
    return step.record(context, connection, read_run(connection, run_id), state)
