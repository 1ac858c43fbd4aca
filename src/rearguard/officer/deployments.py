"""Operations on deployments."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from typing import Any

from rearguard.checkpoints import registry
from rearguard.database import Connection, sql
from rearguard.errors import ConflictError, DependencyError, RearguardError, RefusedError
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.model.deployment import Deployment
from rearguard.model.service import Digest, Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import NS_PER_S, Instant, elapsed, parse_rfc3339, rfc3339
from rearguard.officer import checkpoints, refusals
from rearguard.officer.deployment_end import (
    PROBE_DEADLINE_S,
    conclude,
    conclude_orphans,
    end_others,
    open_run,
    refuse_open,
    sign_of_life,
)
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.ports import Message
from rearguard.recovery import effects, proof
from rearguard.recovery.context import Deadline, keep_trying, raise_epoch
from rearguard.rules.brakes import Held, frozen_window, thaw_wall_ns
from rearguard.watch.counts import baseline as median_of_gauge
from rearguard.watch.feed import Feed

MAX_VERIFY_AGE_S = 900
"""A proof older than this is renewed before a rollout (R14: 15 min)."""
STRAGGLERS_S = 5
"""After a switch the digest before it may still be seen answering for so long: requests in flight, lines read late.
Chosen: the model server drains for 3 s."""


class Answering(Enum):
    """What it means that a digest was seen answering."""

    ANNOUNCED = "announced"
    UNREGISTERED = "unregistered"
    STRAGGLER = "straggler"
    """Of a digest that was switched away from just now: says nothing yet; look again."""


@operation(Effect.COMMIT)
def deploy(office: Office, *, service: str, env: str | None, version: str, by: str) -> Deployment:
    """Put a checkpoint in front of a place's traffic, through the same target that a rollback uses.

    Proves the checkpoint if the last proof is older than 15 min, freezes the compliance baseline (R20), raises the
    epoch, orders the target, and waits until the golden predictions are answered by it (without a golden set: until the
    target says that it serves the digest).
    Raises `RefusedError` (`quarantined`, `rollback_open`, `freeze_window`, `unsafe_format`, `format_answers_nothing`), `ConflictError`
    (`deployment_open`: another deploy is at work; `deployment_overtaken`), `IntegrityError` (the proof),
    `DependencyError` (the target).
    """
    settings = office.place(service, env)
    place = settings.place
    checkpoint = checkpoints.find(office, service=service, version=version)
    with office.database.reading() as connection:
        _refuse(connection, place, checkpoint.digest, checkpoint.version)
        refuse_open(office.state, connection, place, office.clock.now())
    _refuse_frozen(settings, office.clock.now())
    effects.refuse_unsafe(checkpoint, office.settings.checkpoints)
    refusals.refuse_mute(settings, checkpoint)
    checkpoint = checkpoints.verify_if_older(office, checkpoint, MAX_VERIFY_AGE_S)
    target = office.target_of(place)
    conclude_orphans(office, place)
    context = office.recovery_context()
    recorded = proof.load_golden(context, checkpoint.digest)
    with office.database.reading() as connection:
        first = newest(connection, place)
    active = first.digest if first is not None else None
    baseline = measure_baseline(office.feed_of(place), settings, active, office.clock.now()) if active else None
    now = office.clock.now()
    run_id = office.ids.run_id()
    with sign_of_life(office.state) as begin:
        with office.database.transaction() as connection:
            _refuse(connection, place, checkpoint.digest, checkpoint.version)
            _refuse_frozen(settings, now)
            refuse_open(office.state, connection, place, now)
            epoch = raise_epoch(connection, place)
            deployment_id = _insert(
                connection, place, checkpoint.digest, checkpoint.version, "deploy", "activating", now, baseline
            )
            body = {
                "digest": checkpoint.digest,
                "version": checkpoint.version,
                "epoch": epoch,
                "by": by,
                "compliance_baseline": str(baseline) if baseline is not None else None,
                "before_digest": active,
            }
            append(connection, now=now, kind="deployment_started", body=body, place=place, run_id=run_id)
            begin(deployment_id)
        office.publish()
        try:
            target.activate(effects.activation(context, checkpoint, epoch=epoch, key=f"{run_id}:deploy"))
            deadline = Deadline(office.clock, office.clock.now(), PROBE_DEADLINE_S)
            keep_trying(
                office.clock.sleep,
                deadline,
                lambda: proof.check_every_golden(context, target, recorded, checkpoint.digest, deadline),
            )
        except RearguardError as error:
            conclude(
                office, place, deployment_id, run_id, "failed", {"code": error.code, "message": error.message[:300]}
            )
            raise
        conclude(
            office, place, deployment_id, run_id, "active", {"digest": checkpoint.digest, "version": checkpoint.version}
        )
    return Deployment(
        id=deployment_id,
        place=place,
        digest=checkpoint.digest,
        version=checkpoint.version,
        source="deploy",
        state="active",
        started_at=now,
        compliance_baseline=baseline,
    )


@operation(Effect.COMMIT)
def record(office: Office, *, service: str, env: str | None, version: str, by: str) -> Deployment:
    """Note a rollout that a foreign CD does; freezes the baseline as `deploy` would, and touches no target.

    Raises `RefusedError` `quarantined`: the note is refused so that the CD stops; `rollback_open` and `freeze_window` likewise.
    """
    settings = office.place(service, env)
    place = settings.place
    checkpoint = checkpoints.find(office, service=service, version=version)
    with office.database.reading() as connection:
        before = newest(connection, place)
    now = office.clock.now()
    baseline = measure_baseline(office.feed_of(place), settings, before.digest, now) if before else None
    with office.database.transaction() as connection:
        _refuse(connection, place, checkpoint.digest, checkpoint.version)
        _refuse_frozen(settings, now)
        deployment_id = _insert(
            connection, place, checkpoint.digest, checkpoint.version, "recorded", "active", now, baseline
        )
        end_others(connection, place, deployment_id)
        body = {
            "digest": checkpoint.digest,
            "version": checkpoint.version,
            "by": by,
            "compliance_baseline": str(baseline) if baseline is not None else None,
        }
        append(connection, now=now, kind="deployment_recorded", body=body, place=place, run_id=office.ids.run_id())
    office.publish()
    return Deployment(
        id=deployment_id,
        place=place,
        digest=checkpoint.digest,
        version=checkpoint.version,
        source="recorded",
        state="active",
        started_at=now,
        compliance_baseline=baseline,
    )


def note_answering(
    office: Office, settings: PlaceSettings, digest: Digest, before: Digest | None, seen_at: Instant
) -> Answering:
    """The watcher saw a digest answer: open a deployment marked unregistered unless it was announced.

    What was seen before a switch was concluded, or just after it, is judged by what was true then: it opens nothing.
    """
    place = settings.place
    now = office.clock.now()
    with office.database.reading() as connection:  # asked ten times a second while a straggler answers: no write lock
        found_as = _answering(connection, place, digest, seen_at)
    if found_as is not Answering.UNREGISTERED:
        return found_as
    # Before the transaction: the feed's limits are read over a connection of their own, which would wait for ours.
    baseline = measure_baseline(office.feed_of(place), settings, before, now) if before else None
    with office.database.transaction() as connection:
        found_as = _answering(connection, place, digest, seen_at)
        if found_as is not Answering.UNREGISTERED:
            return found_as
        known = registry.get(connection, digest)
        deployment_id = _insert(
            connection, place, digest, known.version if known else "", "unregistered", "active", now, baseline
        )
        end_others(connection, place, deployment_id)
        body = {
            "digest": digest,
            "version": known.version if known else None,
            "before_digest": before,
            "compliance_baseline": str(baseline) if baseline is not None else None,
        }
        run_id = office.ids.run_id()
        append(connection, now=now, kind="deployment_unregistered", body=body, place=place, run_id=run_id)
        if digest in registry.quarantined(connection, place):
            _page_quarantined(connection, place, digest, known.version if known else "", now, run_id)
    return Answering.UNREGISTERED


def _answering(connection: Connection, place: Place, digest: Digest, seen_at: Instant) -> Answering:
    announced = connection.execute(
        sql(
            "SELECT 1 FROM deployments WHERE service = :service AND env = :env AND digest = :digest "
            "AND state IN ('active', 'activating')"
        ),
        {"service": place.service, "env": place.env, "digest": digest},
    ).first()
    if announced:
        return Answering.ANNOUNCED
    # While a rollback is open nothing is concluded; but it is asked again, so that what still answers afterwards is told.
    if open_run(connection, place) or _is_straggler(connection, place, digest, seen_at):
        return Answering.STRAGGLER
    return Answering.UNREGISTERED


def _page_quarantined(
    connection: Connection, place: Place, digest: Digest, version: str, now: Instant, run_id: str
) -> None:
    """Somebody put back, around us, what was rolled back here; people are told once per appearance, nothing is undone."""
    by = connection.execute(
        sql("SELECT run_id FROM quarantine WHERE service = :service AND env = :env AND digest = :digest"),
        {"service": place.service, "env": place.env, "digest": digest},
    ).scalar_one()
    body = {"digest": digest, "version": version or None, "rolled_back_by": by}
    append(connection, now=now, kind="quarantined_digest_answers", body=body, place=place, run_id=run_id)
    name = version or digest[7:19]
    fields = {
        "incident": "",
        "service": place.service,
        "env": place.env,
        "from": name,
        "to": "",
        "why": "a quarantined version answers, and nobody announced it",
        "state": "observed",
        "reason": "quarantined",
        "run_id": by,
        "next": f"stop what deploys it, then: rearguard rollback run {place.service} --env {place.env} --execute",
    }
    cause = f"quarantine:{place}:{digest}"
    title = f"{place}: {name} answers again, which was rolled back here and is quarantined"
    message = Message(key=f"{cause}:{run_id}", title=title, fields=fields, cause=cause, severity="page")
    outbox.post(connection, message, now)


def _is_straggler(connection: Connection, place: Place, digest: Digest, seen_at: Instant) -> bool:
    known = connection.execute(
        sql(
            "SELECT 1 FROM deployments WHERE service = :service AND env = :env AND digest = :digest "
            "AND state IN ('ended', 'rolled_back')"
        ),
        {"service": place.service, "env": place.env, "digest": digest},
    ).first()
    after_ns = since_switch_ns(connection, place, seen_at)
    # Older than the newest switch: history that a watcher reads at its start. Shortly after it: answers in flight.
    return after_ns is not None and (after_ns < 0 or (known is not None and after_ns < STRAGGLERS_S * NS_PER_S))


def since_switch_ns(connection: Connection, place: Place, at: Instant) -> int | None:
    """Nanoseconds from the newest switch of a place's traffic to an instant, negative before it; None without one."""
    switched = connection.execute(
        sql(
            "SELECT ts, monotonic_ns, boot_id FROM evidence WHERE service = :service AND env = :env AND kind IN "
            "('deployment_active', 'deployment_recorded', 'traffic_switched') ORDER BY id DESC LIMIT 1"
        ),
        {"service": place.service, "env": place.env},
    ).first()
    if switched is None:
        return None
    then = Instant(
        wall_ns=parse_rfc3339(switched.ts), mono_ns=int(switched.monotonic_ns), boot_id=str(switched.boot_id)
    )
    return elapsed(then, at).ns


@operation(Effect.READ)
def list_deployments(office: Office, service: str | None = None) -> tuple[Deployment, ...]:
    """All deployments, oldest first."""
    where = "service = :service" if service else "1 = 1"
    with office.database.reading() as connection:
        rows = connection.execute(sql(f"SELECT * FROM deployments WHERE {where} ORDER BY id"), {"service": service})
        return tuple(_deployment(row._mapping) for row in rows)


def newest(connection: Connection, place: Place) -> Deployment | None:
    """The newest deployment that is or was active at a place."""
    row = connection.execute(
        sql(
            "SELECT * FROM deployments WHERE service = :service AND env = :env AND state = 'active' ORDER BY id DESC LIMIT 1"
        ),
        {"service": place.service, "env": place.env},
    ).first()
    return _deployment(row._mapping) if row else None


def measure_baseline(feed: Feed, settings: PlaceSettings, digest: Digest | None, now: Instant) -> Decimal | None:
    """Median of the compliance gauge over the period before now (R20), or None without enough labelled samples."""
    if digest is None:
        return None
    try:
        feed.catch_up(now)
    except DependencyError:
        return None
    end_s = now.mono_ns // NS_PER_S
    rule = settings.rule
    history = feed.counts.gauge_history(
        digest, rule.window_s, end_s - settings.baseline_s, end_s, min_scores=rule.min_samples
    )
    return median_of_gauge(history)


def _refuse(connection: Connection, place: Place, digest: Digest, version: str) -> None:
    """What forbids a deployment; asked again in the transaction that begins it, for retention may have been at work."""
    if registry.get(connection, digest) is None:
        message = f"{place.service} {version} was retired meanwhile; nothing was deployed"
        raise ConflictError(checkpoints.RETIRED, message, "`rearguard checkpoint list` names what is registered")
    held_by = open_run(connection, place)
    if held_by:
        raise RefusedError(
            "rollback_open",
            f"{place} is being rolled back ({held_by})",
            f"wait for it: rearguard runs show {held_by}",
        )
    if digest in registry.quarantined(connection, place):
        raise RefusedError(
            "quarantined",
            f"{version} was rolled back at {place} and is quarantined",
            f"when it is fit again: rearguard checkpoint release --service {place.service} --version {version} "
            f"--env {place.env} --reason TEXT",
        )


def _refuse_frozen(settings: PlaceSettings, now: Instant) -> None:
    window = frozen_window(settings.brakes, now, what=Held.DEPLOYMENTS)
    if window is None:
        return
    end_ns = thaw_wall_ns(settings.brakes, now, what=Held.DEPLOYMENTS)
    ends = f"it ends {rfc3339(end_ns)}" if end_ns is not None else "it has no end in sight"
    raise RefusedError(
        "freeze_window",
        f"{settings.place} is in a freeze window that holds deployments: {window.reason}",
        f"{ends}; to deploy before, change brakes.freeze of {settings.place} in the settings",
    )


def _insert(
    connection: Connection,
    place: Place,
    digest: Digest,
    version: str,
    source: str,
    state: str,
    at: Instant,
    baseline: Decimal | None,
) -> int:
    row = connection.execute(
        sql(
            "INSERT INTO deployments (service, env, digest, version, source, state, started_at, baseline) "
            "VALUES (:service, :env, :digest, :version, :source, :state, :at, :baseline) RETURNING id"
        ),
        {
            "service": place.service,
            "env": place.env,
            "digest": digest,
            "version": version,
            "source": source,
            "state": state,
            "at": registry.encode_instant(at),
            "baseline": str(baseline) if baseline is not None else None,
        },
    ).one()
    return int(row.id)


def _deployment(row: Any) -> Deployment:
    return Deployment(
        id=row["id"],
        place=Place(service=row["service"], env=row["env"]),
        digest=Digest(row["digest"]),
        version=row["version"],
        source=row["source"],
        state=row["state"],
        started_at=registry.decode_instant(row["started_at"]),
        compliance_baseline=Decimal(row["baseline"]) if row["baseline"] is not None else None,
    )
