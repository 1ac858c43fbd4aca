"""Laws of retention with the real registry: what a rollback can choose is the same after a collection as before it (R19)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from shelf import SetClock, Shelf, office_of, write_settings

from rearguard.checkpoints import registry
from rearguard.database import sql
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.officer import deployments, retention
from rearguard.recovery.candidates import candidates

POLICY = "{retention: {keep_last: 1, keep: 1 s}}"
PLACES = tuple(Place(service=s, env=e) for s, e in (("fraud", "prod"), ("fraud", "stage"), ("churn", "prod")))
DEPLOY = st.tuples(st.just("deploy"), st.sampled_from(PLACES[:2]), st.integers(0, 9))
EVENTS = st.one_of(
    DEPLOY,
    DEPLOY,
    st.tuples(st.just("add"), st.sampled_from(("fraud", "churn")), st.just(0)),
    st.tuples(st.just("deploy"), st.sampled_from(PLACES), st.integers(0, 9)),
    st.tuples(st.just("roll_back"), st.sampled_from(PLACES), st.just(0)),
    st.tuples(st.just("fail"), st.just(""), st.integers(0, 9)),
    st.tuples(st.just("collect"), st.just(""), st.just(0)),
)
HISTORIES = st.builds(
    lambda first, then: [("add", service, 0) for service in first] + then + [("collect", "", 0)],
    st.lists(st.sampled_from(("fraud", "fraud", "fraud", "churn")), min_size=5, max_size=9),
    st.lists(EVENTS, min_size=8, max_size=20),
)


def registered(shelf: Shelf, service: str | None = None) -> tuple[Checkpoint, ...]:
    with shelf.office.database.reading() as connection:
        return registry.list_all(connection, service)


def ladder(shelf: Shelf, place: Place) -> tuple[Digest, ...]:
    with shelf.office.database.reading() as connection:
        newest = deployments.newest(connection, place)
        selection = candidates(
            connection,
            place,
            active=newest.digest if newest else None,
            policy=shelf.office.settings.checkpoints,
            now=shelf.clock.now(),
        )
    return tuple(candidate.checkpoint.digest for candidate in selection.candidates)


def usable(shelf: Shelf, place: Place) -> set[Digest]:
    """Proven and not quarantined at the place."""
    with shelf.office.database.reading() as connection:
        held = registry.quarantined(connection, place)
    return {c.digest for c in registered(shelf, place.service) if c.verified_at and not c.failure} - held


def ways_back(shelf: Shelf, place: Place) -> tuple[Digest, ...]:
    """What served besides the active, newest first, proven or not, unless it was rolled back or is quarantined."""
    with shelf.office.database.reading() as connection:
        rows = connection.execute(
            sql("SELECT digest, state FROM deployments WHERE service = :s AND env = :e ORDER BY id DESC"),
            {"s": place.service, "e": place.env},
        ).all()
        held = registry.quarantined(connection, place)
    last = {Digest(row.digest): row.state for row in reversed(rows)}
    here = {c.digest for c in registered(shelf)} - held - {d for d, state in last.items() if state == "rolled_back"}
    newest_first = dict.fromkeys(Digest(row.digest) for row in rows)
    return tuple(d for d in list(newest_first)[1:] if d in here)


def apply(shelf: Shelf, event: tuple[str, object, int], number: int) -> None:
    name, about, pick = event
    if name == "add":
        shelf.put(f"v{number}", {"own": str(number).encode(), "shared": b"shared"}, service=str(about))
    elif name == "deploy":
        assert isinstance(about, Place)
        fit = [c for c in registered(shelf, about.service) if c.digest in usable(shelf, about)]
        if fit:
            shelf.deploy(fit[pick % len(fit)], env=about.env)
    elif name == "roll_back":
        assert isinstance(about, Place)
        rungs = ladder(shelf, about)
        if rungs:
            at = {"s": about.service, "e": about.env}
            with shelf.office.database.reading() as connection:
                leaving = deployments.newest(connection, about)
            assert leaving is not None
            shelf.execute("INSERT OR IGNORE INTO quarantine VALUES (:s, :e, :d, 'run_1', '')", **at, d=leaving.digest)
            with shelf.office.database.transaction() as connection:
                connection.execute(
                    sql("UPDATE deployments SET state = 'rolled_back' WHERE id = :id"), {"id": leaving.id}
                )
            shelf.deploy(next(c for c in registered(shelf) if c.digest == rungs[0]), env=about.env)
    elif name == "fail" and registered(shelf):
        shelf.note(registered(shelf)[pick % len(registered(shelf))], ok=False)


# Not shrunk: an example costs a database.
@settings(max_examples=20, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES)
def test_a_collection_takes_nothing_that_a_rollback_could_need(history: list[tuple[str, object, int]]) -> None:
    clock = SetClock()
    with (
        tempfile.TemporaryDirectory() as folder,
        office_of(write_settings(Path(folder) / "s", POLICY), clock) as office,
    ):
        shelf = Shelf(office, clock, Path(folder))
        for number, event in enumerate(history):
            if event[0] != "collect":
                apply(shelf, event, number)
                continue
            clock.advance(2)
            before = {p: (ladder(shelf, p), usable(shelf, p), ways_back(shelf, p)) for p in PLACES}
            with office.database.reading() as connection:
                newest = [deployments.newest(connection, place) for place in PLACES]
                held = {digest for place in PLACES for digest in registry.quarantined(connection, place)}
            retention.collect(office, by="ops")
            assert {one.digest for one in newest if one} | held <= {c.digest for c in registered(shelf)}
            for place, (rungs, fit, ways) in before.items():
                assert ladder(shelf, place) == rungs
                assert not fit or usable(shelf, place)
                assert ways_back(shelf, place)[: 1 if rungs else None] == ways[: 1 if rungs else None]
            assert shelf.needed() == shelf.blobs()
            assert retention.plan(office).leaving == ()
