"""The gate: one question before a deployment, asked by whoever deploys (R112). Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rearguard.checkpoints import registry
from rearguard.database import Connection, officer_presence, sql
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.outcome import Outcome, combine
from rearguard.model.service import Digest, Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import Instant, elapsed
from rearguard.officer import (
    automation,
    checkpoints,
    deployments,
    incidents,
    keys,
    remedies,
    settings_in_force,
    storage,
)
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.recovery import brakes
from rearguard.recovery.candidates import candidates
from rearguard.rules.brakes import Held, frozen_window, thaw_wall_ns
from rearguard.rules.gate import GateCheck, GateFacts, StorageWarning, Wanted, judge
from rearguard.rules.selection import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class GateAnswer:
    """The gate's word on one place."""

    place: Place
    deploy: str | None
    """Version that was asked about; None: the place as it stands."""
    outcome: Outcome
    """PASS: go on. Everything else: do not."""
    checks: tuple[GateCheck, ...]


@operation(Effect.READ)
def gate(office: Office, *, service: str, env: str | None, deploy: str | None = None) -> GateAnswer:
    """May `deploy` (a version) be put in front of the place's traffic now; without one: is the place ready for any?

    Answers from what is recorded: neither the target nor telemetry is asked. Raises `NotFoundError` (`service_unknown`,
    `env_unknown`, `env_ambiguous`, `checkpoint_unknown`).
    """
    place = office.place(service, env).place
    wanted = checkpoints.find(office, service=service, version=deploy) if deploy else None
    now = office.clock.now()
    with office.database.reading() as connection:
        facts = _facts(office, connection, place, wanted, now)
    checks = judge(facts)
    return GateAnswer(
        place=place,
        deploy=wanted.version if wanted else None,
        outcome=combine(check.outcome for check in checks),
        checks=checks,
    )


def _facts(office: Office, connection: Connection, place: Place, wanted: Checkpoint | None, now: Instant) -> GateFacts:
    settings = office.place(place.service, place.env)
    active = deployments.newest(connection, place)
    quarantined = registry.quarantined(connection, place)
    incident = incidents.open_at(connection, place)
    window = frozen_window(settings.brakes, now, what=Held.DEPLOYMENTS)
    thaw_ns = thaw_wall_ns(settings.brakes, now, what=Held.DEPLOYMENTS)
    officer = officer_presence(office.state, now)
    # Once it is deployed, what is active now is among those that served: it becomes the way back.
    after = candidates(
        connection,
        place,
        active=wanted.digest if wanted else (active.digest if active else None),
        policy=office.settings.checkpoints,
        now=now,
    )
    return GateFacts(
        place=place,
        open_run=_open_run(connection, place),
        open_incident=incident.id if incident else None,
        frozen_until=now.plus(thaw_ns - now.wall_ns) if window and thaw_ns is not None else None,
        frozen_reason=window.reason if window else None,
        hold=brakes.hold_on(settings, connection, now),
        officer_held=officer.held,
        officer_hung=officer.hung,
        settings_changed=settings_in_force.changed(office, now),
        approval_required=settings.approval.required,
        approvers=len(keys.approvers(connection)),
        resume=tuple(automation.resume_command(pause) for pause in brakes.pauses_at(connection, place)),
        observed=_was_observed(connection, place),
        silent_since=_silent_since(connection, place),
        serves=active is not None,
        after=after,
        remedy="" if after.candidates else remedies.of_place(office, connection, place, after.rejected),
        storage=_storage(office, connection, settings, after),
        wanted=replace(
            _wanted(wanted, active.digest if active else None, quarantined, now),
            repair=remedies.repair_command(office, connection, wanted),
        )
        if wanted
        else None,
    )


def _storage(
    office: Office, connection: Connection, settings: PlaceSettings, after: Selection
) -> StorageWarning | None:
    if not after.candidates:
        return None
    best = after.candidates[0].checkpoint
    found = storage.standing(office, connection, settings, best)
    return StorageWarning(code=found.code, message=storage.words(found, best.version), hint=storage.HINT)


def _wanted(checkpoint: Checkpoint, active: Digest | None, quarantined: frozenset[Digest], now: Instant) -> Wanted:
    verified_at = checkpoint.verified_at
    return Wanted(
        version=checkpoint.version,
        is_active=checkpoint.digest == active,
        is_quarantined=checkpoint.digest in quarantined,
        failure=checkpoint.failure,
        proof_age_ns=elapsed(verified_at, now).ns if verified_at else None,
    )


def _open_run(connection: Connection, place: Place) -> str | None:
    keys = {"service": place.service, "env": place.env}
    found = connection.execute(
        sql("SELECT open_run_id FROM places WHERE service = :service AND env = :env"), keys
    ).scalar()
    if not found:  # also one that waits, for an officer or for an approval
        found = connection.execute(
            sql(
                "SELECT id FROM runs WHERE service = :service AND env = :env AND state IN ('requested', 'running') "
                "ORDER BY rowid DESC LIMIT 1"
            ),
            keys,
        ).scalar()
    return str(found) if found else None


def _was_observed(connection: Connection, place: Place) -> bool:
    """True when requests of the place were counted, or telemetry led to a record."""
    found = connection.execute(
        sql(
            "SELECT 1 FROM counts WHERE service = :service AND env = :env AND requests > 0 UNION ALL SELECT 1 FROM evidence "
            "WHERE service = :service AND env = :env AND kind IN ('incident_opened', 'telemetry_back') LIMIT 1"
        ),
        {"service": place.service, "env": place.env},
    ).first()
    return found is not None


def _silent_since(connection: Connection, place: Place) -> str | None:
    row = connection.execute(
        sql(
            "SELECT kind, json_extract(body, '$.since_ts') AS since FROM evidence WHERE service = :service AND env = :env "
            "AND kind IN ('telemetry_silent', 'telemetry_back') ORDER BY id DESC LIMIT 1"
        ),
        {"service": place.service, "env": place.env},
    ).first()
    return str(row.since) if row is not None and row.kind == "telemetry_silent" else None
