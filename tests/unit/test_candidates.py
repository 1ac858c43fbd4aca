"""What a place could be rolled back to, asked of a database: the rule's meaning, and a bounded look (R10, R28)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rearguard.checkpoints import registry
from rearguard.database import Database, open_database, sql
from rearguard.model.checkpoint import Checkpoint, CheckpointFile, CheckpointPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.recovery.candidates import DEPLOYMENTS_SEEN, ENOUGH, REJECTED_SHOWN, candidates
from rearguard.rules.selection import Selection

PLACE = Place(service="fraud", env="prod")
NOW = Instant(wall_ns=1_800_000_000 * 10**9, mono_ns=10**15, boot_id="boot")


def digest(version: str) -> Digest:
    return Digest("sha256:" + hashlib.sha256(version.encode()).hexdigest())


def checkpoint(version: str, service: str = "fraud") -> Checkpoint:
    return Checkpoint(
        digest=digest(version),
        service=service,
        version=version,
        format="onnx",
        files=(CheckpointFile(path="model.onnx", sha256="0" * 64, size_bytes=1),),
        golden_sha256="1" * 64,
        added_at=NOW,
        verified_at=None,
        load_ms=None,
        failure="",
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path)
    yield opened
    opened.close()


def register(
    database: Database, *versions: str, proven: bool = True, failure: str = "", service: str = "fraud"
) -> None:
    with database.transaction() as connection:
        for version in versions:
            registry.insert(connection, checkpoint(version, service))
            connection.execute(
                sql("UPDATE checkpoints SET verified_at = :at, failure = :failure WHERE digest = :digest"),
                {"at": registry.encode_instant(NOW) if proven else None, "failure": failure, "digest": digest(version)},
            )


def deploy(database: Database, *rows: tuple[str, str], env: str = "prod") -> None:
    """Version and state of each deployment, oldest first."""
    with database.transaction() as connection:
        for version, state in rows:
            connection.execute(
                sql(
                    "INSERT INTO deployments (service, env, digest, version, source, state, started_at) "
                    "VALUES ('fraud', :env, :digest, :version, 'test', :state, '')"
                ),
                {"env": env, "digest": digest(version), "version": version, "state": state},
            )


def ask(database: Database, *, active: str | None = None, wanted: str | None = None) -> Selection:
    with database.reading() as connection:
        return candidates(
            connection,
            PLACE,
            active=digest(active) if active else None,
            policy=CheckpointPolicy(),
            now=NOW,
            wanted=digest(wanted) if wanted else None,
            count_rest=True,
        )


def versions(selection: Selection) -> list[str]:
    return [c.checkpoint.version for c in selection.candidates]


def reasons(selection: Selection) -> dict[str, str]:
    return {r.version: r.reason for r in selection.rejected}


def names(count: int) -> list[str]:
    return [f"v{number:05d}" for number in range(count)]


def test_the_version_that_served_last_is_the_best_target(database: Database) -> None:
    register(database, "a", "b", "c")
    deploy(database, ("b", "ended"), ("a", "ended"), ("c", "active"))
    assert versions(ask(database, active="c")) == ["a", "b"]


def test_a_redeployed_version_counts_by_its_newest_deployment(database: Database) -> None:
    register(database, "a", "b", "c")
    deploy(database, ("b", "ended"), ("a", "ended"), ("b", "ended"), ("c", "active"))
    assert versions(ask(database, active="c")) == ["b", "a"]


@pytest.mark.parametrize(
    ("rows", "served"),
    [
        ([("a", "ended"), ("a", "rolled_back")], False),
        ([("a", "rolled_back"), ("a", "ended")], True),
        ([("a", "ended"), ("a", "failed")], True),
        ([("a", "failed")], False),
        ([("a", "activating")], False),
    ],
)
def test_the_newest_deployment_that_answered_decides(
    database: Database, rows: list[tuple[str, str]], served: bool
) -> None:
    """One that never answered traffic, `failed` or `activating`, says nothing."""
    register(database, "a")
    deploy(database, *rows)
    assert versions(ask(database)) == (["a"] if served else [])


def test_a_deployment_of_another_environment_does_not_count(database: Database) -> None:
    register(database, "a")
    deploy(database, ("a", "ended"), env="staging")
    assert reasons(ask(database)) == {"a": "never_served"}


def test_each_reason_is_told(database: Database) -> None:
    register(database, "active", "held", "unused", "good")
    register(database, "failed", failure="blob_altered", proven=False)
    register(database, "unproven", proven=False)
    deploy(database, *((v, "ended") for v in ("held", "failed", "unproven", "good", "active")))
    with database.transaction() as connection:
        connection.execute(
            sql("INSERT INTO quarantine VALUES ('fraud', 'prod', :digest, 'run_1', '')"), {"digest": digest("held")}
        )
    found = ask(database, active="active")
    assert versions(found) == ["good"]
    assert reasons(found) == {
        "active": "active",
        "held": "quarantined",
        "failed": "verification_failed",
        "unproven": "never_verified",
        "unused": "never_served",
    }
    assert found.unlisted == 0


def test_a_checkpoint_of_another_service_is_none(database: Database) -> None:
    register(database, "a", service="pricing")
    deploy(database, ("a", "ended"))
    found = ask(database)
    assert (versions(found), found.rejected, found.unlisted) == ([], (), 0)


def test_a_wanted_version_is_the_only_candidate_and_may_never_have_served(database: Database) -> None:
    register(database, "a", "b")
    deploy(database, ("a", "ended"))
    found = ask(database, wanted="b")
    assert [(c.checkpoint.version, c.served_before) for c in found.candidates] == [("b", False)]
    assert reasons(found) == {"a": "not_asked_for"}
    assert [c.served_before for c in ask(database, wanted="a").candidates] == [True]


def test_an_old_wanted_version_is_found_among_many(database: Database) -> None:
    register(database, *names(100))
    deploy(database, *((v, "ended") for v in names(100)))
    assert versions(ask(database, wanted="v00000")) == ["v00000"]


def test_the_newest_are_enough(database: Database) -> None:
    register(database, *names(100))
    deploy(database, *((v, "ended") for v in names(100)))
    assert versions(ask(database)) == list(reversed(names(100)))[:ENOUGH]


def test_one_that_served_too_long_ago_to_be_listed_is_not_called_never_served(database: Database) -> None:
    register(database, *reversed(names(30)))  # v00000 is registered last, and served first
    deploy(database, *((v, "ended") for v in names(30)))
    found = ask(database)
    assert found.rejected == ()
    assert found.unlisted == 30 - ENOUGH


def test_the_rejected_are_bounded_and_the_rest_is_counted(database: Database) -> None:
    register(database, *names(100))
    found = ask(database)
    assert [r.version for r in found.rejected] == names(100)[-REJECTED_SHOWN:]
    assert found.unlisted == 100 - REJECTED_SHOWN


def test_the_only_target_is_found_however_many_unfit_ones_served_after_it(database: Database) -> None:
    """A bound must never hide the way back."""
    count = 2 * DEPLOYMENTS_SEEN
    register(database, "good")
    register(database, *names(count), proven=False)
    deploy(database, ("good", "ended"), *((v, "ended") for v in names(count)))
    assert versions(ask(database)) == ["good"]


def test_a_look_reads_as_much_among_ten_thousand_as_among_a_hundred(database: Database) -> None:
    """Counted, not timed: rows that SQLite hands over, and the steps of its machine that a query with a sort would need."""
    counted: dict[str, int] = {}

    def count(size: int) -> None:
        connection = database.engine.raw_connection()
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        raw = connection.driver_connection
        assert raw is not None
        raw.set_progress_handler(step, 1)
        connection.close()
        ask(database, active=names(size)[-1])
        counted[str(size)] = steps

    first = names(10_000)
    register(database, *first[:100])
    deploy(database, *((v, "ended") for v in first[:100]))
    count(100)
    register(database, *first[100:])
    deploy(database, *((v, "ended") for v in first[100:]))
    count(10_000)
    # Counting the service's checkpoints is the one part that grows: a few steps each along an index, no row is read.
    assert counted["100"] > 100
    assert counted["10000"] - counted["100"] < 5 * 9_900
