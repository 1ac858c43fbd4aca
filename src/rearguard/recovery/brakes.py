"""What the brakes of a place read from the database: asked before a run is begun, and again before it acts (R30).

The rule itself is `rearguard.rules.brakes`. A rollback that a person asks for is held back by nothing here: the person
is the override, and is told which brake would have held automation back.
"""

from __future__ import annotations

from dataclasses import dataclass

from rearguard.checkpoints.registry import decode_instant
from rearguard.database import Connection, sql
from rearguard.model.service import Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.time import Instant
from rearguard.rules import brakes as rule
from rearguard.rules.brakes import Brake, BrakeFacts, Hold

AUTOMATIC = "auto"
"""`requested_by` of a run that no person asked for."""
RUN_EXPIRED = "run_expired"
"""A run waited so long for an officer that what it was asked for may be over; it touched nothing."""
EVERY = "*"
"""In a pause: every service, or every environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The kill switch, thrown."""

    service: str
    """A service, or `*` for every one."""
    env: str
    """An environment, or `*` for every one."""
    by: str
    reason: str
    since: Instant


def is_armed(connection: Connection, place: Place) -> bool:
    """True when a breach at the place starts a rollback; a place that was never armed only observes."""
    found = connection.execute(
        sql("SELECT armed FROM places WHERE service = :service AND env = :env"),
        {"service": place.service, "env": place.env},
    ).scalar()
    return bool(found)


def pauses_at(connection: Connection, place: Place) -> tuple[Pause, ...]:
    """The pauses that cover a place, the widest first; one is enough to hold it."""
    return tuple(
        p for p in all_pauses(connection) if p.service in (place.service, EVERY) and p.env in (place.env, EVERY)
    )


def all_pauses(connection: Connection) -> tuple[Pause, ...]:
    """The pauses in force, the widest first."""
    rows = connection.execute(sql("SELECT * FROM pauses ORDER BY service != '*', env != '*', service, env"))
    return tuple(
        Pause(service=r.service, env=r.env, by=r.paused_by, reason=r.reason, since=decode_instant(r.since))
        for r in rows
    )


def read_facts(connection: Connection, place: Place, now: Instant, *, retry_of: str | None = None) -> BrakeFacts:
    """What the rule must know of a place.

    A refused run touched nothing and does not count, except against another attempt at the same incident (`retry_of`):
    what was refused once is not asked again at every look. One that expired before it began is no such attempt: nobody
    was there to make it. A run that is still open does not count either: it holds the place by itself.
    """
    rows = connection.execute(
        sql(
            "SELECT requested_at, ended_at FROM runs WHERE service = :service AND env = :env AND requested_by = :auto "
            "AND (state IN ('succeeded', 'failed', 'inconclusive') "
            "OR (state = 'refused' AND incident_id = :incident AND reason != :expired))"
        ),
        {
            "service": place.service,
            "env": place.env,
            "auto": AUTOMATIC,
            "incident": retry_of,
            "expired": RUN_EXPIRED,
        },
    )
    return BrakeFacts(
        armed=is_armed(connection, place),
        paused=bool(pauses_at(connection, place)),
        # A run that ended under a release which did not note its end is dated by its request.
        ended_at=tuple(decode_instant(row.ended_at or row.requested_at) for row in rows),
        now=now,
    )


def hold_on(
    settings: PlaceSettings, connection: Connection, now: Instant, *, retry_of: str | None = None
) -> Hold | None:
    """What would hold an automatic rollback of the place back now, and until when."""
    return rule.hold(settings.brakes, read_facts(connection, settings.place, now, retry_of=retry_of))


def held_back(settings: PlaceSettings, connection: Connection, now: Instant, *, requested_by: str) -> Brake | None:
    """The brake that forbids a run of this place to act now, or None. None always for a run that a person asked for."""
    if requested_by != AUTOMATIC:
        return None
    return rule.brake(settings.brakes, read_facts(connection, settings.place, now))
