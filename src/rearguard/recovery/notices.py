"""What people are told of a run: one message at its beginning, one at each rung that was lost, one at its end."""

from __future__ import annotations

from rearguard.database import Connection
from rearguard.handoffs import outbox
from rearguard.model.run import Run
from rearguard.ports import Message
from rearguard.recovery.context import RecoveryContext


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
    """Write a message about a run, in the transaction of the fact that it tells.

    Its cause is the incident, or the run without one; a page unless it succeeded or a person cancelled it.
    """
    follow_up = {
        "running": f"rearguard runs show {run.id}",
        "succeeded": "rearguard report render",
    }.get(state, f"rearguard runs show {run.id}; rearguard rollback plan {run.place.service} --env {run.place.env}")
    title = f"{run.place}: rollback {what} ({state})"
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
    message = Message(
        key=f"{run.id}:{what}",
        title=title,
        fields=fields,
        cause=run.incident_id or run.id,
        severity="info" if state in ("succeeded", "cancelled") else "page",
        action="resolve" if state == "succeeded" else "update",
    )
    outbox.post(connection, message, context.clock.now())
