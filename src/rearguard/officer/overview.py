"""One glance: what stands at each place."""

from __future__ import annotations

from dataclasses import dataclass

from rearguard.checkpoints import registry
from rearguard.database import Connection, officer_alive, sql
from rearguard.engine.durable import step_history
from rearguard.model.run import Run
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, elapsed
from rearguard.officer import automation, deployments, incidents
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.progress import current_step
from rearguard.recovery import effects
from rearguard.recovery.context import run_from_row, version_of
from rearguard.rules.selection import select


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOverview:
    """What stands at one place, as the database knows it; the target is not asked."""

    place: Place
    armed: bool
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All places."""

    officer_alive: bool
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
            selection = select(
                checkpoints=registry.list_all(connection, place.service),
                active=active.digest if active else None,
                quarantined=registry.quarantined(connection, place),
                served=effects.served_digests(connection, place),
                wanted=None,
                policy=office.settings.checkpoints,
                now=now,
            )
            armed = automation.is_armed(connection, place)
            incident = incidents.open_at(connection, place)
            run = _open_run(connection, place)
            from_version = _label(connection, run.from_digest) if run else None
            to_version = _label(connection, run.to_digest) if run else None
        best = selection.candidates[0].checkpoint if selection.candidates else None
        verified_at = best.verified_at if best else None
        found.append(
            PlaceOverview(
                place=place,
                armed=armed,
                version=(active.version or active.digest[7:19]) if active else None,
                rollback_target=best.version if best else None,
                rollback_target_age_s=elapsed(verified_at, now).ns // NS_PER_S if verified_at else None,
                open_incident=incident.id if incident else None,
                open_run=run.id if run else None,
                from_version=from_version,
                to_version=to_version,
                step=current_step(step_history(office.database, run.id)) if run else None,
                running_s=elapsed(run.requested_at, now).ns // NS_PER_S if run else None,
            )
        )
    return Overview(officer_alive=officer_alive(office.state), places=tuple(found))


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
