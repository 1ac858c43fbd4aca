"""One glance: what stands at each place."""

from __future__ import annotations

from dataclasses import dataclass

from rearguard.database import Connection, officer_presence, sql
from rearguard.engine.durable import step_history
from rearguard.model.run import Run
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer import automation, deployments, heartbeat, incidents, settings_in_force
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.progress import current_step
from rearguard.officer.standing import Stands, standings
from rearguard.recovery.candidates import candidates
from rearguard.recovery.context import run_from_row, version_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOverview:
    """What stands at one place, as the database knows it; the target is not asked."""

    place: Place
    armed: bool
    paused: bool
    """The kill switch is on, here or wider (R30)."""
    frozen: bool
    """Inside a freeze window that holds rollbacks."""
    version: str | None
    rollback_target: str | None
    rollback_target_age_s: int | None
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
    stands: Stands | None
    """Whether somebody is at work on the open run, and the command that goes on when nobody is."""


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
        best = selection.candidates[0].checkpoint if selection.candidates else None
        verified_at = best.verified_at if best else None
        found.append(
            PlaceOverview(
                place=place,
                armed=brakes.armed,
                paused=bool(brakes.paused),
                frozen=brakes.frozen is not None,
                version=(active.version or active.digest[7:19]) if active else None,
                rollback_target=best.version if best else None,
                rollback_target_age_s=elapsed(verified_at, now).ns // NS_PER_S if verified_at else None,
                open_incident=incident.id if incident else None,
                open_run=run.id if run else None,
                from_version=from_version,
                to_version=to_version,
                step=current_step(step_history(office.database, run.id)) if run else None,
                running_s=elapsed(run.requested_at, now).ns // NS_PER_S if run else None,
                stands=standings(office, (run,))[run.id] if run else None,
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


def _label(connection: Connection, digest: Digest | None) -> str | None:
    return version_of(connection, digest) or (digest[7:19] if digest else None)
