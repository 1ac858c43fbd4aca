"""A run that was asked for, has not begun, and is not meant any more: it is called off, with the page that it sent."""

from __future__ import annotations

from rearguard.database import Connection, officer_alive, sql
from rearguard.evidence.log import append
from rearguard.model.run import Run, RunState
from rearguard.model.time import Instant
from rearguard.officer import approvals
from rearguard.officer.office import Office
from rearguard.recovery import records
from rearguard.recovery.brakes import AUTOMATIC
from rearguard.recovery.context import read_run


def call_off(office: Office, connection: Connection, incident_id: str, *, by: str, now: Instant) -> tuple[str, ...]:
    """Call off what was asked for on account of an incident that somebody closes; returns the ids of those runs.

    A living officer ends such a run as cancelled at its first step; with none alive it is ended here, as its last two
    steps would. Recorded as `cancel_requested`. From then on nobody can approve it.
    """
    called_off = list(
        connection.execute(
            sql("SELECT id FROM runs WHERE incident_id = :incident AND state = 'requested' ORDER BY rowid"),
            {"incident": incident_id},
        ).scalars()
    )
    for run_id in called_off:
        run = read_run(connection, run_id)
        _ask_to_end(connection, run, by=by, why=f"{by} closed {incident_id}", now=now)
        if not officer_alive(office.state):
            end(office, connection, run, f"{by} closed {incident_id} before it began")
    return tuple(called_off)


def end_unbegun(office: Office, connection: Connection, run: Run, *, by: str, why: str, now: Instant) -> None:
    """Call a run off that has not begun and that no other officer has, and end it here."""
    _ask_to_end(connection, run, by=by, why=why, now=now)
    end(office, connection, run, why)


def _ask_to_end(connection: Connection, run: Run, *, by: str, why: str, now: Instant) -> None:
    connection.execute(sql("UPDATE runs SET cancel_requested = 1 WHERE id = :id"), {"id": run.id})
    approvals.withdraw(connection, run.id, now, why, "withdrawn")
    append(connection, now=now, kind="cancel_requested", body={"by": by}, place=run.place, run_id=run.id)


def end(office: Office, connection: Connection, run: Run, message: str) -> None:
    """Do what the last two steps of a cancelled run do. An engine that has it queued finds it ended."""
    assert run.state is RunState.REQUESTED
    context = office.recovery_context()
    failure = {"step": "lock", "state": "cancelled", "reason": "cancelled", "message": message}
    ended = records.finish(context, connection, run, {"failure": failure})
    records.close(context, connection, run, ended)


def end_automatic_runs(connection: Connection, service: str, env: str, *, why: str, now: Instant) -> None:
    """Ask the automatic runs of some places to end (`*`: every service or environment); resolve what asked for approval.

    Honoured until traffic moves; a service that was switched and is not yet proven is never abandoned.
    """
    scope = {"service": service, "env": env, "auto": AUTOMATIC}
    where = (
        ":service IN (service, '*') AND :env IN (env, '*') AND requested_by = :auto "
        "AND state IN ('requested', 'running')"
    )
    asked = (
        connection.execute(sql(f"SELECT id FROM runs WHERE {where} AND cancel_requested = 0"), scope).scalars().all()
    )
    connection.execute(sql(f"UPDATE runs SET cancel_requested = 1 WHERE {where}"), scope)
    for run_id in asked:
        approvals.withdraw(connection, run_id, now, why, "withdrawn")
