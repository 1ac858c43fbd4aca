"""The second copy: on another disk, read back, mended when it rots, and never in anybody's way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from shelf import DAY_S, SetClock, Shelf, office_of, write_settings

from rearguard.checkpoints import copies, faults
from rearguard.checkpoints.hashing import Reading
from rearguard.checkpoints.mirror import MARKER, FolderMirror
from rearguard.errors import ConfigError, ConflictError, DependencyError, IntegrityError, RefusedError
from rearguard.officer import messages, mirroring, repairs, retention
from rearguard.officer.mirroring import Mirroring
from rearguard.ports import CheckpointCopy
from rearguard.testing.conformance import CheckpointCopyConformance

POLICY = "{{mirror: {folder}, retention: {{keep_last: 1, keep: 240 h}}}}"
HALF_A_DAY_S = 43_200


class TestFolderMirror(CheckpointCopyConformance):
    @pytest.fixture
    def place(self, tmp_path: Path) -> CheckpointCopy:
        (tmp_path / "copy").mkdir()
        return FolderMirror(tmp_path / "copy", "store_1")

    @pytest.fixture
    def same_place(self, tmp_path: Path) -> CheckpointCopy:
        return FolderMirror(tmp_path / "copy", "store_1")

    @pytest.fixture
    def foreign_place(self, tmp_path: Path) -> CheckpointCopy:
        return FolderMirror(tmp_path / "copy", "store_2")

    @pytest.fixture
    def absent_place(self, tmp_path: Path) -> CheckpointCopy:
        return FolderMirror(tmp_path / "absent", "store_1")

    def spoil(self, place: CheckpointCopy, sha256: str) -> None:
        assert isinstance(place, FolderMirror)
        spoil(place.folder / "blobs" / "sha256" / sha256)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


class Bench(Shelf):
    """A shelf with a second folder."""

    @property
    def mirror(self) -> Path:
        return self.folder / "mirror"

    def turn(self) -> None:
        Mirroring(self.office, lambda _name, _fields: None).turn()

    def there(self) -> set[str]:
        return {path.name for path in (self.mirror / "blobs" / "sha256").iterdir()}

    def copy_of(self, sha256: str) -> Path:
        return self.mirror / "blobs" / "sha256" / sha256

    def standing(self) -> mirroring.MirrorStanding:
        return mirroring.standing(self.office)

    def pages(self) -> list[tuple[str, str, str]]:
        told = messages.list_messages(self.office)
        return [(m.cause.split(":")[0], m.fields.get("code", ""), m.action) for m in told]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    clock = SetClock()
    (tmp_path / "mirror").mkdir()
    state = write_settings(tmp_path / "state", POLICY.format(folder=tmp_path / "mirror"))
    with office_of(state, clock) as office:
        yield Bench(office, clock, tmp_path)


def test_every_blob_of_every_checkpoint_is_copied_and_noted(bench: Bench) -> None:
    first = bench.put("v1", {"a": b"a" * 5000, "shared": b"s"})
    second = bench.put("c1", {"b": b"b", "shared": b"s"}, service="churn")
    bench.turn()
    assert bench.there() == bench.blobs() == bench.needed()
    found = bench.standing()
    assert (found.copied, found.behind, found.failure, found.in_step_at) == (2, (), "", bench.clock.now())
    bodies = [record.body for record in bench.records("checkpoint_copied")]
    assert sorted(body["digest"] for body in bodies) == sorted([first.digest, second.digest])
    assert bodies[0]["domain"] == found.domain != ""


def test_the_newest_checkpoint_is_copied_first(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.put("v2", {"a": b"2"})
    bench.turn()
    assert [record.body["version"] for record in bench.records("checkpoint_copied")] == ["v2", "v1"]


def test_the_registry_lies_beside_the_blobs(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.turn()
    found = yaml.safe_load((bench.mirror / "checkpoint_registry.yaml").read_text(encoding="utf-8"))
    assert [entry["version"] for entry in found["checkpoints"]] == ["v1"]


def test_a_second_turn_writes_nothing(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.turn()
    before = {path: path.stat().st_mtime_ns for path in bench.mirror.rglob("*")}
    records = len(bench.records("checkpoint_copied"))
    bench.clock.advance(60)
    bench.turn()
    assert {path: path.stat().st_mtime_ns for path in bench.mirror.rglob("*")} == before
    assert len(bench.records("checkpoint_copied")) == records


def test_an_altered_copy_is_copied_anew_and_paged(bench: Bench) -> None:
    checkpoint = bench.put("v1", {"a": b"a" * 5000})
    bench.turn()
    copy = bench.copy_of(checkpoint.files[0].sha256)
    spoil(copy)
    bench.clock.advance(HALF_A_DAY_S)
    bench.turn()
    assert copy.read_bytes() == b"a" * 5000
    assert bench.pages() == [("copy", "blob_altered", "open")]
    mended = bench.records("checkpoint_copied")[-1].body["mended"]
    assert mended == [{"sha256": checkpoint.files[0].sha256, "code": "blob_altered"}]
    assert bench.standing().copied == 1


def test_a_copy_is_not_read_back_before_half_of_the_interval(bench: Bench) -> None:
    checkpoint = bench.put("v1", {"a": b"a" * 5000})
    bench.turn()
    spoil(bench.copy_of(checkpoint.files[0].sha256))
    bench.clock.advance(HALF_A_DAY_S / 2 - 1)
    bench.turn()
    assert bench.pages() == []
    bench.clock.advance(1)
    bench.turn()
    assert bench.pages() == [("copy", "blob_altered", "open")]


def test_a_blob_that_is_at_fault_in_the_store_is_not_copied_over(bench: Bench) -> None:
    bad = bench.put("v1", {"a": b"a" * 5000})
    bench.put("v2", {"a": b"b"})
    spoil(bench.blob(bad.files[0].sha256))
    bench.turn()
    found = bench.standing()
    assert (found.copied, found.behind, found.failure) == (1, ("fraud v1",), "")
    assert bad.files[0].sha256 not in bench.there()


def test_a_good_copy_outlives_the_blob_in_the_store(bench: Bench) -> None:
    """It is what a repair takes."""
    checkpoint = bench.put("v1", {"a": b"a" * 5000})
    bench.turn()
    spoil(bench.blob(checkpoint.files[0].sha256))
    bench.clock.advance(2 * HALF_A_DAY_S)
    bench.turn()
    assert bench.copy_of(checkpoint.files[0].sha256).read_bytes() == b"a" * 5000


def test_blobs_of_a_retired_checkpoint_leave_the_second_copy(bench: Bench) -> None:
    bench.put("v1", {"a": b"1", "shared": b"s"})
    bench.put("v2", {"a": b"2", "shared": b"s"})
    bench.turn()
    bench.clock.advance(10 * DAY_S)
    retention.collect(bench.office, by="ops")
    bench.turn()
    assert bench.there() == bench.needed() == bench.blobs()
    with bench.office.database.reading() as connection:
        assert len(copies.of_folder(connection, str(bench.mirror))) == 1


def test_what_is_no_blob_of_ours_is_left_alone(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.turn()
    notes = (bench.mirror / "notes.txt", bench.copy_of("README"))
    for note in notes:
        note.write_text("mine", encoding="utf-8")
    bench.turn()
    assert all(note.exists() for note in notes)


def test_a_folder_that_lost_its_marker_is_not_written_to(bench: Bench) -> None:
    """As a mount point whose disk is away: else the disk below it would be filled."""
    bench.put("v1", {"a": b"1"})
    bench.turn()
    shutil.rmtree(bench.mirror)
    bench.mirror.mkdir()
    bench.put("v2", {"a": b"2"})
    for _ in range(2):
        bench.clock.advance(60)
        with pytest.raises(DependencyError) as failed:
            bench.turn()
        assert failed.value.code == "mirror_unavailable"
    assert list(bench.mirror.iterdir()) == []
    assert bench.pages() == [("mirror", "mirror_unavailable", "open")]
    assert bench.standing().failure == "mirror_unavailable"


def test_a_new_disk_is_filled_once_somebody_says_so(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.turn()
    shutil.rmtree(bench.mirror)
    bench.mirror.mkdir()
    found = mirroring.bring_in_step(bench.office, anew=True)
    assert (found.copied, found.failure) == (1, "")
    assert bench.there() == bench.needed()


def test_a_disk_that_goes_away_in_the_middle_is_not_written_to(bench: Bench, tmp_path: Path) -> None:
    copy = FolderMirror(bench.mirror, "store_1")
    copy.prepare(known=False, anew=False)
    (bench.mirror / MARKER).unlink()
    with pytest.raises(DependencyError) as failed:
        copy.put("0" * 64, [b"x"])
    assert failed.value.code == "mirror_unavailable"
    assert list(bench.copy_of("x").parent.iterdir()) == []


def test_an_outage_that_is_over_is_resolved(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.turn()
    bench.mirror.rename(bench.folder / "away")
    with pytest.raises(DependencyError):
        bench.turn()
    (bench.folder / "away").rename(bench.mirror)
    bench.turn()
    assert bench.pages() == [("mirror", "mirror_unavailable", "open"), ("mirror", "", "resolve")]
    assert bench.standing().failure == ""


@pytest.mark.parametrize("what", ["another store", "something else", "a broken marker"])
def test_a_folder_of_somebody_else_is_refused_and_untouched(bench: Bench, what: str) -> None:
    bench.put("v1", {"a": b"1"})
    files = {
        "another store": (MARKER, '{"format": "rearguard/mirror/1", "store": "store_other"}'),
        "something else": ("photos", "mine"),
        "a broken marker": (MARKER, "[" * 100_000),
    }
    name, content = files[what]
    (bench.mirror / name).write_text(content, encoding="utf-8")
    with pytest.raises(RefusedError) as refused:
        bench.turn()
    assert refused.value.code == ("mirror_not_empty" if what == "something else" else "mirror_foreign")
    assert [path.name for path in bench.mirror.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_told_as_such(bench: Bench) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    bench.put("v1", {"a": b"1"})
    bench.mirror.chmod(0o555)
    with pytest.raises(DependencyError) as failed:
        bench.turn()
    bench.mirror.chmod(0o755)
    assert failed.value.code == "mirror_unavailable"


def test_a_file_in_place_of_the_folder_is_told_as_such(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.mirror.rmdir()
    bench.mirror.write_bytes(b"")
    with pytest.raises(DependencyError) as failed:
        bench.turn()
    assert failed.value.code == "mirror_unavailable"


def test_a_full_disk_is_told_as_such_and_leaves_nothing_half_written(bench: Bench) -> None:
    """Of the kernel's own making: writing to /dev/full fails with ENOSPC."""
    copy = FolderMirror(bench.mirror, "store_1")
    copy.prepare(known=False, anew=False)
    (bench.copy_of(f".put.{os.getpid()}.{threading.get_ident()}")).symlink_to("/dev/full")
    with pytest.raises(DependencyError) as failed:
        copy.put("0" * 64, [b"x" * 100_000])
    assert failed.value.code == "mirror_full"
    assert list(bench.copy_of("x").parent.iterdir()) == []


def test_without_a_declared_folder_nothing_is_done(tmp_path: Path) -> None:
    clock = SetClock()
    with office_of(write_settings(tmp_path / "state", "{}"), clock) as office:
        Mirroring(office, lambda _name, _fields: None).turn()
        assert mirroring.standing(office).folder == ""
        with pytest.raises(ConfigError) as refused:
            mirroring.bring_in_step(office)
    assert refused.value.code == "mirror_not_declared"


def test_copies_of_a_folder_that_is_declared_no_longer_count_no_longer(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.turn()
    write_settings(bench.office.state, "{}")
    bench.office.reread()
    bench.turn()
    with bench.office.database.reading() as connection:
        assert copies.by_checkpoint(connection) == {}


def test_a_copy_that_was_stopped_is_no_failure_and_takes_nothing_away(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    bench.turn()
    bench.put("v2", {"a": b"2"})
    stopped = Mirroring(bench.office, lambda _name, _fields: None)
    stopped.stop()
    stopped.turn()
    assert (bench.standing().copied, bench.standing().failure, bench.pages()) == (1, "", [])


def test_a_large_copy_is_stopped_between_two_reads(bench: Bench) -> None:
    bench.put("v1", {"a": os.urandom(9_000_000)})
    stop = threading.Event()
    reading = Reading(stop=stop, progress=lambda _count: stop.set())
    work = mirroring._Pass(bench.office, str(bench.mirror), reading, lambda _name, _fields: None)
    with pytest.raises(ConflictError) as stopped:
        work.run()
    assert stopped.value.code == "hash_stopped"
    assert not any(path.name.startswith(".put") for path in bench.copy_of("x").parent.iterdir())


def test_an_officer_that_was_replaced_copies_nothing_more(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    Mirroring(bench.office, lambda _name, _fields: None, allowed=lambda: False).turn()
    assert bench.there() == set()


def test_one_process_at_a_time_keeps_it(bench: Bench) -> None:
    bench.put("v1", {"a": b"1"})
    with mirroring._alone(bench.office.state), pytest.raises(ConflictError) as refused:
        mirroring.bring_in_step(bench.office)
    assert refused.value.code == "mirror_busy"


def test_whoever_only_reads_leaves_alone_what_is_being_written(bench: Bench) -> None:
    """As `checkpoint repair` beside the officer's copying; what a dead writer left is swept by the next pass."""
    bench.put("v1", {"a": b"1"})
    bench.turn()
    unfinished = bench.copy_of(".put.1.2")
    unfinished.write_bytes(b"half")
    assert repairs.repair(bench.office, service=None, version=None, by="ops") == ()
    assert unfinished.exists()
    bench.turn()
    assert not unfinished.exists()


def test_a_disk_that_does_not_keep_what_it_is_given_is_no_second_copy(bench: Bench) -> None:
    class Forgetful(FolderMirror):
        def verify(self, sha256: str, size_bytes: int) -> None:
            raise IntegrityError("blob_altered", "never what was written")

    checkpoint = bench.put("v1", {"a": b"1"})
    copy = Forgetful(bench.mirror, "store_1")
    copy.prepare(known=False, anew=False)
    work = mirroring._Pass(bench.office, str(bench.mirror), Reading(), lambda _name, _fields: None)
    with pytest.raises(DependencyError) as failed:
        work._copy(copy, checkpoint.digest)
    assert failed.value.code == "mirror_unavailable"
    assert bench.standing().copied == 0


KEEPER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from shelf import SetClock, office_of
from rearguard.officer.mirroring import Mirroring
with office_of(Path(sys.argv[1]), SetClock()) as office:
    Mirroring(office, lambda _name, _fields: None).turn()
"""


@pytest.mark.parametrize("point", [*faults.POINTS["mirror"], "before_copy:2", "copied:5"])
def test_a_copy_that_was_killed_is_completed_by_the_next(bench: Bench, point: str) -> None:
    bench.put("v1", {"a": b"1", "b": b"22"})
    bench.put("v2", {"a": b"333"})
    command = [sys.executable, "-c", KEEPER, str(bench.office.state), str(Path(__file__).parent)]
    environment = {**os.environ, faults.VARIABLE: f"mirror:{point}"}
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL
    with bench.office.database.reading() as connection:
        noted = copies.of_folder(connection, str(bench.mirror))
    assert len(noted) == (
        1 if point in ("noted", "copied:5") else 0
    )  # v2 comes first: a file, its golden set, manifest and config
    bench.turn()
    assert bench.there() == bench.needed()
    assert bench.standing().copied == 2
    assert len(bench.records("checkpoint_copied")) == 2
