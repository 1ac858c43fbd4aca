"""`checkpoint repair`: bytes that are at fault come back from the second copy, proven, or nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from shelf import SetClock, Shelf, office_of, write_settings
from test_mirror import spoil
from test_scrub import MODEL, REQUEST

from rearguard.errors import ConfigError, DependencyError
from rearguard.model.checkpoint import Checkpoint
from rearguard.officer import checkpoints, messages, mirroring, registration, repairs, retention
from rearguard.officer.repairs import Repair
from rearguard.officer.scrub import Scrub


class Bench(Shelf):
    """Two real checkpoints that share their model, both with a second copy."""

    def repair(self, version: str | None = None) -> tuple[Repair, ...]:
        service = "fraud" if version else None
        return repairs.repair(self.office, service=service, version=version, by="ops")

    def named(self, version: str) -> Checkpoint:
        return checkpoints.find(self.office, service="fraud", version=version)

    def model(self) -> Path:
        return self.blob(next(f.sha256 for f in self.named("v1").files if f.path == "model.onnx"))

    def copy_of(self, blob: Path) -> Path:
        return self.folder / "mirror" / "blobs" / "sha256" / blob.name

    def aside(self) -> list[Path]:
        folder = self.office.state / "aside"
        return sorted(folder.iterdir()) if folder.exists() else []

    def failures(self) -> list[str]:
        return [row.checkpoint.failure for row in checkpoints.list_checkpoints(self.office)]

    def verify_all(self) -> None:
        for row in checkpoints.list_checkpoints(self.office):
            checkpoints.prove(self.office, row.checkpoint)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copied")
    state = write_settings(folder / "state", "{mirror: ../mirror}")
    (folder / "mirror").mkdir()
    (folder / "golden.jsonl").write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    with office_of(state, SetClock()) as office:
        for version in ("v1", "v2"):
            source = folder / version
            source.mkdir()
            shutil.copy(MODEL, source / "model.onnx")
            (source / "note.txt").write_text(version, encoding="utf-8")
            registration.add(office, source, service="fraud", version=version, golden_file=folder / "golden.jsonl")
        mirroring.bring_in_step(office)
    return folder


@pytest.fixture
def bench(copied: Path, tmp_path: Path) -> Iterator[Bench]:
    for name in ("state", "mirror"):
        shutil.copytree(copied / name, tmp_path / name, symlinks=True)
    clock = SetClock()
    write_settings(tmp_path / "state", f"{{mirror: {tmp_path / 'mirror'}}}")
    with office_of(tmp_path / "state", clock) as office:
        # The folder has another name than the one that was brought in step; the bytes are those.
        mirroring.bring_in_step(office)
        yield Bench(office, clock, tmp_path)


def test_an_altered_blob_comes_back_and_the_checkpoint_is_verified_again(bench: Bench) -> None:
    before = bench.model().read_bytes()
    spoil(bench.model())
    bad = bench.model().read_bytes()
    bench.verify_all()
    assert bench.failures() == ["blob_altered", "blob_altered"]
    (row,) = bench.repair("v1")
    assert (row.ok, row.code, [(b.sha256, b.code) for b in row.blobs]) == (
        True,
        "",
        [(bench.model().name, "blob_altered")],
    )
    assert bench.model().read_bytes() == before
    assert bench.model().stat().st_mode & 0o777 == 0o444
    assert [path.read_bytes() for path in bench.aside()] == [bad]
    assert bench.failures() == ["", "blob_altered"]


def test_all_names_every_checkpoint_whose_bytes_failed(bench: Bench) -> None:
    """The second finds the shared blob mended, and is only verified."""
    bench.model().unlink()
    bench.verify_all()
    rows = bench.repair()
    assert [(row.version, row.ok, len(row.blobs)) for row in rows] == [("v1", True, 1), ("v2", True, 0)]
    assert bench.failures() == ["", ""]
    assert [record.body["blobs"] for record in bench.records("checkpoint_repaired")] == [
        [{"sha256": bench.model().name, "code": "blob_missing"}]
    ]


@pytest.mark.parametrize("how", ["missing", "truncated", "a link", "a folder", "writable", "golden"])
def test_whatever_is_wrong_with_a_blob_is_mended(bench: Bench, how: str) -> None:
    blob = bench.blob(bench.named("v1").golden_sha256) if how == "golden" else bench.model()
    content = blob.read_bytes()
    if how == "writable":
        blob.chmod(0o666)
    else:
        blob.chmod(0o644)
        blob.unlink()
    if how in ("truncated", "golden"):
        blob.write_bytes(content[:-1])
    elif how == "a link":
        blob.symlink_to("/etc/hostname")
    elif how == "a folder":
        blob.mkdir()
    bench.verify_all()
    assert bench.repair("v1")[0].ok
    assert blob.read_bytes() == content
    assert not blob.is_symlink()


def test_nothing_of_a_checkpoint_is_replaced_unless_all_of_it_can_be(bench: Bench) -> None:
    note = bench.blob(next(f.sha256 for f in bench.named("v1").files if f.path == "note.txt"))
    spoil(bench.model())
    spoil(note)
    spoil(bench.copy_of(note))
    before = (bench.model().read_bytes(), note.read_bytes())
    (row,) = bench.repair("v1")
    assert (row.ok, row.code, row.blobs) == (False, "no_good_copy", ())
    assert (bench.model().read_bytes(), note.read_bytes()) == before
    assert (bench.aside(), bench.records("checkpoint_repaired")) == ([], [])
    assert not any(path.name.startswith(".") for path in bench.office.store.blobs.iterdir())


def test_a_copy_that_is_gone_is_no_good_copy(bench: Bench) -> None:
    bench.copy_of(bench.model()).unlink()
    bench.model().unlink()
    assert bench.repair("v1")[0].code == "no_good_copy"


def test_one_that_cannot_be_mended_keeps_no_other_from_it(bench: Bench) -> None:
    first, second = (
        bench.blob(next(f.sha256 for f in bench.named(version).files if f.path == "note.txt"))
        for version in ("v1", "v2")
    )
    for blob in (first, second, bench.copy_of(first)):
        spoil(blob)
    bench.verify_all()
    assert [(row.version, row.ok) for row in bench.repair()] == [("v1", False), ("v2", True)]


def test_a_second_repair_takes_nothing(bench: Bench) -> None:
    spoil(bench.model())
    bench.repair("v1")
    (row,) = bench.repair("v1")
    assert (row.ok, row.blobs, len(bench.aside())) == (True, (), 1)


def test_a_disk_that_is_away_is_told_and_changes_nothing(bench: Bench) -> None:
    spoil(bench.model())
    (bench.folder / "mirror").rename(bench.folder / "away")
    with pytest.raises(DependencyError) as failed:
        bench.repair("v1")
    assert failed.value.code == "mirror_unavailable"


def test_without_a_second_copy_there_is_nothing_to_repair_from(bench: Bench) -> None:
    write_settings(bench.office.state, "{}")
    bench.office.reread()
    with pytest.raises(ConfigError) as refused:
        bench.repair("v1")
    assert refused.value.code == "mirror_not_declared"


def test_what_was_set_aside_goes_after_the_time_that_young_checkpoints_stay(bench: Bench) -> None:
    spoil(bench.model())
    bench.repair("v1")
    now = bench.clock.now().wall_ns
    (aside,) = bench.aside()
    assert retention.plan(bench.office).swept.aside == 1  # the test's clock is years ahead of the file's
    bench.clock.advance(-(now - aside.stat().st_ctime_ns) / 10**9)
    assert retention.plan(bench.office).swept.aside == 0
    assert os.path.lexists(aside)


@pytest.mark.parametrize("good", [True, False])
def test_the_page_of_the_scrub_names_the_repair_when_there_is_a_good_copy(bench: Bench, good: bool) -> None:
    if not good:
        write_settings(bench.office.state, "{}")
        bench.office.reread()
        mirroring.Mirroring(bench.office, lambda _name, _fields: None).turn()
    spoil(bench.model())
    bench.clock.advance(10**6)
    Scrub(bench.office, lambda _name, _fields: None).turn()
    told = [m.fields["next"] for m in messages.list_messages(bench.office) if m.cause.startswith("checkpoint:")]
    assert [line.startswith("rearguard checkpoint repair --service fraud --version v") for line in told] == [good] * 2
