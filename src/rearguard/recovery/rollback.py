"""A rollback as durable steps: lock, freeze, select, then rungs of verify, activate, probe, window, then record, close.

Each step has an *effect* (outside; at least once, idempotent) and a *record* (one transaction; exactly once). What a
second call of an effect does stands in its docstring. A step that cannot go on returns a failure instead of raising; the
run then skips to `record` and `close`, so that a run which failed is recorded and lets go of its lock like any other.

The ladder: a rung whose checkpoint itself is at fault (it does not load, answers its golden predictions otherwise, or
breaches too) is *lost*, and the next candidate is tried in the same run under a new epoch. Its steps are those of the
first rung with the rung's number (`activate#2`). At the end of the ladder the run stops where it is and says so.

Instants t0 ... t7 are those of requirements 10.2: t2 ends the selection, t3 begins and t4 ends the proof of the bytes, t5
is the first full round of golden predictions answered by the restored digest itself, t6 and t7 bound the first window
in which every SLO and every golden prediction held. Of a ladder, t3 ... t7 are those of the rung that held.
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
from rearguard.recovery import effects, proof, records
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
    rung: bool = False
    """True for the steps that every rung of the ladder does again."""
    outside: bool = False
    """True when the effect touches something outside; its attempts are counted."""


STEPS: tuple[Step, ...] = (
    Step(name="lock", effect=effects.nothing, record=records.lock),
    Step(name="freeze", effect=effects.nothing, record=records.freeze),
    Step(name="select", effect=effects.select_target, record=records.selected),
    Step(name="verify", effect=effects.verify_target, record=records.verified, rung=True, outside=True),
    Step(name="activate", effect=effects.activate, record=records.activated, rung=True, outside=True),
    Step(name="probe", effect=proof.probe, record=records.probed, rung=True, outside=True),
    Step(name="window", effect=proof.hold_window, record=records.held, rung=True, outside=True),
    Step(name="record", effect=effects.nothing, record=records.finish, always=True),
    Step(name="close", effect=effects.nothing, record=records.close, always=True),
)
assert tuple(step.name for step in STEPS) == STEP_NAMES
CANCELLABLE = ("lock", "freeze", "select", "verify")
"""Steps at whose begin a cancel is honoured: before traffic moves, so on the first rung only."""
NEXT = Step(name="next", effect=effects.nothing, record=records.next_rung)
"""Between two rungs: says why the one is lost, and raises the epoch for the other."""

_BEFORE = tuple(step for step in STEPS if not step.rung and not step.always)
_RUNG = tuple(step for step in STEPS if step.rung)
_AFTER = tuple(step for step in STEPS if step.always)


def step_names(rungs: int = 1) -> tuple[str, ...]:
    """All steps of a run with so many rungs, in order, as the engine and the fault points name them."""
    names = [step.name for step in _BEFORE]
    for rung in range(1, rungs + 1):
        if rung > 1:
            names.append(_numbered(NEXT, rung))
        names += [_numbered(step, rung) for step in _RUNG]
    return (*names, *(step.name for step in _AFTER))


def following(step: str) -> str | None:
    """The step after one of a run, on its own rung; None after the last."""
    base, _, rung = step.partition("#")
    if base == NEXT.name:
        return f"{_RUNG[0].name}#{rung}"
    names = [s.name for s in STEPS]
    if base not in names or base == names[-1]:
        return None
    after = STEPS[names.index(base) + 1]
    return f"{after.name}#{rung}" if rung and after.rung else after.name


def rollback(context: RecoveryContext, steps: Steps, run_id: str) -> State:
    """The body of a run; deterministic but for its steps, so that a successor can take it up anywhere."""
    state: State = {}
    for step in _BEFORE:
        _do(context, steps, step, step.name, run_id, state)
    rung = 1
    while True:
        state["rung"] = rung
        for step in _RUNG:
            _do(context, steps, step, _numbered(step, rung), run_id, state)
        if not (state.get("failure") or {}).get("lost"):
            break
        rung += 1
        state.update(steps.record(_numbered(NEXT, rung), partial(_write, context, NEXT, run_id, state)))
        if state.get("failure"):
            break
    for step in _AFTER:
        _do(context, steps, step, step.name, run_id, state)
    return {"state": state["final_state"], "reason": state.get("reason", "")}


def _numbered(step: Step, rung: int) -> str:
    return step.name if rung == 1 else f"{step.name}#{rung}"


def _do(context: RecoveryContext, steps: Steps, step: Step, name: str, run_id: str, state: State) -> None:
    """One step: effect and record; nothing after a failure unless the step is always done."""
    if state.get("failure") and not step.always:
        return
    state.update(steps.effect(name, partial(_guarded, context, step, name, run_id, state)))
    if state.get("failure") and not step.always:
        # The step's own record would claim what did not happen; `record` tells the failure.
        return
    state.update(steps.record(name, partial(_write, context, step, run_id, state)))


def _guarded(context: RecoveryContext, step: Step, name: str, run_id: str, state: State) -> State:
    with context.database.reading() as connection:
        run = read_run(connection, run_id)
        cancelled = step.name in CANCELLABLE and not state.get("tried") and records.cancel_requested(connection, run_id)
    if cancelled:
        return _failed(step, "cancelled", "cancelled", "cancelled by hand before traffic moved")
    if step.outside:
        effects.note_attempt(context, run, name)
    try:
        result = step.effect(context, run, state)
    except RearguardError as error:
        if error.code == "database_unavailable":
            raise  # the disk's fault, not the rollback's: the engine does this step again once it can be noted
        kind = "failed" if isinstance(error, DependencyError) or step.name not in ("select", "verify") else "refused"
        result = _failed(step, kind, error.code, error.message)
    except OSError:
        raise  # of the disk, as above; what an adapter meets is wrapped by it
    except Exception as error:  # a fault of ours, or an adapter's: the run ends like any other, with its records
        result = _failed(step, "failed", "internal", f"{type(error).__name__}: {error}")
    failure = result.get("failure")
    if failure and step.outside:
        effects.note_attempt_failed(context, run, name, f"{failure['reason']}: {failure['message']}")
    if failure and step.rung:
        failure["lost"] = effects.is_lost(context, run, state, failure)
    return result


def _failed(step: Step, state: str, reason: str, message: str) -> State:
    return {"failure": {"step": step.name, "state": state, "reason": reason, "message": message[:500]}}


def _write(context: RecoveryContext, step: Step, run_id: str, state: State, connection: Connection) -> State:
    return step.record(context, connection, read_run(connection, run_id), state)
