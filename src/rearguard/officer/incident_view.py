"""One incident as somebody on call reads it: what was observed, what was done about it, and what it waits for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints.registry import decode_instant
from rearguard.database import Connection, sql
from rearguard.model.incident import Incident, IncidentState
from rearguard.model.run import TERMINAL
from rearguard.model.time import Instant
from rearguard.officer import holds, incidents
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.recovery import brakes, notices
from rearguard.recovery.context import read_run, run_from_row, version_of


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentRun:
    """A rollback for the incident."""

    id: str
    state: str
    reason: str
    requested_by: str
    to_version: str | None
    ended_at: Instant | None
    rto_achieved_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentView:
    """An incident, with what its records say."""

    incident: Incident
    version: str | None
    observed: str
    """Trigger, observed value and limit in words."""
    figures: dict[str, Any]
    """`observed`, `limit`, `samples`, `p95_ms`, `p95_limit_ms` of the record that opened it; null where nothing is known."""
    holds: str
    """What holds its next rollback back; empty when nothing does, or when it is closed."""
    runs: tuple[IncidentRun, ...]
    """Oldest first."""
    closed_at: str | None
    """RFC 3339."""
    closed_by: str | None
    """A person, or `rollback`, `superseded`, `telemetry_back`."""


@operation(Effect.READ)
def view(office: Office, incident_id: str) -> IncidentView:
    """One incident, whole. Raises `NotFoundError` `incident_unknown`."""
    found = incidents.show(office, incident_id)
    opened = incidents.evidence_of(office, incident_id)
    now = office.clock.now()
    with office.database.reading() as connection:
        closing = incidents.closing_of(connection, incident_id)
        return IncidentView(
            incident=found,
            version=version_of(connection, found.digest),
            observed=notices.in_words(opened),
            figures={
                "observed": opened["observed"],
                "limit": opened["limit"],
                "samples": opened["window"]["samples"],
                "p95_ms": opened["p95_ms"],
                "p95_limit_ms": opened.get("p95_limit_ms"),
            },
            holds=_holds(office, connection, found, now),
            runs=_runs(connection, found),
            closed_at=closing.ts if closing else None,
            closed_by=closing.by if closing else None,
        )


def _holds(office: Office, connection: Connection, incident: Incident, now: Instant) -> str:
    settings = office.settings.find(incident.place)
    if incident.state is IncidentState.CLOSED or settings is None:
        return ""
    last = read_run(connection, incident.run_id) if incident.run_id else None
    if last is not None and last.state not in TERMINAL:
        return ""
    if last is not None and not holds.wants_run(connection, incident):
        return "a person has it: its last rollback was asked for or cancelled by hand"
    hold = brakes.hold_on(settings, connection, now, retry_of=incident.id)
    return holds.in_words(connection, incident, hold, settings, now) if hold else ""


def _runs(connection: Connection, incident: Incident) -> tuple[IncidentRun, ...]:
    rows = connection.execute(
        sql("SELECT * FROM runs WHERE incident_id = :id ORDER BY rowid"), {"id": incident.id}
    ).all()
    found = []
    for row in rows:
        run = run_from_row(row._mapping)
        body = connection.execute(
            sql("SELECT body FROM evidence WHERE run_id = :id AND kind = 'rollback_finished'"), {"id": run.id}
        ).scalar()
        found.append(
            IncidentRun(
                id=run.id,
                state=run.state.value,
                reason=run.reason,
                requested_by=run.requested_by,
                to_version=version_of(connection, run.to_digest),
                ended_at=decode_instant(row.ended_at) if row.ended_at else None,
                rto_achieved_ms=json.loads(body).get("rto_achieved_ms") if body else None,
            )
        )
    return tuple(found)
