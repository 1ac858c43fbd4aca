"""What people are told of a run: one message at its beginning, one at each rung that was lost, one at its end."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from rearguard.database import Connection, sql
from rearguard.handoffs import outbox
from rearguard.model.breach import Trigger
from rearguard.model.run import Run
from rearguard.ports import Message
from rearguard.recovery.approval import APPROVAL_EXPIRED, select_for
from rearguard.recovery.context import RecoveryContext
from rearguard.rules.breach.wording import worded


def tell(
    context: RecoveryContext,
    connection: Connection,
    run: Run,
    what: str,
    from_version: str | None,
    to_version: str | None,
    why: str,
    state: str,
    reason: str = "",
) -> None:
    """Write a message about a run, in the transaction of the fact that it tells, and after its record.

    Its cause is the incident, or the run without one; a page unless it succeeded or a person cancelled it.
    """
    follow_up = {
        "running": f"rearguard runs show {run.id}",
        "succeeded": "rearguard report render",
    }.get(state, f"rearguard runs show {run.id}; rearguard rollback plan {run.place.service} --env {run.place.env}")
    fields = {
        "incident": run.incident_id or "",
        "service": run.place.service,
        "env": run.place.env,
        "from": from_version or (run.from_digest or "unknown"),
        "to": to_version or "",
        "why": why,
        "state": state,
        "reason": reason,
        "run_id": run.id,
        "next": follow_up,
    }
    said = (
        _begun(context, connection, run, from_version, why)
        if what == "begun"
        else (
            _ended(connection, run, from_version, to_version, state, reason)
            if what == "ended"
            else f"still rolling back {_named(from_version, run.from_digest)}: {why}"
        )
    )
    message = Message(
        key=f"{run.id}:{what}",
        title=f"{run.place}: {said}",
        fields=fields,
        cause=run.incident_id or run.id,
        severity="info" if state in ("succeeded", "cancelled") else "page",
        action="resolve" if state == "succeeded" or _is_over(connection, run) else "update",
    )
    outbox.post(connection, message, context.clock.now())


def _is_over(connection: Connection, run: Run) -> bool:
    """True when somebody closed the run's incident: what is told of it then must not open it anew for a receiver."""
    if run.incident_id is None:
        return False
    state = connection.execute(
        sql("SELECT state FROM incidents WHERE n = :n"), {"n": int(run.incident_id[2:])}
    ).scalar()
    return state == "closed"


def figures(connection: Connection, incident_id: str) -> str:
    """Trigger of an incident with what was observed and the limit, from the record that opened it."""
    found = connection.execute(
        sql(
            "SELECT body FROM evidence WHERE kind = 'incident_opened' AND json_extract(body, '$.incident_id') = :id LIMIT 1"
        ),
        {"id": incident_id},
    ).scalar()
    return in_words(json.loads(found)) if found else ""


def in_words(opened: dict[str, Any]) -> str:
    """The same, of the body of that record."""
    if opened.get("rule") == "data_plane_down":
        return "no telemetry and no answer to probes"
    values = (opened.get(name) for name in ("observed", "limit", "p95_ms", "p95_limit_ms"))
    observed, limit, p95_ms, p95_limit_ms = (None if value is None else Decimal(value) for value in values)
    trigger = Trigger(opened["trigger"])
    return worded(trigger, observed=observed, limit=limit, p95_ms=p95_ms, p95_limit_ms=p95_limit_ms)


def _begun(context: RecoveryContext, connection: Connection, run: Run, from_version: str | None, why: str) -> str:
    # Who is to be restored is only foreseen here; the run itself chooses and proves it in steps of its own.
    foreseen = select_for(connection, run, context.settings, context.clock.now()).candidates
    to = f" → {foreseen[0].checkpoint.version}" if foreseen else ""
    because = figures(connection, run.incident_id) if run.incident_id else ""
    return f"rolling back {_named(from_version, run.from_digest)}{to}: {because or why}"


def _ended(
    connection: Connection, run: Run, from_version: str | None, to_version: str | None, state: str, reason: str
) -> str:
    if state == "succeeded":
        took = _rto(connection, run)
        return f"restored to {to_version}{f' in {took}' if took else ''}"
    serves = _serves(connection, run, from_version)
    if reason == APPROVAL_EXPIRED:
        return f"approval expired: no rollback was done, {serves}"
    because = f" ({reason})" if reason and reason != state else ""
    return f"rollback {state}{because}: {serves}"


def _serves(connection: Connection, run: Run, from_version: str | None) -> str:
    """What is behind the place's traffic after a run that did not succeed, as far as it is recorded."""
    row = connection.execute(
        sql(
            "SELECT digest, version FROM deployments WHERE service = :service AND env = :env AND state = 'active' "
            "ORDER BY id DESC LIMIT 1"
        ),
        {"service": run.place.service, "env": run.place.env},
    ).first()
    if row is None:
        return "what serves is not known"
    if _failed_step(connection, run) == "activate":  # an order that failed may have been carried out all the same
        return f"{_named(row.version, row.digest)} served last"
    if row.digest == run.from_digest:
        return f"{_named(from_version, row.digest)} still serves"
    return f"{_named(row.version, row.digest)} serves"


def _failed_step(connection: Connection, run: Run) -> str | None:
    found = connection.execute(
        sql(
            "SELECT json_extract(body, '$.failed_step') FROM evidence WHERE kind = 'rollback_finished' AND run_id = :id LIMIT 1"
        ),
        {"id": run.id},
    ).scalar()
    return str(found) if found else None


def _rto(connection: Connection, run: Run) -> str:
    """`41 s` from the first bad observation to the restored service; below ten seconds with one decimal, as `4.2 s`."""
    row = connection.execute(
        sql(
            "SELECT json_extract(body, '$.rto_achieved_ms') AS ms FROM evidence "
            "WHERE kind = 'rollback_finished' AND run_id = :id LIMIT 1"
        ),
        {"id": run.id},
    ).first()
    if row is None or row.ms is None:
        return ""
    return f"{row.ms / 1000:.1f} s" if row.ms < 10_000 else f"{round(row.ms / 1000)} s"


def _named(version: str | None, digest: str | None) -> str:
    return version or (digest[7:19] if digest else "an unknown version")
