"""People are told that an incident is over without a rollback that restored it: its page is resolved."""

from __future__ import annotations

from rearguard.database import Connection
from rearguard.handoffs import outbox
from rearguard.model.incident import Incident
from rearguard.model.time import Instant
from rearguard.ports import Message
from rearguard.recovery.context import version_of

SUPERSEDED = "superseded"
TELEMETRY_BACK = "telemetry_back"
_WORDS = {SUPERSEDED: "another version breaches", TELEMETRY_BACK: "telemetry is back"}


def tell_closed(
    connection: Connection, incident: Incident, *, by: str, false_positive: bool = False, now: Instant
) -> None:
    """Resolve what was told of an incident; a page of it that no channel has taken yet is superseded.

    `by`: a person, or the code of why it closed by itself.
    """
    place = incident.place
    how = _WORDS.get(by) or f"by {by}{' as a false positive' if false_positive else ''}"
    version = version_of(connection, incident.digest)
    fields = {
        "incident": incident.id,
        "service": place.service,
        "env": place.env,
        "from": version or incident.digest,
        "to": "",
        "why": incident.trigger.label,
        "state": "closed",
        "reason": by if by in _WORDS else "false_positive" if false_positive else "",
        "run_id": incident.run_id or "",
        "next": f"rearguard incident show {incident.id}",
    }
    message = Message(
        key=f"{incident.id}:closed",
        title=f"{place}: {version or incident.digest[7:19]}, {incident.trigger.label}: {incident.id} closed, {how}",
        fields=fields,
        cause=incident.id,
        severity="info",
        action="resolve",
    )
    outbox.post(connection, message, now)
