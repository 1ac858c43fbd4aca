"""One glance: what stands at each place."""

from __future__ import annotations

from dataclasses import dataclass

from rearguard.checkpoints import registry
from rearguard.database import officer_alive, sql
from rearguard.model.service import Place
from rearguard.model.time import NS_PER_S, elapsed
from rearguard.officer import automation, deployments, incidents
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.recovery import effects
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
            open_run = connection.execute(
                sql("SELECT open_run_id FROM places WHERE service = :s AND env = :e"),
                {"s": place.service, "e": place.env},
            ).scalar()
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
                open_run=open_run,
            )
        )
    return Overview(officer_alive=officer_alive(office.state), places=tuple(found))
