"""Arming and disarming: whether a breach at a place is acted on, or only recorded."""

from __future__ import annotations

from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.model.service import Place
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation


@operation(Effect.COMMIT)
def set_armed(office: Office, place: Place, *, armed: bool, by: str) -> bool:
    """Switch automation at a place; returns False when it stood that way already (nothing is then recorded)."""
    with office.database.transaction() as connection:
        if is_armed(connection, place) == armed:
            return False
        connection.execute(
            sql(
                "INSERT INTO places (service, env, armed) VALUES (:service, :env, :armed) "
                "ON CONFLICT (service, env) DO UPDATE SET armed = :armed"
            ),
            {"service": place.service, "env": place.env, "armed": int(armed)},
        )
        kind = "automation_armed" if armed else "automation_disarmed"
        append(connection, now=office.clock.now(), kind=kind, body={"by": by}, place=place, run_id=office.ids.run_id())
    office.publish()
    return True


def is_armed(connection: Connection, place: Place) -> bool:
    """True when a breach at the place starts a rollback; a place that was never armed only observes."""
    found = connection.execute(
        sql("SELECT armed FROM places WHERE service = :service AND env = :env"),
        {"service": place.service, "env": place.env},
    ).scalar()
    return bool(found)


@operation(Effect.READ)
def armed(office: Office, place: Place) -> bool:
    """As `is_armed`, for interfaces."""
    with office.database.reading() as connection:
        return is_armed(connection, place)
