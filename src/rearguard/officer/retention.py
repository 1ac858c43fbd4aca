"""Retention: what may leave the store, why the rest stays, and taking it away (R19).

Nothing goes by itself: a person or a timer calls `collect`, after a look at `plan`. What may go is judged by
`rules.retention`, again inside the transaction that takes the rows away, so that a deploy or a rollback that begins
meanwhile either is seen, or finds the checkpoint gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from rearguard import loaders
from rearguard.checkpoints import collection, faults, layout, registry, retired
from rearguard.checkpoints.registry import decode_instant
from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.officer import deployments
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.recovery.candidates import candidates
from rearguard.rules.retention import Judged, Keep, Pin, PlaceView, Reason, Stored, judge

LOOK_S = 600.0
"""Between two looks at what could be freed. Chosen: a look reads the whole registry and lists the store."""
BATCH = 200
"""Checkpoints that one transaction retires, so that no other writer waits for long. Chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A checkpoint that may go, or went."""

    service: str
    version: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Staying:
    """A checkpoint that stays, and why."""

    service: str
    version: str
    digest: Digest
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What of the store goes, or went."""

    blobs: int
    views: int
    temporaries: int
    """What processes that died left."""
    aside: int
    """What a repair replaced long ago."""
    freed_bytes: int
    """Bytes on the disk; a blob that several checkpoints share counts once, and only when none of them stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What a collection would do, or did."""

    executed: bool
    leaving: tuple[Leaving, ...]
    staying: tuple[Staying, ...]
    swept: Swept


@operation(Effect.PROPOSE)
def plan(office: Office) -> Collection:
    """What `collect` would do now; changes nothing. Raises as `collection.leftovers`."""
    now = office.clock.now()
    with office.database.reading() as connection:
        judged = _judge(office, connection, now)
        going = registry.get_many(connection, _may_go(judged))
        found = collection.leftovers(
            connection,
            office.store,
            now=now,
            keep_aside_s=office.settings.checkpoints.keep_s,
            leaving=going,
        )
    return Collection(
        executed=False,
        leaving=tuple(_leaving(checkpoint) for checkpoint in going),
        staying=_staying(judged),
        swept=Swept(**collection.sizes(found)),
    )


@operation(Effect.COMMIT)
def collect(office: Office, *, by: str) -> Collection:
    """Retire what may go, write the registry's files anew, and sweep what nothing refers to any more.

    In this order, so that whatever dies in between, nothing that is referred to is lost, and a second call completes it.
    Raises `ConflictError` `store_busy` while checkpoints are taken in, `DependencyError` when a file cannot be written or
    removed.
    """
    with office.store.collecting():
        faults.reach("gc", "planned")
        run_id = office.ids.run_id()
        gone, staying = _retire(office, by, run_id)
        faults.reach("gc", "rows_gone")
        # Before the first blob goes: an index that still names a checkpoint whose blobs are gone would be a broken store.
        office.publish(registry_changed=True)
        if office.unpublished is not None:
            raise office.unpublished
        faults.reach("gc", "index_written")
        swept = _sweep(office, by, run_id)
        faults.reach("gc", "done")
    office.publish()
    return Collection(executed=True, leaving=gone, staying=staying, swept=swept)


def _retire(office: Office, by: str, run_id: str) -> tuple[tuple[Leaving, ...], tuple[Staying, ...]]:
    gone: list[Leaving] = []
    while True:
        with office.database.transaction() as connection:
            now = office.clock.now()
            judged = _judge(office, connection, now)
            batch = registry.get_many(connection, _may_go(judged)[:BATCH])
            for checkpoint in batch:
                retired.retire(connection, checkpoint, layout.blobs_of(checkpoint), by=by, now=now, run_id=run_id)
        gone += [_leaving(checkpoint) for checkpoint in batch]
        if len(batch) < BATCH:
            return tuple(gone), _staying(judged)


def _sweep(office: Office, by: str, run_id: str) -> Swept:
    now = office.clock.now()
    with office.database.reading() as connection:
        found = collection.leftovers(connection, office.store, now=now, keep_aside_s=office.settings.checkpoints.keep_s)
    collection.sweep(found)
    office.store.sweep()
    sizes = collection.sizes(found)
    with office.database.transaction() as connection:
        retired.swept(connection)
        if found:
            append(connection, now=office.clock.now(), kind="store_swept", body={**sizes, "by": by}, run_id=run_id)
    return Swept(**sizes)


def _may_go(judged: tuple[Judged, ...]) -> list[Digest]:
    return [one.stored.digest for one in judged if not one.reasons]


def _leaving(checkpoint: Checkpoint) -> Leaving:
    return Leaving(
        service=checkpoint.service,
        version=checkpoint.version,
        digest=checkpoint.digest,
        size_bytes=checkpoint.size_bytes,
    )


def _staying(judged: tuple[Judged, ...]) -> tuple[Staying, ...]:
    return tuple(
        Staying(service=one.stored.service, version=one.stored.version, digest=one.stored.digest, reasons=one.reasons)
        for one in judged
        if one.reasons
    )


def _judge(office: Office, connection: Connection, now: Instant) -> tuple[Judged, ...]:
    policy = office.settings.checkpoints
    places = [_view(office, connection, place, now) for place in _places(office, connection)]
    return judge(_stored(connection, policy), places, tuple(_pins(connection)), policy, now)


def _stored(connection: Connection, policy: CheckpointPolicy) -> list[Stored]:
    rows = connection.execute(
        sql(
            "SELECT digest, service, version, format, added_at, verified_at IS NOT NULL AND failure = '' AS verified "
            "FROM checkpoints ORDER BY rowid"
        )
    ).all()
    allowed = {name: loaders.is_allowed(name, policy.unsafe_formats) for name in {row.format for row in rows}}
    return [
        Stored(
            digest=Digest(row.digest),
            service=row.service,
            version=row.version,
            added_at=decode_instant(row.added_at),
            verified=bool(row.verified),
            allowed=allowed[row.format],
        )
        for row in rows
    ]


def _places(office: Office, connection: Connection) -> list[Place]:
    """Those that are declared, and those that something was ever deployed to: settings may be put back."""
    rows = connection.execute(
        sql("SELECT DISTINCT service, env FROM deployments UNION SELECT service, env FROM places")
    )
    known = {Place(service=row.service, env=row.env) for row in rows}
    return sorted(known | {declared.place for declared in office.settings.places})


def _view(office: Office, connection: Connection, place: Place, now: Instant) -> PlaceView:
    newest = deployments.newest(connection, place)
    active = newest.digest if newest is not None else None
    selection = candidates(connection, place, active=active, policy=office.settings.checkpoints, now=now)
    return PlaceView(
        place=place,
        active=active,
        ladder=tuple(candidate.checkpoint.digest for candidate in selection.candidates),
        quarantined=registry.quarantined(connection, place),
        served=_served(connection, place),
    )


def _served(connection: Connection, place: Place) -> tuple[Digest, ...]:
    """All that served and was not rolled back since, newest first: a digest's newest deployment decides."""
    rows = connection.execute(
        sql(
            "SELECT digest FROM (SELECT digest, state, MAX(id) AS last FROM deployments WHERE service = :service "
            "AND env = :env AND state IN ('active', 'ended', 'rolled_back') GROUP BY digest) "
            "WHERE state != 'rolled_back' AND digest IN (SELECT digest FROM checkpoints WHERE service = :service) "
            "AND digest NOT IN (SELECT digest FROM quarantine WHERE service = :service AND env = :env) ORDER BY last DESC"
        ),
        {"service": place.service, "env": place.env},
    )
    return tuple(Digest(row.digest) for row in rows)


def _pins(connection: Connection) -> Iterator[Pin]:
    """Everything that names a checkpoint now."""
    tables = (
        (
            Keep.ACTIVE,
            "SELECT digest, service || '/' || env AS about FROM deployments WHERE state IN ('activating', 'active')",
        ),
        (Keep.STANDBY, "SELECT digest, service || '/' || env AS about FROM standbys"),
        (Keep.QUARANTINED, "SELECT digest, service || '/' || env AS about FROM quarantine"),
        (Keep.INCIDENT, "SELECT digest, 'R-' || n AS about FROM incidents WHERE state = 'open'"),
    )
    for keep, query in tables:
        for row in connection.execute(sql(query)):
            if row.digest:
                yield Pin(digest=Digest(row.digest), reason=Reason(keep=keep, about=row.about))
    runs = connection.execute(
        sql(
            "SELECT id, from_digest, to_digest, wanted_digest, plan FROM runs WHERE state IN ('requested', 'running') "
            "OR id IN (SELECT open_run_id FROM places WHERE open_run_id IS NOT NULL)"
        )
    ).all()
    for run in runs:
        planned = json.loads(run.plan)["candidates"] if run.plan else []
        named = (run.from_digest, run.to_digest, run.wanted_digest, *planned, *_chosen(connection, run.id))
        for digest in named:
            if digest:
                yield Pin(digest=Digest(digest), reason=Reason(keep=Keep.RUN, about=run.id))


def _chosen(connection: Connection, run_id: str) -> list[str]:
    """The candidates that a run chose when it began: it goes through them, whatever is a candidate by now."""
    rows = connection.execute(
        sql("SELECT body FROM evidence WHERE run_id = :run AND kind = 'target_selected'"), {"run": run_id}
    )
    return [str(candidate["digest"]) for row in rows for candidate in json.loads(row.body)["candidates"]]
