"""Arming and disarming: whether a breach at a place is acted on, or only recorded."""

from __future__ import annotations

from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.model.service import Place
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation


@operation(Effect.COMMIT)
def set_armed(office: Office, place: Place, *, armed: bool, by: str) -> bool:
    """Switch automation at a place; returns False when it stood that way already (nothing is then recorded).

    Disarming also asks an automatic run that is under way to end before traffic moves.
    """
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
        if not armed:
            # Honoured until traffic moves; a service that was switched and is not yet proven is never abandoned.
            connection.execute(
                sql(
                    "UPDATE runs SET cancel_requested = 1 WHERE service = :service AND env = :env "
                    "AND requested_by = 'auto' AND state IN ('requested', 'running')"
                ),
                {"service": place.service, "env": place.env},
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
