"""`checkpoint gc`: what goes, what never goes, and what a collector that was killed leaves behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from shelf import DAY_S, START, SetClock, Shelf, office_of, write_settings

from rearguard.checkpoints import faults, registry, retired
from rearguard.database import sql
from rearguard.errors import ConflictError, NotFoundError
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Place
from rearguard.officer import checkpoints, deployments, registration, retention
from rearguard.recovery.context import version_of

POLICY = "{retention: {keep_last: 1, keep: 240 h}}"
KEPT_S = 10 * DAY_S


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """Two services, keep_last 1, keep 10 days."""
    clock = SetClock()
    with office_of(write_settings(tmp_path / "state", POLICY), clock) as office:
        yield Shelf(office, clock, tmp_path)


def fill(shelf: Shelf, *versions: str, service: str = "fraud") -> dict[str, Checkpoint]:
    """Each version with a file of its own and one that all share; then so long passes that none is young."""
    found = {v: shelf.put(v, {"own": v.encode(), "shared": b"shared" * 100}, service=service) for v in versions}
    shelf.clock.advance(KEPT_S)
    return found


def reasons(shelf: Shelf) -> dict[str, set[tuple[str, str]]]:
    """By version: why it stays."""
    return {s.version: {(r.keep.value, r.about) for r in s.reasons} for s in retention.plan(shelf.office).staying}


def going(shelf: Shelf) -> list[str]:
    return [one.version for one in retention.plan(shelf.office).leaving]


def test_what_nothing_needs_goes_and_its_record_says_so(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2", "v3")
    assert going(shelf) == ["v1", "v2"]
    done = retention.collect(shelf.office, by="ops")
    assert [one.version for one in done.leaving] == ["v1", "v2"]
    assert shelf.versions() == ["v3"]
    assert [r.body for r in shelf.records("checkpoint_retired")] == [
        {
            "digest": found[v].digest,
            "version": v,
            "size_bytes": 602,
            "added_ts": START.rfc3339_ms(),
            "by": "ops",
        }
        for v in ("v1", "v2")
    ]
    assert shelf.views() == {found["v3"].digest}


def test_a_plan_changes_nothing(shelf: Shelf) -> None:
    fill(shelf, "v1", "v2")
    before = {path: path.stat().st_mtime_ns for path in shelf.office.state.rglob("*") if path.is_file()}
    assert retention.plan(shelf.office).executed is False
    assert {path: path.stat().st_mtime_ns for path in shelf.office.state.rglob("*") if path.is_file()} == before


def test_a_blob_that_another_service_shares_stays_and_is_not_counted(shelf: Shelf) -> None:
    """v1 has two bytes of its own, its manifest and config; the rest is shared with v2 or with churn's."""
    old = shelf.put("v1", {"own": b"v1", "model": b"m" * 1000})
    own = 2 + sum(shelf.blob(name).stat().st_size for name in shelf.described(old))
    shelf.put("v2", {"own": b"v2", "model": b"n" * 10})
    shelf.put("c1", {"own": b"c1", "model": b"m" * 1000}, service="churn")
    shelf.clock.advance(KEPT_S)
    planned = retention.plan(shelf.office)
    assert ([one.version for one in planned.leaving], planned.swept.blobs, planned.swept.freed_bytes) == (
        ["v1"],
        3,
        own,
    )
    done = retention.collect(shelf.office, by="ops")
    assert done.swept.freed_bytes == own
    assert shelf.blobs() == shelf.needed()
    assert shelf.blob(old.files[0].sha256).stat().st_size == 1000


RUN = (
    "INSERT INTO runs (id, service, env, {0}, state, requested_by, requested_at) "
    "VALUES ('run_1', 'fraud', 'prod', {1}, {2}, 'x', '')"
)
DEPLOYMENT = (
    "INSERT INTO deployments (service, env, digest, version, source, state, started_at) "
    "VALUES ('fraud', {0}, :d, '', '', {1}, json_object('wall_ns', 1, 'mono_ns', 1, 'boot_id', 'b'))"
)
INCIDENT = (
    "INSERT INTO incidents (service, env, trigger_name, digest, state, t0, t1) "
    "VALUES ('fraud', 'prod', 'errors', :d, {0}, '', '')"
)
STANDBY = "INSERT INTO standbys (service, env, digest, state, since) VALUES ('fraud', 'prod', :d, 'lost', '')"
QUARANTINE = "INSERT INTO quarantine VALUES ('fraud', 'stage', :d, 'run_1', '')"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (STANDBY, ("standby", "fraud/prod")),
        (QUARANTINE, ("quarantined", "fraud/stage")),
        (INCIDENT.format("'open'"), ("open_incident", "R-1")),
        (RUN.format("from_digest", ":d", "'running'"), ("open_run", "run_1")),
        (RUN.format("to_digest", ":d", "'running'"), ("open_run", "run_1")),
        (RUN.format("wanted_digest", ":d", "'requested'"), ("open_run", "run_1")),
        (RUN.format("plan", "json_object('candidates', json_array(:d))", "'requested'"), ("open_run", "run_1")),
        (DEPLOYMENT.format("'prod'", "'activating'"), ("active", "fraud/prod")),
        (DEPLOYMENT.format("'not-declared'", "'active'"), ("active", "fraud/not-declared")),
    ],
)
def test_whatever_names_a_checkpoint_keeps_it(shelf: Shelf, statement: str, expected: tuple[str, str]) -> None:
    found = fill(shelf, "v1", "v2")
    assert going(shelf) == ["v1"]
    shelf.execute(statement, d=found["v1"].digest)
    assert expected in reasons(shelf)["v1"]


@pytest.mark.parametrize(
    "statement",
    [
        INCIDENT.format("'closed'"),
        RUN.format("from_digest", ":d", "'failed'"),
        DEPLOYMENT.format("'prod'", "'failed'"),
    ],
)
def test_what_is_over_keeps_nothing(shelf: Shelf, statement: str) -> None:
    found = fill(shelf, "v1", "v2")
    shelf.execute(statement, d=found["v1"].digest)
    assert going(shelf) == ["v1"]


def test_every_rung_of_a_ladder_stays(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2", "v3", "v4", "v5")
    for version in ("v1", "v3", "v4"):
        shelf.deploy(found[version])
    assert going(shelf) == ["v2"]
    assert reasons(shelf)["v1"] == {("ladder", "fraud/prod")}
    assert reasons(shelf)["v3"] == {("ladder", "fraud/prod"), ("served", "fraud/prod")}


def test_the_only_way_back_stays_while_its_proof_is_away(shelf: Shelf) -> None:
    """Two newer ones are proven and never served: a rollback could not choose them, and a repair could mend v1."""
    found = fill(shelf, "v0", "v1", "v2", "v3", "v4")
    for version in ("v0", "v1", "v2"):
        shelf.deploy(found[version])
    for version in ("v0", "v1"):
        shelf.note(found[version], ok=False)
    assert reasons(shelf)["v0"] == reasons(shelf)["v1"] == {("served", "fraud/prod")}
    retention.collect(shelf.office, by="ops")
    assert {"v0", "v1", "v2"} <= set(shelf.versions())
    shelf.note(found["v1"], ok=True)
    assert "v0" in going(shelf)


def test_the_newest_that_served_stays_beside_an_older_one_that_is_proven(shelf: Shelf) -> None:
    found = fill(shelf, "v0", "v1", "v2", "v3")
    for version in ("v0", "v1", "v2"):
        shelf.deploy(found[version])
    shelf.note(found["v1"], ok=False)
    assert reasons(shelf)["v1"] == {("served", "fraud/prod")}


def test_what_was_rolled_back_or_is_quarantined_is_no_way_back(shelf: Shelf) -> None:
    found = fill(shelf, "v0", "v1", "v2", "v3")
    shelf.deploy(found["v0"], state="rolled_back")
    shelf.deploy(found["v1"], env="stage")
    shelf.deploy(found["v2"], env="stage")
    shelf.execute(QUARANTINE, d=found["v1"].digest)
    for version in ("v0", "v1"):
        shelf.note(found[version], ok=False)
    assert going(shelf) == ["v0"]
    assert reasons(shelf)["v1"] == {("quarantined", "fraud/stage")}


def test_a_format_that_is_not_allowed_is_no_proven_way_back(shelf: Shelf) -> None:
    """Proven when `unsafe_formats` still named it: what served and cannot be proven now stays beside it."""
    found = fill(shelf, "v0", "v1", "v2", "v3")
    for version in ("v0", "v1", "v2"):
        shelf.deploy(found[version])
    shelf.note(found["v0"], ok=False)
    assert going(shelf) == ["v0"]
    shelf.execute("UPDATE checkpoints SET format = 'sklearn-joblib' WHERE digest = :d", d=found["v1"].digest)
    assert reasons(shelf)["v0"] == {("served", "fraud/prod")}


def test_the_candidates_that_an_open_run_chose_stay_whatever_is_a_candidate_now(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2")
    shelf.execute(RUN.format("from_digest", "NULL", "'running'"))
    body = {"candidates": [{"digest": found["v1"].digest, "version": "v1", "stale": False}], "rejected": []}
    with shelf.office.database.transaction() as connection:
        append(connection, now=shelf.clock.now(), kind="target_selected", body=body, run_id="run_1")
    assert reasons(shelf)["v1"] == {("open_run", "run_1")}


def test_the_last_proven_one_stays_though_it_never_served(shelf: Shelf) -> None:
    """v2 is newer and kept for that; it failed its verification."""
    found = fill(shelf, "v1", "v2")
    shelf.note(found["v2"], ok=False)
    assert reasons(shelf)["v1"] == {("last_verified", "fraud/prod"), ("last_verified", "fraud/stage")}


def test_beside_what_is_active_the_last_proven_one_stays_too(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2", "v3")
    shelf.deploy(found["v3"], env="prod")
    assert going(shelf) == ["v1"]
    assert reasons(shelf)["v2"] == {("last_verified", "fraud/prod")}


def test_one_that_is_quarantined_at_a_place_is_not_the_last_proven_one_there(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2", "v3")
    shelf.note(found["v3"], ok=False)
    shelf.execute(QUARANTINE, d=found["v2"].digest)
    assert reasons(shelf)["v1"] == {("last_verified", "fraud/stage")}


def test_while_nothing_of_a_service_is_proven_nothing_of_it_goes(shelf: Shelf) -> None:
    """As when its disk was away for a moment and every verification failed."""
    found = fill(shelf, "v1", "v2")
    for checkpoint in found.values():
        shelf.note(checkpoint, ok=False)
    assert ("nothing_proven", "fraud/prod") in reasons(shelf)["v1"]


def test_an_age_at_the_limit_is_no_longer_young(shelf: Shelf) -> None:
    fill(shelf, "v1", "v2")
    shelf.clock.advance(-1)
    assert reasons(shelf)["v1"] == {("young", "")}
    shelf.clock.advance(1)
    assert going(shelf) == ["v1"]


def test_one_that_was_added_in_the_future_is_young(shelf: Shelf) -> None:
    """A clock that was wrong when it was added, or is now, costs nothing."""
    fill(shelf, "v1", "v2")
    shelf.clock.advance(-2 * KEPT_S)
    assert reasons(shelf)["v1"] == {("young", "")}


def test_a_second_collection_right_after_the_first_removes_nothing(shelf: Shelf) -> None:
    fill(shelf, "v1", "v2", "v3")
    retention.collect(shelf.office, by="ops")
    before = len(shelf.records("store_swept", "checkpoint_retired"))
    again = retention.collect(shelf.office, by="ops")
    assert (again.leaving, again.swept.blobs, again.swept.freed_bytes) == ((), 0, 0)
    assert len(shelf.records("store_swept", "checkpoint_retired")) == before


def test_the_label_of_a_retired_checkpoint_stays_taken(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2")
    retention.collect(shelf.office, by="ops")
    with shelf.office.database.transaction() as connection, pytest.raises(ConflictError) as refused:
        registration.refuse_known(connection, found["v1"])
    assert refused.value.code == "version_retired"


def test_the_same_bytes_may_come_back_under_another_version(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2")
    retention.collect(shelf.office, by="ops")
    again = shelf.put("v3", {"own": b"v1", "shared": b"shared" * 100})
    assert again.digest == found["v1"].digest
    assert checkpoints.check_bytes(shelf.office, again).size_bytes == 602


def test_a_retired_digest_keeps_its_label_in_the_history(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2")
    retention.collect(shelf.office, by="ops")
    with shelf.office.database.reading() as connection:
        assert [version_of(connection, found[v].digest) for v in ("v1", "v2")] == ["v1", "v2"]


def test_a_retired_checkpoint_is_named_as_such(shelf: Shelf) -> None:
    fill(shelf, "v1", "v2")
    retention.collect(shelf.office, by="ops")
    with pytest.raises(NotFoundError) as missing:
        checkpoints.find(shelf.office, service="fraud", version="v1")
    assert missing.value.code == "checkpoint_retired"


def test_a_retired_checkpoint_is_not_deployed_by_whoever_looked_it_up_before(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2")
    retention.collect(shelf.office, by="ops")
    with shelf.office.database.transaction() as connection, pytest.raises(ConflictError) as refused:
        deployments._refuse(connection, Place(service="fraud", env="prod"), found["v1"].digest, "v1")
    assert refused.value.code == "checkpoint_retired"


def test_a_verification_that_ends_after_its_checkpoint_was_retired_is_not_recorded(shelf: Shelf) -> None:
    found = fill(shelf, "v1", "v2")
    retention.collect(shelf.office, by="ops")
    before = len(shelf.records("checkpoint_verified"))
    with pytest.raises(ConflictError) as refused:
        checkpoints.prove(shelf.office, found["v1"])
    assert refused.value.code == "checkpoint_retired"
    assert len(shelf.records("checkpoint_verified")) == before


def test_nothing_is_collected_while_something_comes_in(shelf: Shelf) -> None:
    fill(shelf, "v1", "v2")
    with shelf.office.store.ingesting(), pytest.raises(ConflictError) as refused:
        retention.collect(shelf.office, by="ops")
    assert refused.value.code == "store_busy"
    assert shelf.versions() == ["v1", "v2"]


# --- what nothing refers to


def leave(shelf: Shelf, name: str, age_s: int) -> Path:
    path = shelf.office.store.blobs / name
    path.write_bytes(b"left")
    at = shelf.clock.now().wall_ns - age_s * 10**9
    os.utime(path, ns=(at, at))
    return path


def test_what_vanishes_during_a_look_is_skipped(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary of an `add` beside it has its own name by the time that it is looked at."""
    checkpoint = fill(shelf, "v1")["v1"]
    store = shelf.office.store
    store.aside.mkdir()
    for folder in (store.blobs, store.views, store.aside):
        (folder / ".claimed-1.1").touch()
    scandir = os.scandir

    @contextlib.contextmanager
    def listed_before(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(folder) as found:
            entries = list(found)
        for entry in entries:
            if entry.name.startswith(".claimed-") or entry.name == checkpoint.golden_sha256:
                os.unlink(entry.path)
        yield iter(entries)

    monkeypatch.setattr(os, "scandir", listed_before)
    assert retention.plan(shelf.office).leaving == ()
    (store.blobs / checkpoint.golden_sha256).touch()
    assert checkpoint.files[0].size_bytes in store._sizes()


def test_an_orphaned_blob_goes_once_it_is_an_hour_old(shelf: Shelf) -> None:
    shelf.put("v1", {"a": b"a"})
    old, young = leave(shelf, "0" * 64, 3601), leave(shelf, "1" * 64, 3600)
    future = leave(shelf, "2" * 64, -3601)
    done = retention.collect(shelf.office, by="ops")
    assert (old.exists(), young.exists(), future.exists(), done.swept.blobs) == (False, True, True, 1)
    assert [r.body for r in shelf.records("store_swept")] == [
        {"blobs": 1, "views": 0, "temporaries": 0, "aside": 0, "freed_bytes": 4, "by": "ops"}
    ]


def test_a_temporary_file_goes_when_its_process_is_dead_and_it_is_an_hour_old(shelf: Shelf) -> None:
    shelf.put("v1", {"a": b"a"})
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone, young = leave(shelf, f".ingest.{dead.pid}", 3601), leave(shelf, f".young.{dead.pid}", 0)
    alive = leave(shelf, f".ingest.{os.getpid()}", 3601)
    retention.collect(shelf.office, by="ops")
    assert (gone.exists(), young.exists(), alive.exists()) == (False, True, True)


def test_a_view_that_is_a_link_goes_and_what_it_leads_to_stays(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put("v1", {"a": b"a"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"mine")
    (shelf.office.store.views / ("0" * 64)).symlink_to(outside)
    assert retention.collect(shelf.office, by="ops").swept.views == 1
    assert (outside / "mine").read_bytes() == b"mine"


def test_what_is_not_named_as_a_blob_is_left_alone(shelf: Shelf) -> None:
    shelf.put("v1", {"a": b"a"})
    other = leave(shelf, "README", 10 * DAY_S)
    retention.collect(shelf.office, by="ops")
    assert other.exists()


def test_manifest_and_config_stay_and_go_with_their_checkpoint(shelf: Shelf) -> None:
    of_v1 = shelf.described(shelf.put("v1", {"a": b"1"}))
    of_v2 = shelf.described(shelf.put("v2", {"a": b"2"}))
    shelf.clock.advance(KEPT_S)
    retention.collect(shelf.office, by="ops")
    assert of_v2 <= shelf.blobs()
    assert of_v1.isdisjoint(shelf.blobs())


def test_a_manifest_that_is_gone_takes_nothing_with_it(shelf: Shelf) -> None:
    """What a checkpoint needs follows from its row, not from a blob that may be spoilt; the manifest is made anew."""
    kept = shelf.put("v2", {"a": b"2"})
    needed = shelf.needed()
    shelf.clock.advance(KEPT_S)
    shelf.blob(kept.oci_manifest.removeprefix("sha256:")).unlink()
    retention.collect(shelf.office, by="ops")
    assert shelf.blobs() == needed


# --- killed


COLLECTOR = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from shelf import DAY_S, START, SetClock, office_of
from rearguard.officer import retention
with office_of(Path(sys.argv[1]), SetClock(START.plus(10 * DAY_S * 10**9))) as office:
    retention.collect(office, by="ops")
"""


def collector(shelf: Shelf, fault: str) -> int:
    command = [sys.executable, "-c", COLLECTOR, str(shelf.office.state), str(Path(__file__).parent)]
    return subprocess.run(command, env={**os.environ, faults.VARIABLE: f"gc:{fault}"}, timeout=120).returncode


@pytest.mark.parametrize("point", [*faults.POINTS["gc"], "blob_unlinked:2"])
def test_a_killed_collection_loses_nothing_and_is_completed_by_a_second(shelf: Shelf, point: str) -> None:
    """v1 and v2 may go; v3 and churn's c1 stay, and share a blob with them."""
    fill(shelf, "v1", "v2", "v3")
    shelf.put("c1", {"own": b"c1", "shared": b"shared" * 100}, service="churn")
    for path in (*shelf.office.store.blobs.iterdir(), *shelf.office.store.views.iterdir()):
        os.utime(path, ns=(shelf.clock.now().wall_ns,) * 2)  # so that nothing goes for its age alone
    assert collector(shelf, point) == -signal.SIGKILL
    assert set(shelf.versions()) >= {"v3", "c1"}
    for version, service in (("v3", "fraud"), ("c1", "churn")):
        checkpoints.check_bytes(shelf.office, checkpoints.find(shelf.office, service=service, version=version))
    assert shelf.needed() <= shelf.blobs()
    retention.collect(shelf.office, by="ops")
    assert shelf.versions() == ["v3", "c1"]
    assert shelf.blobs() == shelf.needed()
    assert len(shelf.views()) == 2
    assert [r.body["version"] for r in shelf.records("checkpoint_retired")] == ["v1", "v2"]
    with shelf.office.database.reading() as connection:
        assert retired.unswept(connection) == (frozenset(), frozenset())
    exported = yaml.safe_load((shelf.office.state / "checkpoint_registry.yaml").read_text(encoding="utf-8"))
    assert [c["version"] for c in exported["checkpoints"]] == ["v3", "c1"]


# --- many


def test_ten_thousand_checkpoints_are_judged_in_seconds(shelf: Shelf) -> None:
    """A quadratic look takes minutes. The limit leaves room for a busy machine."""
    with shelf.office.database.transaction() as connection:
        for number in range(10_000):
            name = hashlib.sha256(str(number).encode()).hexdigest()
            manifest: list[dict[str, Any]] = [{"path": f"p{n}", "sha256": name, "size_bytes": 1} for n in range(4)]
            connection.execute(
                sql(
                    "INSERT INTO checkpoints (digest, service, version, format, manifest, golden_sha256, added_at, "
                    "verified_at) VALUES (:d, 'fraud', :v, 'onnx', :m, :d, :at, :at)"
                ),
                {
                    "d": f"sha256:{name}",
                    "v": f"v{number}",
                    "m": json.dumps(manifest),
                    "at": registry.encode_instant(START),
                },
            )
    shelf.clock.advance(KEPT_S)
    began = time.monotonic()
    assert len(going(shelf)) == 9_999
    assert time.monotonic() - began < 20
