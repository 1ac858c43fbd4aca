"""An incident that no run works on: whether one may be started, and who is told when a brake holds it back.

A breach is looked at again and again while it lasts. What holds its rollback back is recorded and told once for each
reason and attempt, never at every look.
"""

from __future__ import annotations

from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.model.checkpoint import CheckpointPolicy
from rearguard.model.incident import Incident
from rearguard.model.run import TERMINAL, RunState
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import Instant
from rearguard.ports import Message
from rearguard.recovery import notices
from rearguard.recovery.approval import APPROVAL_EXPIRED
from rearguard.recovery.brakes import AUTOMATIC, hold_on
from rearguard.recovery.candidates import candidates
from rearguard.recovery.context import read_run, version_of
from rearguard.rules.brakes import Brake, Hold


def wants_run(connection: Connection, incident: Incident) -> bool:
    """True when an open incident may get an automatic run, brakes aside.

    Not while a run of its place is at work, not after one that a person asked for or cancelled: a person has it then.
    A run that was cancelled because automation was paused or disarmed leaves the incident to the next one.
    """
    place = incident.place
    busy = connection.execute(
        sql("SELECT 1 FROM runs WHERE service = :service AND env = :env AND state IN ('requested', 'running')"),
        {"service": place.service, "env": place.env},
    ).first()
    if busy:
        return False
    if incident.run_id is None:
        return True
    last = read_run(connection, incident.run_id)
    if last.state not in TERMINAL or last.state is RunState.SUCCEEDED or last.requested_by != AUTOMATIC:
        return False
    by_hand = connection.execute(
        sql("SELECT 1 FROM evidence WHERE run_id = :run AND kind = 'cancel_requested'"), {"run": last.id}
    ).first()
    return not by_hand


def record_hold(
    connection: Connection,
    incident: Incident,
    hold: Hold,
    settings: PlaceSettings,
    policy: CheckpointPolicy,
    *,
    now: Instant,
    run_id: str,
) -> bool:
    """Record that a brake holds an incident's rollback back, and tell people; False when it was told before.

    Withheld without blame when somebody wanted it so, refused when something is wrong that a rollback did not mend.
    """
    reason = hold.brake.value
    told = connection.execute(
        sql(
            "SELECT 1 FROM evidence WHERE kind IN ('rollback_withheld', 'rollback_refused') "
            "AND service = :service AND env = :env AND json_extract(body, '$.incident_id') = :incident "
            "AND json_extract(body, '$.reason') = :reason AND json_extract(body, '$.after_run_id') IS :after"
        ),
        {
            "service": incident.place.service,
            "env": incident.place.env,
            "incident": incident.id,
            "reason": reason,
            "after": incident.run_id,
        },
    ).first()
    if told:
        return False
    found = candidates(connection, incident.place, active=incident.digest, policy=policy, now=now).candidates
    would_restore = found[0].checkpoint.version if found else None
    from_version = version_of(connection, incident.digest)
    body = {
        "incident_id": incident.id,
        "trigger": incident.trigger.value,
        "reason": reason,
        "would_restore": would_restore,
        "from_version": from_version,
        "until_ts": hold.until.rfc3339_ms() if hold.until else None,
        "after_run_id": incident.run_id,
    }
    kind = "rollback_refused" if hold.brake.refuses else "rollback_withheld"
    append(connection, now=now, kind=kind, body=body, place=incident.place, run_id=run_id)
    what = in_words(connection, incident, hold, settings, now)
    breach = notices.figures(connection, incident.id) or incident.trigger.label
    title = f"{incident.place}: {from_version or incident.digest[7:19]}, {breach}: {what}"
    outbox.post(connection, _message(incident, hold, would_restore, title), now)
    return True


def in_words(connection: Connection, incident: Incident, hold: Hold, settings: PlaceSettings, now: Instant) -> str:
    """What holds an incident's next rollback back, and until when; it says what an attempt that did nothing died of."""
    until = f" until {hold.until.rfc3339()}" if hold.until else ""
    if hold.brake is Brake.COOL_DOWN and incident.run_id is not None:
        without_it = hold_on(settings, connection, now)
        if without_it is None or without_it.brake is not Brake.COOL_DOWN:
            last = read_run(connection, incident.run_id)
            how = "not approved" if last.reason == APPROVAL_EXPIRED else f"refused ({last.reason})"
            return f"waits{until} after an attempt that was {how}"
    return f"{hold.brake.words}{until}"


def _message(incident: Incident, hold: Hold, would_restore: str | None, title: str) -> Message:
    place, brake = incident.place, hold.brake
    until = hold.until.rfc3339() if hold.until else ""
    by_hand = f"rearguard rollback run {place.service} --env {place.env} --execute"
    state = "observed" if brake is Brake.OBSERVE else ("refused" if brake.refuses else "withheld")
    after = f":{incident.run_id}" if incident.run_id else ""
    return Message(
        key=f"{incident.id}:{state if brake is Brake.OBSERVE else brake.value}{after}",
        title=f"{title}: no automatic rollback; by hand: {by_hand}",
        fields={
            "incident": incident.id,
            "service": place.service,
            "env": place.env,
            "why": incident.trigger.label,
            "state": state,
            "reason": brake.value,
            "until": until,
            "to": would_restore or "",
            "run_id": "",
            "next": by_hand,
        },
        cause=incident.id,
        severity="page",
    )
