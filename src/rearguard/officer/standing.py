"""Where a run that has not ended stands, and how one that no release at hand can finish is ended.

No run is silently pending. It is under way with a living officer, it waits for one to be started or for somebody's
approval, or it is *stranded*: it was begun with an engine version, an order of steps, that this release does not have.
A stranded run holds its place, so nothing else can roll back there until `mend` ends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rearguard.database import Connection, officer_alive, sql
from rearguard.engine.durable import APPLICATION_VERSION, Execution, give_up, run_execution, stranded
from rearguard.errors import ConflictError, RefusedError
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.model.run import TERMINAL, Run
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.ports import Message
from rearguard.recovery import records
from rearguard.recovery.context import how_far, read_run


class Standing(Enum):
    """Where a run stands."""

    ENDED = "ended"
    UNDER_WAY = "under_way"
    WAITS_FOR_OFFICER = "waits_for_officer"
    """Durable, and nobody is there to go on with it."""
    WAITS_FOR_APPROVAL = "waits_for_approval"
    STRANDED = "stranded"
    """Begun with an engine version that nobody runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stands:
    """A run's standing, and the command that goes on from there."""

    standing: Standing
    next: str
    """Empty when nothing has to be done."""


def standing_of(run: Run, *, is_stranded: bool, needs_approval: bool, alive: bool) -> Stands:
    """Where a run stands, of what is known of it and of the officer."""
    if run.state in TERMINAL:
        return Stands(standing=Standing.ENDED, next="")
    if is_stranded:
        return Stands(standing=Standing.STRANDED, next=mend_command(run.id))
    if needs_approval:
        return Stands(standing=Standing.WAITS_FOR_APPROVAL, next=f"rearguard approve {run.id} --key FILE")
    if not alive:
        return Stands(standing=Standing.WAITS_FOR_OFFICER, next="rearguard run")
    return Stands(standing=Standing.UNDER_WAY, next="")


def mend_command(run_id: str) -> str:
    """What ends a stranded run."""
    return f"rearguard runs mend {run_id} --reason TEXT"


@operation(Effect.READ)
def standings(office: Office, runs: Iterable[Run]) -> dict[str, Stands]:
    """The standing of each run, by its id."""
    lost, alive = stranded_runs(office), officer_alive(office.state)
    with office.database.reading() as connection:
        waiting = set(connection.execute(sql("SELECT id FROM runs WHERE approval = 'needed'")).scalars())
    return {
        run.id: standing_of(run, is_stranded=run.id in lost, needs_approval=run.id in waiting, alive=alive)
        for run in runs
    }


@operation(Effect.READ)
def stranded_runs(office: Office) -> tuple[str, ...]:
    """Ids of runs that have not ended and that nobody can finish, oldest first.

    A run that a living officer of another release has taken up is not among them: that officer can.
    """
    found = stranded(office.database)
    if not found:
        return ()
    with office.database.reading() as connection:
        ended = {run_id for run_id in found if _has_ended(connection, run_id)}
    taken_up = _living_executor(office)
    return tuple(run_id for run_id in found if run_id not in ended and not _is_by(office, run_id, taken_up))


def _has_ended(connection: Connection, run_id: str) -> bool:
    state = connection.execute(sql("SELECT state FROM runs WHERE id = :id"), {"id": run_id}).scalar()
    return state not in ("requested", "running")


def _living_executor(office: Office) -> str | None:
    if not officer_alive(office.state):
        return None
    with office.database.reading() as connection:
        generation = connection.execute(sql("SELECT generation FROM officer")).scalar()
    return None if generation is None else f"officer-{generation}"


def _is_by(office: Office, run_id: str, executor: str | None) -> bool:
    execution = run_execution(office.database, run_id)
    return executor is not None and execution is not None and execution.executor == executor


@operation(Effect.COMMIT)
def mend(office: Office, run_id: str, *, by: str, reason: str) -> Run:
    """End a stranded run as failed, let go of its place, and tell people; a new run can then begin.

    Also while an officer is alive: it does not touch a stranded run. What the run did to traffic stays as it is. Raises
    `NotFoundError` `run_unknown`, `RefusedError` `reason_missing`, `ConflictError` `run_ended` or `run_not_stranded`.
    """
    if not reason.strip():
        raise RefusedError("reason_missing", "a mend needs a reason", "say why the run is given up: --reason TEXT")
    taken_up, execution = _living_executor(office), run_execution(office.database, run_id)
    context = office.recovery_context()
    with office.database.transaction() as connection:
        found = read_run(connection, run_id)
        if found.state in TERMINAL:
            raise ConflictError("run_ended", f"{run_id} ended as {found.state.value}", f"rearguard runs show {run_id}")
        worked_on = execution is not None and taken_up is not None and execution.executor == taken_up
        if worked_on or not give_up(connection, run_id, office.clock.now()):
            raise _not_stranded(run_id, execution)
        assert execution is not None
        append(
            connection,
            now=office.clock.now(),
            kind="run_mended",
            body={"by": by, "reason": reason[:500], "engine_version": execution.version or ""},
            place=found.place,
            run_id=run_id,
        )
        message = f"begun with engine {execution.version}, which this release ({APPLICATION_VERSION}) cannot finish"
        state: dict[str, Any] = {
            **how_far(connection, run_id),
            "failure": {"step": "engine", "state": "failed", "reason": "stranded", "message": message},
        }
        state.update(records.finish(context, connection, found, state))
        records.close(context, connection, found, state)
    office.publish()
    with office.database.reading() as connection:
        return read_run(connection, run_id)


def _not_stranded(run_id: str, execution: Execution | None) -> ConflictError:
    version = execution.version if execution else None
    why = f"was begun with engine {version}" if version else "has not been begun"
    return ConflictError(
        "run_not_stranded",
        f"{run_id} {why}: an officer can finish it",
        f"start one (`rearguard run`), or `rearguard runs cancel {run_id}`",
    )


def tell_stranded(office: Office, run_id: str) -> None:
    """Page once about a run that this officer cannot finish."""
    execution = run_execution(office.database, run_id)
    with office.database.transaction() as connection:
        found = read_run(connection, run_id)
        outbox.post(
            connection,
            Message(
                key=f"{run_id}:stranded",
                title=f"{found.place}: rollback stranded",
                fields={
                    "incident": found.incident_id or "",
                    "service": found.place.service,
                    "env": found.place.env,
                    "why": f"begun with engine {execution.version if execution else ''}, which nobody runs",
                    "state": found.state.value,
                    "reason": "stranded",
                    "run_id": run_id,
                    "next": mend_command(run_id),
                },
                cause=found.incident_id or run_id,
                severity="page",
                action="update",
            ),
            office.clock.now(),
        )
