"""The approval of a run: what it is bound to, and whether the stored one still holds.

A plan says what a run would do; the approval is a signature over the plan's digest, the run, the approver and an expiry
(ADR 0006). Nothing is taken from the moment at which it was given: signature, binding and expiry are checked again
right before the run locks its place and right before traffic moves.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from rearguard.checkpoints.registry import decode_instant
from rearguard.database import Connection, sql
from rearguard.evidence import signatures
from rearguard.model.run import Run
from rearguard.model.service import Digest
from rearguard.model.settings import Playbook, Settings
from rearguard.model.time import Instant, elapsed, parse_rfc3339
from rearguard.recovery.candidates import candidates
from rearguard.recovery.context import RecoveryContext
from rearguard.rules import dsse
from rearguard.rules.chain import canonical_bytes
from rearguard.rules.selection import Selection

PAYLOAD_TYPE = "application/vnd.rearguard.approval+json"

APPROVAL_MISSING = "approval_missing"
APPROVAL_INVALID = "approval_invalid"
"""Signature, key, run or approver is not what was enrolled and asked for."""
APPROVAL_EXPIRED = "approval_expired"
PLAN_CHANGED = "plan_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an approval is bound to."""

    run_id: str
    service: str
    env: str
    from_digest: str | None
    candidates: tuple[str, ...]
    """Digests in the order in which they would be tried."""
    playbook_sha256: str
    settings_sha256: str

    def text(self) -> str:
        """Canonical JSON."""
        return canonical_bytes(
            {
                "run_id": self.run_id,
                "service": self.service,
                "env": self.env,
                "from_digest": self.from_digest,
                "candidates": list(self.candidates),
                "playbook_sha256": self.playbook_sha256,
                "settings_sha256": self.settings_sha256,
            }
        ).decode("utf-8")

    def sha256(self) -> str:
        """64 hex digits of the canonical JSON."""
        return plan_sha256(self.text())


def plan_sha256(text: str) -> str:
    """64 hex digits of a plan's canonical JSON."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def select_for(connection: Connection, run: Run, settings: Settings, now: Instant) -> Selection:
    """The candidates of a run, as its own step `select` would choose them now."""
    wanted = connection.execute(sql("SELECT wanted_digest FROM runs WHERE id = :id"), {"id": run.id}).scalar()
    return candidates(
        connection,
        run.place,
        active=run.from_digest,
        policy=settings.checkpoints,
        now=now,
        wanted=Digest(wanted) if wanted else None,
    )


def plan_of(connection: Connection, run: Run, settings: Settings, playbook: Playbook, now: Instant) -> Plan:
    """What the run would do if it began now."""
    selection = select_for(connection, run, settings, now)
    return Plan(
        run_id=run.id,
        service=run.place.service,
        env=run.place.env,
        from_digest=run.from_digest,
        candidates=tuple(c.checkpoint.digest for c in selection.candidates),
        playbook_sha256=playbook.sha256,
        settings_sha256=settings.sha256,
    )


def payload(run: Run, *, plan_sha256: str, approver: str, expires_at: Instant) -> bytes:
    """The bytes inside an approval's envelope."""
    return canonical_bytes(
        {
            "run_id": run.id,
            "plan_sha256": plan_sha256,
            "approver": approver,
            "expires_at": expires_at.rfc3339_ms(),
        }
    )


def is_expired(expires_at: Instant, now: Instant) -> bool:
    """True when either clock says so: a wall clock that was set back buys no time, one that was set forward costs it."""
    return elapsed(expires_at, now).ns > 0 or now.wall_ns > parse_rfc3339(expires_at.rfc3339_ms())


def same_person(one: str, other: str) -> bool:
    """Names of people, as typed."""
    return one.strip().casefold() == other.strip().casefold()


def not_approved(context: RecoveryContext, connection: Connection, run: Run, to_digest: str | None) -> str:
    """Why a run may not act, or empty when it needs no approval or has one that holds.

    `to_digest`: the checkpoint that traffic is about to move to, None before one is chosen. Codes: `approval_missing`,
    `approval_expired`, `approval_invalid`, `plan_changed`. Once this run has moved traffic neither expiry nor another
    digest of the settings or the playbook stops it, for a ladder is not left half-way; its candidates stay bound.
    """
    row = connection.execute(
        sql("SELECT approval, plan, approval_expires_at FROM runs WHERE id = :id"), {"id": run.id}
    ).one()
    settings = context.settings.find(run.place)
    if row.approval == "":
        # Also of a run that was asked for before the place's settings began to require one.
        return APPROVAL_MISSING if settings is not None and settings.approval.required else ""
    given = connection.execute(
        sql(
            "SELECT a.key_name, a.envelope, k.public_key, k.revoked_at FROM approvals a "
            "LEFT JOIN keys k ON k.name = a.key_name WHERE a.run_id = :id"
        ),
        {"id": run.id},
    ).first()
    if row.approval != "given" or given is None:
        return APPROVAL_MISSING
    if given.public_key is None or given.revoked_at is not None or row.approval_expires_at is None:
        return APPROVAL_INVALID
    expires_at = decode_instant(row.approval_expires_at)
    expected = payload(run, plan_sha256=plan_sha256(row.plan), approver=given.key_name, expires_at=expires_at)
    signed = opened(given.envelope, given.public_key)
    if signed is None or same_person(given.key_name, run.requested_by):
        return APPROVAL_INVALID
    if signed != expected:
        return PLAN_CHANGED if _differs_in_plan_only(signed, expected) else APPROVAL_INVALID
    moved = _moved_traffic(connection, run)
    if is_expired(expires_at, context.clock.now()) and not moved:
        return APPROVAL_EXPIRED
    plan = json.loads(row.plan)
    now = {
        "run_id": run.id,
        "service": run.place.service,
        "env": run.place.env,
        "from_digest": run.from_digest,
    }
    if not moved:
        now |= {"playbook_sha256": context.playbook.sha256, "settings_sha256": context.settings.sha256}
    if {name: plan.get(name) for name in now} != now:
        return PLAN_CHANGED
    if to_digest is not None and to_digest not in plan["candidates"]:
        return PLAN_CHANGED
    return ""


def opened(envelope: str, public_key: str) -> bytes | None:
    """The payload of an approval's envelope; None unless this key signed it, and nothing of it was altered."""
    try:
        found = dsse.decode(envelope)
    except dsse.MalformedEnvelopeError:
        return None
    if found.payload_type != PAYLOAD_TYPE or found.key_id != signatures.fingerprint(public_key):
        return None
    message = dsse.pre_authentication_encoding(found.payload_type, found.payload)
    return found.payload if signatures.is_signed(public_key, found.signature, message) else None


def _differs_in_plan_only(signed: bytes, expected: bytes) -> bool:
    before, after = json.loads(signed), json.loads(expected)
    return {**before, "plan_sha256": ""} == {**after, "plan_sha256": ""}


def _moved_traffic(connection: Connection, run: Run) -> bool:
    found = connection.execute(
        sql("SELECT 1 FROM evidence WHERE run_id = :id AND kind = 'traffic_switched' LIMIT 1"), {"id": run.id}
    ).first()
    return found is not None
