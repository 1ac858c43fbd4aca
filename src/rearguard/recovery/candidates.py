"""What a place could be rolled back to now: the rule of selection, asked with what the database knows.

The run, its plan, its approval, the gate, the status and the metrics all mean the same by "rollback target"; they do
because all of them ask here. They ask often and some of them during an outage, so the answer takes the same time among
ten checkpoints and among ten thousand: what served here is looked at from the newest deployment back, and only until
there are enough targets. While there is none the search goes on to the first deployment, so a bound never hides the
only way back.
"""

from __future__ import annotations

import json
from dataclasses import replace

from rearguard.checkpoints import registry
from rearguard.database import Connection, sql
from rearguard.model.checkpoint import CheckpointPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.rules.selection import Selection, select

ENOUGH = 16
"""Targets at a place. Chosen: a ladder has fewer rungs than its deadline leaves time for."""
REJECTED_SHOWN = 20
"""Checkpoints that are named as no target. Chosen: what a person can read at a glance."""
DEPLOYMENTS_SEEN = 1_024
"""Once a target is known, no more deployments than these are looked at for another one. Chosen: years of releases; a
place that switches to and fro between two versions all day long has more of them, and nothing new in them."""
_PAGE = 64


def candidates(
    connection: Connection,
    place: Place,
    *,
    active: Digest | None,
    policy: CheckpointPolicy,
    now: Instant,
    wanted: Digest | None = None,
    count_rest: bool = False,
) -> Selection:
    """The checkpoints that may replace `active`, best first, and why others may not (R10, R28).

    At most `ENOUGH` candidates, and about `REJECTED_SHOWN` others: those that served here last, then those registered
    last. `count_rest` has the others counted, in `unlisted`: the one thing here whose time grows with the registry.
    """
    if wanted is None:
        served, passed = _served(connection, place, active)
    else:
        served, passed = tuple(serving(connection, place, (wanted,))), ()
    recent = tuple(digest for digest, _ in registry.newest(connection, place.service, REJECTED_SHOWN))
    # One that served before the search ended is no "never served": it is only one too many.
    beyond = serving(connection, place, recent) - {*served, *passed} if wanted is None else frozenset()
    unfit = [digest for digest in dict.fromkeys([*passed, *recent]) if digest not in beyond][:REJECTED_SHOWN]
    named = [digest for digest in (wanted, active) if digest is not None]
    looked_at = tuple(dict.fromkeys([*named, *served, *unfit]))
    of_service = tuple(c for c in registry.get_many(connection, looked_at) if c.service == place.service)
    selection = select(
        checkpoints=of_service,
        active=active,
        quarantined=_quarantined(connection, place, looked_at),
        served=served,
        wanted=wanted,
        policy=policy,
        now=now,
    )
    if not count_rest:
        return selection
    return replace(selection, unlisted=registry.count(connection, place.service) - len(of_service))


def _served(
    connection: Connection, place: Place, active: Digest | None
) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
    """Digests that may be targets, oldest first, and those passed over on the way, newest first.

    A digest's newest deployment decides whether it served and was not rolled back since.
    """
    found: list[Digest] = []
    passed: list[Digest] = []
    known: set[str] = set()
    below, seen = _last_deployment(connection), 0
    while len(found) < ENOUGH and (seen < DEPLOYMENTS_SEEN or not found):
        rows = connection.execute(
            sql(
                "SELECT d.id, d.digest, d.state, c.verified_at IS NOT NULL AND c.failure = '' AND q.digest IS NULL AS fit "
                "FROM deployments d LEFT JOIN checkpoints c ON c.digest = d.digest AND c.service = d.service "
                "LEFT JOIN quarantine q ON q.service = d.service AND q.env = d.env AND q.digest = d.digest "
                "WHERE d.service = :service AND d.env = :env AND d.id <= :below ORDER BY d.id DESC LIMIT :page"
            ),
            {"service": place.service, "env": place.env, "below": below, "page": _PAGE},
        ).all()
        for row in rows:
            if row.digest in known or row.state not in ("active", "ended", "rolled_back"):
                continue
            known.add(row.digest)
            if row.fit and row.state != "rolled_back" and row.digest != active:
                found.append(Digest(row.digest))
            elif len(passed) < REJECTED_SHOWN:
                passed.append(Digest(row.digest))
            if len(found) == ENOUGH:
                break
        if len(rows) < _PAGE:
            break
        below, seen = rows[-1].id - 1, seen + len(rows)
    return tuple(reversed(found)), tuple(passed)


def _last_deployment(connection: Connection) -> int:
    return int(connection.execute(sql("SELECT COALESCE(MAX(id), 0) FROM deployments")).scalar_one())


def serving(connection: Connection, place: Place, digests: tuple[Digest, ...]) -> frozenset[Digest]:
    """Those of `digests` whose newest deployment at a place served and was not rolled back."""
    rows = connection.execute(
        sql(
            "SELECT value AS digest FROM json_each(:digests) WHERE (SELECT state FROM deployments WHERE service = :service "
            "AND env = :env AND digest = value AND state IN ('active', 'ended', 'rolled_back') ORDER BY id DESC LIMIT 1) "
            "IN ('active', 'ended')"
        ),
        {"service": place.service, "env": place.env, "digests": json.dumps(digests)},
    )
    return frozenset(Digest(row.digest) for row in rows)


def _quarantined(connection: Connection, place: Place, digests: tuple[Digest, ...]) -> frozenset[Digest]:
    """Those of `digests` that were rolled back at this place and not released since (R29)."""
    rows = connection.execute(
        sql(
            "SELECT digest FROM quarantine WHERE service = :service AND env = :env "
            "AND digest IN (SELECT value FROM json_each(:digests))"
        ),
        {"service": place.service, "env": place.env, "digests": json.dumps(digests)},
    )
    return frozenset(Digest(row.digest) for row in rows)
