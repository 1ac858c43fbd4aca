"""One glance: what stands at each place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints import standbys
from rearguard.checkpoints.registry import decode_instant
from rearguard.database import Connection, officer_presence, sql
from rearguard.engine.durable import step_history
from rearguard.model.run import Run
from rearguard.model.service import Digest, Place
from rearguard.model.standby import WarmStandby
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant, elapsed
from rearguard.officer import automation, deployments, heartbeat, incidents, settings_in_force
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.progress import current_step
from rearguard.officer.standing import Stands, standings
from rearguard.recovery.candidates import candidates
from rearguard.recovery.context import run_from_row, version_of

LAST_S = 86_400
"""A rollback that ended within so many seconds is still shown. Chosen: since yesterday at this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRollback:
    """The newest run of a place that ended lately."""

    run_id: str
    from_version: str | None
    to_version: str | None
    """None when it ended before one was proven."""
    state: str
    reason: str
    ended_s: int
    """Seconds since its end."""
    rto_achieved_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOverview:
    """What stands at one place, as the database knows it; the target is not asked."""

    place: Place
    armed: bool
    paused: bool
    """The kill switch is on, here or wider (R30)."""
    frozen: bool
    """Inside a freeze window that holds rollbacks."""
    held_by: str | None
    """Code of the brake on the next automatic rollback, that of the open incident if there is one."""
    held_until: Instant | None
    """When it lets go; None when only a person can release it."""
    version: str | None
    rollback_target: str | None
    rollback_target_age_s: int | None
    standby: WarmStandby | None
    """What the officer last knew of the warm standby; None when nobody looked yet, or the settings want none."""
    open_incident: str | None
    open_run: str | None
    """A run that holds the place, or waits for an officer."""
    from_version: str | None
    """What the open run takes out of traffic; a short digest when it has no label."""
    to_version: str | None
    """What the open run puts in its place; None until it is chosen and proven."""
    step: str | None
    """The step of the open run that is under way; None before its first."""
    running_s: int | None
    """Seconds since the open run was asked for."""
    step_s: int | None
    """Seconds since its step began; None before its first."""
    stands: Stands | None
    """Whether somebody is at work on the open run, and the command that goes on when nobody is."""
    last_rollback: LastRollback | None
    """None when none ended within a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficerStanding:
    """Who is in office, and whether it does its duty."""

    state: str
    """`alive`, `hung` (holds the office, and has shown no progress for longer than the lease) or `not_running`."""
    pid: int | None
    idle_s: int | None
    """Seconds since it last showed progress."""
    heartbeat_age_s: int | None
    """Seconds since the sign of life was last taken somewhere else, by whichever officer; None: never, or not declared."""
    settings_changed: bool
    """True: the settings or the playbook were edited after it started, and it works with the old ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All places."""

    officer_alive: bool
    """True when an officer is in office and not hung."""
    officer: OfficerStanding
    places: tuple[PlaceOverview, ...]


@operation(Effect.READ)
def overview(office: Office) -> Overview:
    """What is served, armed and open everywhere."""
    now = office.clock.now()
    found = []
    for settings in office.settings.places:
        place = settings.place
        with office.database.reading() as connection:
            active = deployments.newest(connection, place)
            selection = candidates(
                connection,
                place,
                active=active.digest if active else None,
                policy=office.settings.checkpoints,
                now=now,
            )
            brakes = automation.at_place(settings, connection, now)
            incident = incidents.open_at(connection, place)
            run = _open_run(connection, place)
            from_version = _label(connection, run.from_digest) if run else None
            to_version = _label(connection, run.to_digest) if run else None
            last = _last_rollback(connection, place, now)
            standby = standbys.get(connection, place) if settings.standby else None
        notes = step_history(office.database, run.id) if run else ()
        step = current_step(notes)
        best = selection.candidates[0].checkpoint if selection.candidates else None
        verified_at = best.verified_at if best else None
        found.append(
            PlaceOverview(
                place=place,
                armed=brakes.armed,
                paused=bool(brakes.paused),
                frozen=brakes.frozen is not None,
                held_by=brakes.held_by,
                held_until=brakes.until,
                version=(active.version or active.digest[7:19]) if active else None,
                rollback_target=best.version if best else None,
                rollback_target_age_s=elapsed(verified_at, now).ns // NS_PER_S if verified_at else None,
                standby=standby,
                open_incident=incident.id if incident else None,
                open_run=run.id if run else None,
                from_version=from_version,
                to_version=to_version,
                step=step,
                running_s=elapsed(run.requested_at, now).ns // NS_PER_S if run else None,
                step_s=_step_s(office, run.id, step, notes, now) if run and step else None,
                stands=standings(office, (run,))[run.id] if run else None,
                last_rollback=last,
            )
        )
    officer = officer_standing(office, now)
    return Overview(officer_alive=officer.state == "alive", officer=officer, places=tuple(found))


def officer_standing(office: Office, now: Instant) -> OfficerStanding:
    """Who is in office now."""
    presence = officer_presence(office.state, now)
    with office.database.reading() as connection:
        sent = heartbeat.last_sent(connection) if office.settings.heartbeat else None
    return OfficerStanding(
        state="hung" if presence.hung else "alive" if presence.held else "not_running",
        pid=presence.pid,
        idle_s=int(presence.idle_s) if presence.idle_s is not None else None,
        heartbeat_age_s=max(0, elapsed(sent, now).ns // NS_PER_S) if sent else None,
        settings_changed=settings_in_force.changed(office, now),
    )


def _open_run(connection: Connection, place: Place) -> Run | None:
    """The run that holds the place; else the newest that was asked for and has not ended."""
    row = connection.execute(
        sql(
            "SELECT runs.* FROM runs LEFT JOIN places ON places.open_run_id = runs.id "
            "WHERE runs.service = :s AND runs.env = :e "
            "AND (places.open_run_id IS NOT NULL OR runs.state IN ('requested', 'running')) "
            "ORDER BY places.open_run_id IS NULL, runs.rowid DESC LIMIT 1"
        ),
        {"s": place.service, "e": place.env},
    ).first()
    return run_from_row(row._mapping) if row else None


def _step_s(office: Office, run_id: str, step: str, notes: tuple[dict[str, Any], ...], now: Instant) -> int | None:
    """Since the step's first attempt; of a step that stays inside, since the note before it."""
    with office.database.reading() as connection:
        first_at = connection.execute(
            sql("SELECT first_at FROM attempts WHERE run_id = :run AND step = :step"), {"run": run_id, "step": step}
        ).scalar()
    if first_at:
        return max(0, elapsed(decode_instant(first_at), now).ns // NS_PER_S)
    ended_ms = next((n["completed_at_epoch_ms"] for n in reversed(notes) if n["completed_at_epoch_ms"]), None)
    return None if ended_ms is None else max(0, (now.wall_ns - ended_ms * NS_PER_MS) // NS_PER_S)


def _last_rollback(connection: Connection, place: Place, now: Instant) -> LastRollback | None:
    row = connection.execute(
        sql(
            "SELECT runs.*, json_extract(evidence.body, '$.rto_achieved_ms') AS rto_ms FROM runs LEFT JOIN evidence "
            "ON evidence.run_id = runs.id AND evidence.kind = 'rollback_finished' WHERE runs.service = :s "
            "AND runs.env = :e AND runs.ended_at IS NOT NULL ORDER BY runs.rowid DESC LIMIT 1"
        ),
        {"s": place.service, "e": place.env},
    ).first()
    if row is None:
        return None
    run = run_from_row(row._mapping)
    ended_s = max(0, elapsed(decode_instant(row.ended_at), now).ns // NS_PER_S)
    if ended_s > LAST_S:
        return None
    return LastRollback(
        run_id=run.id,
        from_version=_label(connection, run.from_digest),
        to_version=_label(connection, run.to_digest),
        state=run.state.value,
        reason=run.reason,
        ended_s=ended_s,
        rto_achieved_ms=row.rto_ms,
    )


def _label(connection: Connection, digest: Digest | None) -> str | None:
    return version_of(connection, digest) or (digest[7:19] if digest else None)
