"""What a place could be rolled back to now: the rule of selection, asked with what the database knows.

The run, its plan, its approval, the gate, the status and the metrics all mean the same by "rollback target"; they do
because all of them ask here.
"""

from __future__ import annotations

from rearguard.checkpoints import registry
from rearguard.database import Connection, sql
from rearguard.model.checkpoint import CheckpointPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.rules.selection import Selection, select


def candidates(
    connection: Connection,
    place: Place,
    *,
    active: Digest | None,
    policy: CheckpointPolicy,
    now: Instant,
    wanted: Digest | None = None,
) -> Selection:
    """The checkpoints that may replace `active`, best first, and why the others may not (R10, R28)."""
    return select(
        checkpoints=registry.list_all(connection, place.service),
        active=active,
        quarantined=registry.quarantined(connection, place),
        served=_served(connection, place),
        wanted=wanted,
        policy=policy,
        now=now,
    )


def _served(connection: Connection, place: Place) -> tuple[Digest, ...]:
    """Digests whose newest deployment at a place served and was not rolled back, oldest first."""
    rows = connection.execute(
        sql(
            "SELECT digest FROM deployments WHERE id IN (SELECT MAX(id) FROM deployments WHERE service = :service "
            "AND env = :env AND state IN ('active', 'ended', 'rolled_back') GROUP BY digest) "
            "AND state IN ('active', 'ended') ORDER BY id"
        ),
        {"service": place.service, "env": place.env},
    )
    return tuple(Digest(row.digest) for row in rows)
