"""The background scrub: proofs are renewed in time, slowly and past the page cache, and somebody is paged when one fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from one_place import MODEL, REQUEST, SETTINGS

from rearguard.checkpoints.store import ContentStore
from rearguard.checkpoints.verification import Verification
from rearguard.config.templates import playbook_template
from rearguard.database import open_database
from rearguard.errors import DependencyError, IntegrityError
from rearguard.evidence.log import read
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.service import Digest
from rearguard.model.time import Instant
from rearguard.officer import checkpoints, messages, registration
from rearguard.officer.office import Office
from rearguard.officer.scrub import Scrub

HALF_A_DAY_S = 43_200


class SetClock:
    """`ports.Clock` that stands still until it is advanced."""

    def __init__(self, now: Instant) -> None:
        self._now = now

    def now(self) -> Instant:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self._now = self._now.plus(int(seconds * 10**9))


ADDED = Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=10**15, boot_id="boot")


@contextmanager
def office_of(state: Path, clock: SetClock) -> Iterator[Office]:
    office = Office(state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=clock)
    try:
        yield office
    finally:
        office.close()


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1 and v2, proven at the same instant; only copied."""
    folder = tmp_path_factory.mktemp("registered")
    state = folder / "state"
    state.mkdir()
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    golden = folder / "golden.jsonl"
    golden.write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    with office_of(state, SetClock(ADDED)) as office:
        for version in ("v1", "v2"):
            source = folder / version
            source.mkdir()
            shutil.copy(MODEL, source / "model.onnx")
            (source / "note.txt").write_text(version, encoding="utf-8")
            registration.add(office, source, service="fraud", version=version, golden_file=golden)
    return state


class Bench:
    """An office at an instant, and its scrub."""

    def __init__(self, office: Office, clock: SetClock) -> None:
        self.office = office
        self.clock = clock
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.scrub = Scrub(office, lambda name, fields: self.told.append((name, fields)))

    def named(self, version: str) -> Checkpoint:
        return checkpoints.find(self.office, service="fraud", version=version)

    def verified(self) -> list[dict[str, Any]]:
        """Bodies of `checkpoint_verified`, without the first of each checkpoint."""
        with self.office.database.reading() as connection:
            found = [record.body for record in read(connection) if record.kind == "checkpoint_verified"]
        return [dict(body) for body in found[2:]]

    def spoil(self, version: str) -> None:
        blob = self.office.store.blobs / self.named(version).files[0].sha256
        if version == "v2":  # the model itself is shared
            blob = self.office.store.blobs / self.named(version).files[1].sha256
        blob.chmod(0o644)
        blob.write_bytes(b"x" * blob.stat().st_size)
        blob.chmod(0o444)


@pytest.fixture
def bench(registered: Path, tmp_path: Path) -> Iterator[Bench]:
    state = Path(shutil.copytree(registered, tmp_path / "state", symlinks=True))
    clock = SetClock(ADDED)
    with office_of(state, clock) as office:
        yield Bench(office, clock)


def test_nothing_is_proven_again_before_half_of_the_interval(bench: Bench) -> None:
    bench.clock.advance(HALF_A_DAY_S / 2 - 1)
    bench.scrub.turn()
    assert bench.verified() == []


def test_proofs_of_one_instant_are_renewed_one_after_the_other(bench: Bench) -> None:
    """Two: slots of 43 200 / 4 = 10 800 s, the first at 21 600 s."""
    renewed = []
    for _ in range(5):
        bench.clock.advance(10_800)
        bench.scrub.turn()
        renewed.append([body["version"] for body in bench.verified()])
    assert renewed == [[], ["v1"], ["v1", "v2"], ["v1", "v2"], ["v1", "v2", "v1"]]


def test_everything_that_is_too_old_is_renewed_in_one_turn(bench: Bench) -> None:
    """After the officer was away."""
    bench.clock.advance(3 * HALF_A_DAY_S)
    bench.scrub.turn()
    assert sorted(body["version"] for body in bench.verified()) == ["v1", "v2"]
    assert [row.age_s for row in checkpoints.list_checkpoints(bench.office)] == [0, 0]


def test_it_reads_past_the_page_cache_and_says_so(bench: Bench) -> None:
    store = bench.office.store.blobs
    try:
        os.close(os.open(next(store.iterdir()), os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    bench.clock.advance(HALF_A_DAY_S / 2)
    bench.scrub.turn()
    (body,) = bench.verified()
    assert (body["ok"], body["hash_mode"], body["reproducible"]) == (True, "direct", "bitwise")


def test_a_candidate_that_went_bad_pages_somebody_once(bench: Bench) -> None:
    bench.spoil("v1")  # v2 shares the model
    bench.clock.advance(2 * HALF_A_DAY_S)
    bench.scrub.turn()
    bench.clock.advance(2 * HALF_A_DAY_S)
    bench.scrub.turn()
    told = messages.list_messages(bench.office)
    assert sorted((m.cause, m.severity, m.fields["version"], m.fields["code"]) for m in told) == sorted(
        (f"checkpoint:{bench.named(version).digest}", "page", version, "blob_altered") for version in ("v1", "v2")
    )
    assert bench.told == [
        ("checkpoint_failed", {"service": "fraud", "version": version, "code": "blob_altered"})
        for version in ("v1", "v2")
    ]


def test_whoever_finds_a_candidate_at_fault_tells_it_once(bench: Bench) -> None:
    """The proof before a standby is loaded, a person, a rollback: after it the scrub never looks at it again."""
    bench.spoil("v2")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            checkpoints.verify(bench.office, bench.named("v2"))
    with pytest.raises(IntegrityError):
        checkpoints.check_bytes(bench.office, bench.named("v2"))
    (told,) = messages.list_messages(bench.office)
    assert told.title == "fraud v2: no rollback target any more, blob_altered"
    assert (told.severity, told.cause) == ("page", f"checkpoint:{bench.named('v2').digest}")


# --- what the surroundings did


def note_failure(bench: Bench, version: str, code: str) -> None:
    failed = Verification(ok=False, code=code, message="", load_ms=None, peak_rss_bytes=None, receipt="")
    checkpoints._record(bench.office, bench.named(version), failed)


def test_a_load_that_failed_is_tried_again_ever_more_seldom_and_its_page_is_resolved(bench: Bench) -> None:
    """After 600 s, and when it failed twice 1200 s later."""
    note_failure(bench, "v1", "load_failed")
    bench.clock.advance(300)
    note_failure(bench, "v1", "load_failed")
    bench.clock.advance(1199)
    bench.scrub.turn()
    assert bench.named("v1").failure == "load_failed"
    bench.clock.advance(1)
    bench.scrub.turn()
    assert bench.named("v1").failure == ""
    assert [m.action for m in messages.list_messages(bench.office)] == ["open", "resolve"]


@pytest.mark.parametrize("code", ["blob_missing", "golden_malformed"])
def test_bytes_at_fault_do_not_mend_by_themselves_and_are_not_read_again(bench: Bench, code: str) -> None:
    note_failure(bench, "v1", code)
    bench.clock.advance(HALF_A_DAY_S / 2 - 1)
    bench.scrub.turn()
    assert bench.named("v1").failure == code


class Unwritable(ContentStore):
    """The views of one checkpoint cannot be built for now."""

    blocked: str = ""

    def view(self, digest: Digest, files: Iterable[CheckpointFile]) -> Path:
        if digest == self.blocked:
            raise DependencyError("store_not_written", "cannot build the view", "make it writable")
        return super().view(digest, files)


def test_a_view_that_cannot_be_written_takes_no_proof_away_and_keeps_no_other_waiting(bench: Bench) -> None:
    store = Unwritable(bench.office.state)
    store.blocked = bench.named("v1").digest
    bench.office.store = store
    bench.clock.advance(2 * HALF_A_DAY_S)
    with pytest.raises(DependencyError):
        bench.scrub.turn()
    bench.scrub.turn()
    assert [body["version"] for body in bench.verified()] == ["v2"]
    assert (bench.named("v1").failure, bench.named("v1").verified_at is None) == ("", False)
    store.blocked = ""
    bench.scrub.turn()
    assert [body["version"] for body in bench.verified()] == ["v2", "v1"]


def test_one_bad_candidate_does_not_keep_the_next_from_being_proven(bench: Bench) -> None:
    bench.spoil("v2")
    bench.clock.advance(2 * HALF_A_DAY_S)
    bench.scrub.turn()
    assert {body["version"]: body["ok"] for body in bench.verified()} == {"v1": True, "v2": False}


def test_a_checkpoint_that_is_proven_again_resolves_its_page(bench: Bench) -> None:
    content = (bench.office.store.blobs / bench.named("v2").files[1].sha256).read_bytes()
    bench.spoil("v2")
    bench.clock.advance(2 * HALF_A_DAY_S)
    bench.scrub.turn()
    blob = bench.office.store.blobs / bench.named("v2").files[1].sha256
    blob.chmod(0o644)
    blob.write_bytes(content)
    blob.chmod(0o444)
    checkpoints.verify(bench.office, bench.named("v2"))
    assert [m.action for m in messages.list_messages(bench.office)] == ["open", "resolve"]


def test_an_altered_view_is_told_and_costs_no_rollback_target(bench: Bench) -> None:
    view = bench.office.store.view(bench.named("v1").digest, bench.named("v1").files)
    (view / "model.onnx").unlink()
    bench.clock.advance(HALF_A_DAY_S / 2)
    bench.scrub.turn()
    assert [(body["version"], body["ok"], body["code"]) for body in bench.verified()] == [
        ("v1", False, "view_altered"),
        ("v1", True, ""),
    ]
    assert [(m.severity, m.fields["code"]) for m in messages.list_messages(bench.office)] == [("page", "view_altered")]


def test_a_scrub_that_was_stopped_proves_nothing_and_takes_no_proof_away(bench: Bench) -> None:
    bench.clock.advance(2 * HALF_A_DAY_S)
    bench.scrub.stop()
    bench.scrub.turn()
    assert bench.verified() == []
    assert [row.checkpoint.failure for row in checkpoints.list_checkpoints(bench.office)] == ["", ""]


def test_an_officer_that_was_replaced_proves_nothing_more(bench: Bench) -> None:
    bench.clock.advance(2 * HALF_A_DAY_S)
    Scrub(bench.office, lambda _name, _fields: None, allowed=lambda: False).turn()
    assert bench.verified() == []


# --- the bytes alone


def test_right_bytes_alone_never_make_a_proof(bench: Bench) -> None:
    """A checkpoint that does not repeat its golden predictions has all its bytes."""
    checkpoint = bench.named("v1")
    failed = Verification(ok=False, code="golden_differs", message="", load_ms=None, peak_rss_bytes=None, receipt="")
    checkpoints._record(bench.office, checkpoint, failed)
    assert checkpoints.check_bytes(bench.office, checkpoint).size_bytes == checkpoint.size_bytes
    found = bench.named("v1")
    assert (found.verified_at, found.failure) == (None, "golden_differs")


def test_right_bytes_alone_make_no_proof_younger(bench: Bench) -> None:
    bench.clock.advance(100)
    checkpoints.check_bytes(bench.office, bench.named("v1"))
    assert [row.age_s for row in checkpoints.list_checkpoints(bench.office)] == [100, 100]
    assert bench.verified() == []
