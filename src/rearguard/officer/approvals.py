"""Operations on approvals: ask for one, give it, let it expire (ADR 0006).

A run at a place that requires approval is written as waiting, with its plan, and no engine gets it before somebody else
than its requester has signed that plan. Whether the signature still holds is asked again by the run itself
(`recovery/approval.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.database import Connection, sql
from rearguard.errors import ConflictError, RefusedError
from rearguard.evidence import signatures
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.model.breach import Trigger
from rearguard.model.run import TERMINAL, Run, RunState
from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer import keys, settings_in_force
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.ports import Message
from rearguard.recovery import notices, records
from rearguard.recovery.approval import (
    APPROVAL_EXPIRED,
    PAYLOAD_TYPE,
    PLAN_CHANGED,
    is_expired,
    payload,
    plan_of,
    plan_sha256,
    same_person,
)
from rearguard.recovery.context import read_run, version_of
from rearguard.rules import dsse

NEEDED = "needed"
GIVEN = "given"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """What somebody is asked to agree to."""

    run: Run
    approval: str
    """`needed`, `given`, or empty for a run that needs none."""
    approved_by: str
    """Name of the key, or empty."""
    why: str
    """Label of the trigger, or that a person asked for it."""
    from_version: str
    to_versions: tuple[str, ...]
    """Candidates in the order in which they would be tried."""
    plan_sha256: str
    """Empty for a run that needs no approval."""
    expires_at: Instant | None


def request(office: Office, connection: Connection, run_id: str) -> bool:
    """Make a run that was just written wait for approval, if its place requires one; returns whether it waits.

    A run without any candidate is refused at once (`no_verified_checkpoint`, R28): nobody is asked to agree to nothing.
    """
    run = read_run(connection, run_id)
    settings = office.settings.find(run.place)
    if settings is None or not settings.approval.required:
        return False
    now = office.clock.now()
    plan = plan_of(connection, run, office.settings, office.playbook, now)
    if not plan.candidates:
        _refuse(office, connection, run, "no_verified_checkpoint", f"nothing proven to roll {run.place} back to")
        return False
    expires_at = now.plus(settings.approval.expires_s * NS_PER_S)
    connection.execute(
        sql("UPDATE runs SET approval = 'needed', plan = :plan, approval_expires_at = :at WHERE id = :id"),
        {"plan": plan.text(), "at": encode_instant(expires_at), "id": run_id},
    )
    body = {
        "incident_id": run.incident_id,
        "requested_by": run.requested_by,
        "plan": json.loads(plan.text()),
        "plan_sha256": plan.sha256(),
        "expires_ts": expires_at.rfc3339_ms(),
    }
    append(connection, now=now, kind="approval_requested", body=body, place=run.place, run_id=run_id)
    asked = _read(connection, run_id)
    because = (notices.figures(connection, run.incident_id) if run.incident_id else "") or asked.why
    title = (
        f"{run.place}: rollback {asked.from_version} → {asked.to_versions[0]} waits for approval until "
        f"{expires_at.rfc3339()}: {because}"
    )
    _tell(connection, asked, title, now, state="waiting", what="approval", severity="page", action="open")
    return True


@operation(Effect.READ)
def show(office: Office, run_id: str) -> ApprovalRequest:
    """What a run wants to have approved. Raises `NotFoundError` `run_unknown`."""
    with office.database.reading() as connection:
        return _read(connection, run_id)


@operation(Effect.COMMIT)
def approve(office: Office, run_id: str, *, key_file: Path, name: str | None = None) -> ApprovalRequest:
    """Sign the plan of a waiting run with a private key; the officer then does it.

    Raises `ConflictError` (`run_ended`: it ended or is cancelled, and stays so; `approval_given`; `approval_not_needed`),
    `RefusedError` (`key_unknown`, `approver_is_requester`, `approval_expired`, `plan_changed`,
    `settings_changed`), `UsageError` `key_unreadable`. Refused means that nothing was written.
    """
    private = keys.read_file(key_file)
    public = signatures.public_key_of(private)
    with office.database.reading() as connection:
        _refuse_unless_waiting(connection, _read(connection, run_id))
    settings_in_force.refuse_changed(office, run_id)
    with office.database.transaction() as connection:
        asked = _read(connection, run_id)
        run = asked.run
        _refuse_unless_waiting(connection, asked)
        key = _usable_key(connection, public, name, key_file)
        if same_person(key.name, run.requested_by):
            raise RefusedError(
                "approver_is_requester",
                f"{key.name} asked for {run_id} and cannot approve it",
                "somebody else has to approve",
            )
        now = office.clock.now()
        assert asked.expires_at is not None
        if is_expired(asked.expires_at, now):
            raise RefusedError(
                APPROVAL_EXPIRED,
                f"{run_id} could be approved until {asked.expires_at.rfc3339()}",
                f"ask again: rearguard rollback run {run.place.service} --env {run.place.env} --execute",
            )
        _refuse_changed_plan(office, connection, run, asked.plan_sha256, now)
        signed = payload(run, plan_sha256=asked.plan_sha256, approver=key.name, expires_at=asked.expires_at)
        message = dsse.pre_authentication_encoding(PAYLOAD_TYPE, signed)
        envelope = dsse.Envelope(
            payload_type=PAYLOAD_TYPE,
            payload=signed,
            key_id=key.fingerprint,
            signature=signatures.sign(private, message),
        )
        _give(connection, key, envelope, asked, now)
    office.publish()
    return show(office, run_id)


def _give(connection: Connection, key: keys.Key, envelope: dsse.Envelope, asked: ApprovalRequest, now: Instant) -> None:
    run = asked.run
    connection.execute(
        sql("INSERT INTO approvals (run_id, key_name, envelope, given_at) VALUES (:run, :key, :envelope, :at)"),
        {"run": run.id, "key": key.name, "envelope": dsse.encode(envelope), "at": encode_instant(now)},
    )
    connection.execute(sql("UPDATE runs SET approval = 'given' WHERE id = :id"), {"id": run.id})
    body = {
        "key_name": key.name,
        "key_fingerprint": key.fingerprint,
        "plan_sha256": asked.plan_sha256,
        "expires_ts": asked.expires_at.rfc3339_ms() if asked.expires_at else None,
        "envelope": dsse.to_json(envelope),
    }
    append(connection, now=now, kind="rollback_approved", body=body, place=run.place, run_id=run.id)
    title = f"{run.place}: rollback approved by {key.name}"
    _tell(connection, asked, title, now, state="approved", what="approved", severity="info", action="resolve")


def _refuse_unless_waiting(connection: Connection, asked: ApprovalRequest) -> None:
    run = asked.run
    if run.state in TERMINAL or records.cancel_requested(connection, run.id):
        how = run.state.value if run.state in TERMINAL else "being cancelled"
        raise ConflictError(
            "run_ended",
            f"{run.id} is {how}; an approval changes nothing any more",
            f"ask again: rearguard rollback run {run.place.service} --env {run.place.env} --execute",
        )
    if asked.approval == "":
        raise ConflictError("approval_not_needed", f"{run.id} needs no approval", f"rearguard runs show {run.id}")
    if asked.approval == GIVEN:
        raise ConflictError(
            "approval_given", f"{run.id} was approved by {asked.approved_by}", f"rearguard runs show {run.id}"
        )


def _usable_key(connection: Connection, public: str, name: str | None, key_file: Path) -> keys.Key:
    key = keys.find_by_public_key(connection, public)
    if key is None or key.revoked_at is not None or (name is not None and key.name != name):
        if key is None:
            what = "is not enrolled"
        elif key.revoked_at is not None:
            what = f"of {key.name} was revoked {key.revoked_at.rfc3339()}"
        else:
            what = f"is enrolled as {key.name}, not as {name}"
        raise RefusedError(
            "key_unknown",
            f"the key in {key_file} ({signatures.fingerprint(public)[:19]}) {what}",
            "see `rearguard key list`; `rearguard key enroll NAME PUBLIC_KEY_FILE`",
        )
    return key


def _refuse_changed_plan(office: Office, connection: Connection, run: Run, asked_sha256: str, now: Instant) -> None:
    plan = plan_of(connection, run, office.settings, office.playbook, now)
    if plan.sha256() == asked_sha256:
        return
    text = connection.execute(sql("SELECT plan FROM runs WHERE id = :id"), {"id": run.id}).scalar_one()
    before, after = json.loads(text), json.loads(plan.text())
    changed = ", ".join(name for name in after if before.get(name) != after[name])
    raise RefusedError(
        PLAN_CHANGED,
        f"{run.id} would now do something else than it asked for ({changed or 'plan'})",
        f"rearguard runs cancel {run.id}, then ask again: rearguard rollback run {run.place.service} "
        f"--env {run.place.env} --execute",
    )


def expire(office: Office) -> tuple[str, ...]:
    """Refuse every waiting run whose time to be approved is over; returns their ids. For the housekeeping."""
    now = office.clock.now()
    with office.database.reading() as connection:
        rows = _waiting(connection)
    due = [row.id for row in rows if is_expired(decode_instant(row.approval_expires_at), now)]
    ended = []
    for run_id in due:
        with office.database.transaction() as connection:
            if run_id not in {row.id for row in _waiting(connection)}:
                continue  # approved or cancelled in between
            asked = _read(connection, run_id)
            message = f"nobody approved it until {asked.expires_at.rfc3339() if asked.expires_at else ''}"
            _refuse(office, connection, asked.run, APPROVAL_EXPIRED, message)
            why = f"{message}; nothing was done, {asked.from_version} still serves"
            withdraw(connection, run_id, now, why, "expired")
            ended.append(run_id)
    return tuple(ended)


def withdraw(
    connection: Connection, run_id: str, now: Instant, why: str = "the rollback was cancelled", state: str = "cancelled"
) -> None:
    """Take the page back that asked for an approval which nobody needs any more; nothing when none was asked for.

    `state` is the message's: `cancelled` by a person, `expired`, or `withdrawn` with what it was asked for.
    """
    row = connection.execute(sql("SELECT approval FROM runs WHERE id = :id"), {"id": run_id}).first()
    if row is None or row.approval != NEEDED:
        return
    asked = _read(connection, run_id)
    title = f"{asked.run.place}: approval request {state}: {why}"
    _tell(connection, asked, title, now, state=state, what="approval_withdrawn", severity="info", action="resolve")


def is_waiting(connection: Connection, run_id: str) -> bool:
    """True while a run may not be handed to the engine."""
    return run_id in {row.id for row in _waiting(connection)}


def _waiting(connection: Connection) -> list[Any]:
    rows = connection.execute(
        sql(
            "SELECT id, approval_expires_at FROM runs WHERE state = 'requested' AND approval = 'needed' "
            "AND cancel_requested = 0 ORDER BY rowid"
        )
    )
    return list(rows)


def _refuse(office: Office, connection: Connection, run: Run, reason: str, message: str) -> None:
    """End a run that no engine has, with the records that its last two steps would write."""
    assert run.state is RunState.REQUESTED
    context = office.recovery_context()
    failure = {"step": "lock", "state": RunState.REFUSED.value, "reason": reason, "message": message}
    ended = records.finish(context, connection, run, {"failure": failure})
    records.close(context, connection, run, ended)


def _read(connection: Connection, run_id: str) -> ApprovalRequest:
    run = read_run(connection, run_id)
    row = connection.execute(
        sql(
            "SELECT r.approval, r.plan, r.approval_expires_at, a.key_name FROM runs r "
            "LEFT JOIN approvals a ON a.run_id = r.id WHERE r.id = :id"
        ),
        {"id": run_id},
    ).one()
    candidates = json.loads(row.plan)["candidates"] if row.plan else []
    trigger = None
    if run.incident_id is not None:
        trigger = connection.execute(
            sql("SELECT trigger_name FROM incidents WHERE n = :n"), {"n": int(run.incident_id[2:])}
        ).scalar()
    return ApprovalRequest(
        run=run,
        approval=row.approval,
        approved_by=row.key_name or "",
        why=Trigger(trigger).label if trigger else "requested by hand",
        from_version=version_of(connection, run.from_digest) or run.from_digest or "unknown",
        to_versions=tuple(version_of(connection, digest) or digest for digest in candidates),
        plan_sha256=plan_sha256(row.plan) if row.plan else "",
        expires_at=decode_instant(row.approval_expires_at) if row.approval_expires_at else None,
    )


def _tell(
    connection: Connection,
    asked: ApprovalRequest,
    title: str,
    now: Instant,
    *,
    state: str,
    what: str,
    severity: str,
    action: str,
) -> None:
    run = asked.run
    command = f"rearguard approve {run.id} --key FILE" if action == "open" else f"rearguard runs show {run.id}"
    fields = {
        "incident": run.incident_id or "",
        "service": run.place.service,
        "env": run.place.env,
        "from": asked.from_version,
        "to": asked.to_versions[0],
        "why": asked.why,
        "state": state,
        "reason": "",
        "run_id": run.id,
        "next": command,
    }
    outbox.post(
        connection,
        Message(
            key=f"{run.id}:{what}",
            title=title,
            fields=fields,
            cause=f"approval:{run.id}",
            severity=severity,
            action=action,
        ),
        now,
    )
