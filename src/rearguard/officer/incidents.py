"""Operations on incidents, and how a breach becomes one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.database import Connection, sql
from rearguard.errors import ConflictError, NotFoundError
from rearguard.evidence.log import append, read
from rearguard.handoffs import outbox
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.incident import Incident, IncidentState
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import SecondCounts
from rearguard.model.time import Instant
from rearguard.officer import approvals, calling_off, holds
from rearguard.officer.closing import SUPERSEDED, TELEMETRY_BACK, tell_closed
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.recovery import brakes
from rearguard.recovery.context import version_of
from rearguard.watch.feed import limits_for

DATA_PLANE_DOWN = "data_plane_down"
"""The rule named by an incident of a place that is silent and does not answer probes either (R31)."""
CLOSED_BY_ITSELF = ("rollback", SUPERSEDED, TELEMETRY_BACK)
"""Who closed an incident, in its record, when it was no person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """What the watcher found, with the telemetry that led to it."""

    place: Place
    digest: Digest
    judgement: Judgement
    also: tuple[Judgement, ...]
    """Further triggers that breached in the same look."""
    t0: Instant
    t1: Instant
    telemetry: tuple[SecondCounts, ...]
    p95_ms: str | None
    note: str = ""


@operation(Effect.COMMIT)
def open_incident(office: Office, breach: Breach) -> tuple[Incident, str | None]:
    """Open an incident, or attach to the open one; returns it and the id of the run to start, if any.

    Incident and run are written in one transaction, so a crash right after leaves a run that the next officer finds.
    Where a brake holds, the incident is recorded, people are told, and nothing is started (R29, R30).
    """
    place = breach.place
    with office.database.transaction() as connection:
        found = _open_at(connection, place)
        if found is not None and not _superseded(office, connection, found, breach):
            _attach(office, connection, found, breach)
            return found, _start(office, connection, found, office.ids.run_id())
        closed = _closed_before(connection, breach)
        if closed is not None:
            return closed, None
        row = connection.execute(
            sql(
                "INSERT INTO incidents (service, env, trigger_name, digest, state, t0, t1) "
                "VALUES (:service, :env, :trigger, :digest, 'open', :t0, :t1) RETURNING n"
            ),
            {
                "service": place.service,
                "env": place.env,
                "trigger": breach.judgement.trigger.value,
                "digest": breach.digest,
                "t0": encode_instant(breach.t0),
                "t1": encode_instant(breach.t1),
            },
        ).one()
        incident_id = f"R-{row.n}"
        run_id = office.ids.run_id()
        append(
            connection,
            now=breach.t1,
            kind="incident_opened",
            body=_body(connection, incident_id, breach, _p95_limit_ms(office, place)),
            place=place,
            run_id=run_id,
        )
        started = _start(office, connection, _read(connection, incident_id), run_id)
        incident = _read(connection, incident_id)
        for other in breach.also:
            _attach_one(office, connection, incident, other, breach)
    return incident, started


def insert_run(
    connection: Connection,
    run_id: str,
    place: Place,
    *,
    incident_id: str | None,
    from_digest: Digest | None,
    by: str,
    now: Instant,
    wanted: Digest | None = None,
) -> None:
    """Write a run that a living officer will take up."""
    connection.execute(
        sql(
            "INSERT INTO runs (id, service, env, incident_id, from_digest, wanted_digest, state, requested_by, requested_at) "
            "VALUES (:id, :service, :env, :incident, :from_digest, :wanted, 'requested', :by, :at)"
        ),
        {
            "id": run_id,
            "service": place.service,
            "env": place.env,
            "incident": incident_id,
            "from_digest": from_digest,
            "wanted": wanted,
            "by": by,
            "at": encode_instant(now),
        },
    )


def _p95_limit_ms(office: Office, place: Place) -> str | None:
    """Target and margin together (R21), as text."""
    settings = office.settings.find(place)
    limit_ms = limits_for(settings, baseline=None).latency_limit_ms if settings else None
    return _plain(limit_ms)


def _body(connection: Connection, incident_id: str, breach: Breach, p95_limit_ms: str | None) -> dict[str, Any]:
    judgement = breach.judgement
    return {
        "incident_id": incident_id,
        "trigger": judgement.trigger.value,
        "digest": breach.digest,
        "version": version_of(connection, breach.digest),
        "t0_ts": breach.t0.rfc3339_ms(),
        "t0_mono_ns": str(breach.t0.mono_ns),
        "t1_ts": breach.t1.rfc3339_ms(),
        "t1_mono_ns": str(breach.t1.mono_ns),
        "rule": "literal" if not breach.note else breach.note,
        **_judgement(judgement),
        "p95_ms": breach.p95_ms,
        "p95_limit_ms": p95_limit_ms,
        "telemetry": [
            {
                "second": s.second,
                "requests": s.requests,
                "failures": s.failures,
                "timed": s.timed,
                "over_latency": s.over_latency,
                "scores": s.scores,
                "score_sum": str(s.score_sum),
            }
            for s in breach.telemetry
        ],
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {
        "observed": _plain(judgement.observed),
        "limit": _plain(judgement.limit),
        "streak": judgement.streak,
        "window": {
            "start_s": judgement.window_start_s,
            "end_s": judgement.window_end_s,
            "samples": judgement.samples,
            "exceedances": judgement.exceedances,
        },
    }


def _plain(value: object) -> str | None:
    """A Decimal as text without exponent, at most six decimals."""
    if value is None:
        return None
    text = f"{value:.6f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _attach(office: Office, connection: Connection, incident: Incident, breach: Breach) -> None:
    for judgement in (breach.judgement, *breach.also):
        _attach_one(office, connection, incident, judgement, breach)


def _attach_one(
    office: Office, connection: Connection, incident: Incident, judgement: Judgement, breach: Breach
) -> None:
    current = _read(connection, incident.id)
    if judgement.trigger is current.trigger or judgement.trigger in current.attached or breach.digest != current.digest:
        return
    attached = json.dumps([t.value for t in (*current.attached, judgement.trigger)])
    connection.execute(
        sql("UPDATE incidents SET attached = :a WHERE n = :n"), {"a": attached, "n": int(incident.id[2:])}
    )
    body = {
        "incident_id": incident.id,
        "trigger": judgement.trigger.value,
        "digest": breach.digest,
        **_judgement(judgement),
    }
    append(
        connection,
        now=office.clock.now(),
        kind="incident_attached",
        body=body,
        place=incident.place,
        run_id=current.run_id,
    )


def _open_at(connection: Connection, place: Place) -> Incident | None:
    row = connection.execute(
        sql("SELECT n FROM incidents WHERE service = :service AND env = :env AND state = 'open'"),
        {"service": place.service, "env": place.env},
    ).first()
    return _read(connection, f"R-{row.n}") if row else None


def _superseded(office: Office, connection: Connection, found: Incident, breach: Breach) -> bool:
    """Close the open incident when another digest breaches and no rollback is at work: the place has moved on.

    Otherwise one incident that nobody closed would keep every later breach of the place without an answer.
    """
    busy = connection.execute(
        sql("SELECT 1 FROM runs WHERE service = :service AND env = :env AND state IN ('requested', 'running')"),
        {"service": found.place.service, "env": found.place.env},
    ).first()
    if busy or breach.digest == found.digest:
        return False
    _close_by(office, connection, found, SUPERSEDED)
    return True


def _start(office: Office, connection: Connection, incident: Incident, run_id: str) -> str | None:
    """Write a run for an open incident that still breaches; None when one is not wanted, or a brake holds it back.

    Asked at every look, so what was held back starts once the brake lets go, and what failed is tried again once the
    cool-down has passed and the budget allows it (R29).
    """
    if not holds.wants_run(connection, incident):
        return None
    now = office.clock.now()
    settings = office.place(incident.place.service, incident.place.env)
    hold = brakes.hold_on(settings, connection, now, retry_of=incident.id)
    if hold is not None:
        holds.record_hold(connection, incident, hold, settings, office.settings.checkpoints, now=now, run_id=run_id)
        return None
    by = brakes.AUTOMATIC
    insert_run(connection, run_id, incident.place, incident_id=incident.id, from_digest=incident.digest, by=by, now=now)
    connection.execute(
        sql("UPDATE incidents SET run_id = :run WHERE n = :n"), {"run": run_id, "n": int(incident.id[2:])}
    )
    approvals.request(office, connection, run_id)
    return run_id


def _close_by(office: Office, connection: Connection, incident: Incident, by: str) -> None:
    connection.execute(sql("UPDATE incidents SET state = 'closed' WHERE n = :n"), {"n": int(incident.id[2:])})
    now = office.clock.now()
    append(
        connection,
        now=now,
        kind="incident_closed",
        body={"incident_id": incident.id, "false_positive": False, "by": by},
        place=incident.place,
        run_id=incident.run_id,
    )
    tell_closed(connection, incident, by=by, now=now)


def close_outage(office: Office, place: Place) -> None:
    """Telemetry is back: an outage that no rollback is working on is over."""
    with office.database.transaction() as connection:
        found = _open_at(connection, place)
        if found is None or found.state is IncidentState.CLOSED:
            return
        opened = [r for r in read(connection) if r.kind == "incident_opened" and r.body["incident_id"] == found.id]
        busy = connection.execute(
            sql("SELECT 1 FROM runs WHERE incident_id = :id AND state IN ('requested', 'running')"), {"id": found.id}
        ).first()
        if not busy and opened and opened[0].body["rule"] == DATA_PLANE_DOWN:
            _close_by(office, connection, found, TELEMETRY_BACK)


def _closed_before(connection: Connection, breach: Breach) -> Incident | None:
    """The newest incident of this place when it was about these very bad observations and was closed, else None.

    What a person closed is not opened again, by none of its triggers, until the breach has ended and begun anew.
    """
    row = connection.execute(
        sql("SELECT n FROM incidents WHERE service = :service AND env = :env ORDER BY n DESC LIMIT 1"),
        {"service": breach.place.service, "env": breach.place.env},
    ).first()
    newest = _read(connection, f"R-{row.n}") if row else None
    trigger = breach.judgement.trigger
    if newest is None or newest.digest != breach.digest or trigger not in (newest.trigger, *newest.attached):
        return None
    t0 = breach.t0
    if newest.trigger is trigger and newest.t0.boot_id == t0.boot_id and newest.t0.mono_ns == t0.mono_ns:
        return newest
    closing = closing_of(connection, newest.id)
    if closing is None or closing.by in CLOSED_BY_ITSELF or closing.boot_id != t0.boot_id:
        return None
    return newest if t0.mono_ns <= int(closing.monotonic_ns) else None


def closing_of(connection: Connection, incident_id: str) -> Any:
    """When and by whom an incident was closed, as its record has it; None while it is open."""
    return connection.execute(
        sql(
            "SELECT ts, monotonic_ns, boot_id, json_extract(body, '$.by') AS by FROM evidence "
            "WHERE kind = 'incident_closed' AND json_extract(body, '$.incident_id') = :id ORDER BY id LIMIT 1"
        ),
        {"id": incident_id},
    ).first()


def open_at(connection: Connection, place: Place) -> Incident | None:
    """The open incident of a place, if any."""
    return _open_at(connection, place)


def _read(connection: Connection, incident_id: str) -> Incident:
    number = incident_id[2:] if incident_id.startswith("R-") and incident_id[2:].isdigit() else "0"
    row = connection.execute(sql("SELECT * FROM incidents WHERE n = :n"), {"n": int(number)}).first()
    if row is None:
        raise NotFoundError("incident_unknown", f"no incident {incident_id}", "see `rearguard incident list`")
    return _incident(row._mapping)


def _incident(row: Any) -> Incident:
    return Incident(
        id=f"R-{row['n']}",
        place=Place(service=row["service"], env=row["env"]),
        trigger=Trigger(row["trigger_name"]),
        digest=Digest(row["digest"]),
        state=IncidentState(row["state"]),
        t0=decode_instant(row["t0"]),
        t1=decode_instant(row["t1"]),
        run_id=row["run_id"],
        acked_by=row["acked_by"],
        false_positive=bool(row["false_positive"]),
        attached=tuple(Trigger(t) for t in json.loads(row["attached"])),
    )


@operation(Effect.READ)
def list_incidents(office: Office) -> tuple[Incident, ...]:
    """All incidents, oldest first."""
    with office.database.reading() as connection:
        rows = connection.execute(sql("SELECT * FROM incidents ORDER BY n"))
        return tuple(_incident(row._mapping) for row in rows)


@operation(Effect.READ)
def show(office: Office, incident_id: str) -> Incident:
    """One incident. Raises `NotFoundError` `incident_unknown`."""
    with office.database.reading() as connection:
        return _read(connection, incident_id)


@operation(Effect.READ)
def evidence_of(office: Office, incident_id: str) -> dict[str, Any]:
    """Body of the record that opened an incident: trigger, figures, window and telemetry.

    Raises `NotFoundError` `incident_unknown`.
    """
    with office.database.reading() as connection:
        for record in read(connection):
            if record.kind == "incident_opened" and record.body["incident_id"] == incident_id:
                return record.body
    raise NotFoundError("incident_unknown", f"no incident {incident_id}", "see `rearguard incident list`")


@operation(Effect.COMMIT)
def acknowledge(office: Office, incident_id: str, *, by: str) -> Incident:
    """Somebody has it; recorded once per person."""
    with office.database.transaction() as connection:
        incident = _read(connection, incident_id)
        if incident.acked_by != by:
            connection.execute(
                sql("UPDATE incidents SET acked_by = :by WHERE n = :n"), {"by": by, "n": int(incident_id[2:])}
            )
            body = {"incident_id": incident_id, "by": by}
            append(
                connection,
                now=office.clock.now(),
                kind="incident_acknowledged",
                body=body,
                place=incident.place,
                run_id=incident.run_id,
            )
        outbox.acknowledge(connection, by=by, now=office.clock.now(), incident_id=incident_id)
    office.publish()
    return show(office, incident_id)


@operation(Effect.COMMIT)
def close(office: Office, incident_id: str, *, by: str, false_positive: bool) -> Incident:
    """Close by hand, or say of a closed one that it was (or was not) a false positive.

    A run that was asked for on its account and has not begun is called off. Raises `ConflictError` `incident_closed`
    when nothing would change, `rollback_open` while its run is at work.
    """
    with office.database.transaction() as connection:
        incident = _read(connection, incident_id)
        if incident.state is IncidentState.CLOSED and incident.false_positive == false_positive:
            raise ConflictError("incident_closed", f"{incident_id} is closed", "nothing to do")
        busy = connection.execute(
            sql("SELECT open_run_id FROM places WHERE service = :service AND env = :env"),
            {"service": incident.place.service, "env": incident.place.env},
        ).scalar()
        if busy and busy == incident.run_id:
            raise ConflictError("rollback_open", f"{busy} works on {incident_id}", f"rearguard runs show {busy}")
        connection.execute(
            sql("UPDATE incidents SET state = 'closed', false_positive = :fp WHERE n = :n"),
            {"fp": int(false_positive), "n": int(incident_id[2:])},
        )
        again = incident.state is IncidentState.CLOSED
        now = office.clock.now()
        append(
            connection,
            now=now,
            kind="incident_reassessed" if again else "incident_closed",
            body={"incident_id": incident_id, "false_positive": false_positive, "by": by},
            place=incident.place,
            run_id=incident.run_id,
        )
        calling_off.call_off(office, connection, incident_id, by=by, now=now)
        if not again:
            tell_closed(connection, incident, by=by, false_positive=false_positive, now=now)
    office.publish()
    return show(office, incident_id)
