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
from rearguard.model.time import Instant
from rearguard.ports import Message
from rearguard.recovery.brakes import AUTOMATIC
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
    connection: Connection, incident: Incident, hold: Hold, policy: CheckpointPolicy, *, now: Instant, run_id: str
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
    body = {
        "incident_id": incident.id,
        "trigger": incident.trigger.value,
        "reason": reason,
        "would_restore": would_restore,
        "from_version": version_of(connection, incident.digest),
        "until_ts": hold.until.rfc3339_ms() if hold.until else None,
        "after_run_id": incident.run_id,
    }
    kind = "rollback_refused" if hold.brake.refuses else "rollback_withheld"
    append(connection, now=now, kind=kind, body=body, place=incident.place, run_id=run_id)
    outbox.post(connection, _message(incident, hold, would_restore), now)
    return True


def _message(incident: Incident, hold: Hold, would_restore: str | None) -> Message:
    place, brake = incident.place, hold.brake
    until = hold.until.rfc3339() if hold.until else ""
    by_hand = f"rearguard rollback run {place.service} --env {place.env} --execute"
    state = "observed" if brake is Brake.OBSERVE else ("refused" if brake.refuses else "withheld")
    what = f"{brake.words} until {until}" if until else brake.words
    after = f":{incident.run_id}" if incident.run_id else ""
    return Message(
        key=f"{incident.id}:{state if brake is Brake.OBSERVE else brake.value}{after}",
        title=f"{place}: {incident.trigger.label}, {what}: no automatic rollback; by hand: {by_hand}",
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
