"""Five hundred ways in which a stored checkpoint is not what was registered: each is told by its code, and none is loaded.

The generator is seeded by the test's number. Beside them 200 checkpoints that are what they were: none is refused.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from one_place import MODEL, REQUEST, SETTINGS

from rearguard.checkpoints import registry_file, verification
from rearguard.checkpoints.store import ContentStore, SourceFile
from rearguard.config.templates import playbook_template
from rearguard.database import open_database
from rearguard.edge import SystemClock
from rearguard.errors import IntegrityError
from rearguard.model.checkpoint import Checkpoint, CheckpointPolicy
from rearguard.model.service import Digest
from rearguard.model.time import Instant
from rearguard.officer import registration
from rearguard.officer.office import Office

NOBODY = 65534
CLOCK = SystemClock()
NOTE_START = """
import os
with open(os.environ["STARTED"], "a") as log:
    log.write("python\\n")
"""
"""What every Python process does here when it starts, so that a load cannot go unseen."""


class Case:
    """One registered checkpoint in a store that may be spoilt."""

    def __init__(self, state: Path, checkpoint: Checkpoint, rng: random.Random) -> None:
        self.state = state
        self.store = ContentStore(state)
        self.checkpoint = checkpoint
        self.rng = rng
        self.view = self.store.view(checkpoint.digest, checkpoint.files)

    def blob(self) -> Path:
        """One of the files, or the golden set."""
        names = [*(file.sha256 for file in self.checkpoint.files), self.checkpoint.golden_sha256]
        return self.store.blobs / self.rng.choice(names)

    def is_golden(self, blob: Path) -> bool:
        return blob.name == self.checkpoint.golden_sha256

    def file(self) -> Path:
        return self.store.blobs / self.rng.choice(self.checkpoint.files).sha256

    def link(self) -> Path:
        """A link of the view."""
        return self.view / self.rng.choice(self.checkpoint.files).path

    def judge(self) -> verification.Verification:
        return verification.verify(self.checkpoint, self.store, CheckpointPolicy(), CLOCK)


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


# --- bytes


def flip_a_bit(case: Case) -> str:
    blob = case.blob()
    content = bytearray(blob.read_bytes())
    content[case.rng.randrange(len(content))] ^= 1 << case.rng.randrange(8)
    rewrite(blob, content)
    return "blob_altered"


def flip_a_bit_and_put_the_time_back(case: Case) -> str:
    blob = case.blob()
    was = blob.stat()
    content = bytearray(blob.read_bytes())
    content[case.rng.randrange(len(content))] ^= 0x80
    rewrite(blob, content)
    os.utime(blob, ns=(was.st_atime_ns, was.st_mtime_ns))
    return "blob_altered"


def truncate(case: Case) -> str:
    """Of the golden set the length is not registered, so it is told by its digest."""
    blob = case.blob()
    content = blob.read_bytes()
    rewrite(blob, content[: case.rng.randrange(len(content))])
    return "blob_altered" if case.is_golden(blob) else "blob_truncated"


def grow(case: Case) -> str:
    blob = case.blob()
    rewrite(blob, blob.read_bytes() + case.rng.randbytes(case.rng.randint(1, 5000)))
    return "blob_altered"


def make_it_a_hole(case: Case) -> str:
    """As a file system may leave it after a power cut: the right length, and zeros."""
    blob = case.file()
    size = blob.stat().st_size
    rewrite(blob, b"")
    os.truncate(blob, size)
    return "blob_altered"


def swap_two_of_equal_size(case: Case) -> str:
    one, two = (case.store.blobs / file.sha256 for file in case.checkpoint.files if file.path.startswith("twin"))
    one.rename(case.state / "aside")
    two.rename(one)
    (case.state / "aside").rename(two)
    return "blob_swapped"


def put_another_of_equal_size_in_its_place(case: Case) -> str:
    """A blob that belongs to another checkpoint of the store."""
    twin = next(file for file in case.checkpoint.files if file.path.startswith("twin"))
    source = case.state / "source"
    source.write_bytes(case.rng.randbytes(twin.size_bytes))
    other = case.store.put_file(SourceFile(path="other.bin", source=source))
    rewrite(case.store.blobs / twin.sha256, source.read_bytes())
    assert other.sha256 != twin.sha256
    return "blob_swapped"


def take_it_away(case: Case) -> str:
    case.blob().unlink()
    return "blob_missing"


# --- what stands there


def let_others_write(case: Case) -> str:
    case.blob().chmod(0o444 | case.rng.choice([stat.S_IWGRP, stat.S_IWOTH]))
    return "blob_unsafe"


def give_it_away(case: Case) -> str:
    if os.geteuid() != 0:
        return let_others_write(case)
    os.chown(case.blob(), NOBODY, NOBODY)
    return "blob_unsafe"


def link_to_the_right_bytes(case: Case) -> str:
    blob = case.blob()
    blob.rename(case.state / "elsewhere")
    blob.symlink_to(case.rng.choice([str(case.state / "elsewhere"), "../../elsewhere"]))
    return "blob_unsafe"


def link_to_nothing_or_for_ever(case: Case) -> str:
    blob = case.blob()
    blob.unlink()
    blob.symlink_to(case.rng.choice(["nothing", blob.name, "/dev/zero", "/proc/self/mem"]))
    return "blob_unsafe"


def put_a_device(case: Case) -> str:
    blob = case.blob()
    blob.unlink()
    if os.geteuid() == 0:
        os.mknod(blob, 0o444 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: never ends
    else:
        os.mkfifo(blob, 0o444)
    return "blob_unsafe"


def put_a_pipe(case: Case) -> str:
    blob = case.blob()
    blob.unlink()
    os.mkfifo(blob, 0o444)
    return "blob_unsafe"


def put_a_folder(case: Case) -> str:
    blob = case.blob()
    content = blob.read_bytes()
    blob.unlink()
    blob.mkdir()
    (blob / blob.name).write_bytes(content)
    return "blob_unsafe"


# --- the view


def lead_a_link_elsewhere(case: Case) -> str:
    link = case.link()
    link.unlink()
    (case.state / "evil").write_bytes(case.rng.randbytes(100))
    link.symlink_to(case.rng.choice([case.state / "evil", Path("/dev/zero"), Path("nothing")]))
    return "view_altered"


def put_the_file_itself_in_place_of_its_link(case: Case) -> str:
    """The right bytes today; but no proof looks at them tomorrow."""
    link = case.link()
    content = link.read_bytes()
    link.unlink()
    link.write_bytes(content)
    return "view_altered"


def cross_two_links(case: Case) -> str:
    one, two = (case.view / file.path for file in case.checkpoint.files if file.path.startswith("twin"))
    first, second = one.readlink(), two.readlink()
    one.unlink(), two.unlink()
    one.symlink_to(second), two.symlink_to(first)
    return "view_altered"


def add_a_file_to_the_view(case: Case) -> str:
    (case.view / case.rng.choice(["model.pkl", "deep/sitecustomize.py", ".hidden"])).write_bytes(b"x")
    return "view_altered"


def take_a_link_away(case: Case) -> str:
    case.link().unlink()
    return "view_altered"


def lead_a_folder_of_the_view_elsewhere(case: Case) -> str:
    (case.view / "deep").rename(case.state / "deep")
    (case.view / "deep").symlink_to(case.state / "deep")
    return "view_altered"


def lead_the_whole_view_elsewhere(case: Case) -> str:
    """The same relative links in another folder lead to other bytes."""
    elsewhere = case.state / "evil" / "views"
    elsewhere.mkdir(parents=True)
    case.view.rename(elsewhere / case.view.name)
    case.view.symlink_to(elsewhere / case.view.name)
    return "view_altered"


def put_a_file_in_place_of_the_view(case: Case) -> str:
    shutil.rmtree(case.view)
    case.view.write_bytes(b"x")
    return "view_altered"


CORRUPTIONS: tuple[Callable[[Case], str], ...] = (
    *(flip_a_bit,) * 6,  # the commonest
    flip_a_bit_and_put_the_time_back,
    *(truncate,) * 3,
    grow,
    make_it_a_hole,
    *(swap_two_of_equal_size, put_another_of_equal_size_in_its_place),
    take_it_away,
    *(let_others_write, give_it_away, link_to_the_right_bytes, link_to_nothing_or_for_ever),
    *(put_a_device, put_a_pipe, put_a_folder),
    *(lead_a_link_elsewhere, put_the_file_itself_in_place_of_its_link, cross_two_links, add_a_file_to_the_view),
    *(take_a_link_away, lead_a_folder_of_the_view_elsewhere, lead_the_whole_view_elsewhere),
    put_a_file_in_place_of_the_view,
)


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A state with one checkpoint of several files; only copied."""
    folder = tmp_path_factory.mktemp("proven")
    state, source, rng = folder / "state", folder / "source", random.Random(4)
    (source / "deep" / "er").mkdir(parents=True)
    state.mkdir()
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    shutil.copy(MODEL, source / "model.onnx")
    for name, size in (("twin-1.txt", 5000), ("twin-2.txt", 5000), ("deep/er/large.txt", 90_001), ("deep/one.txt", 1)):
        (source / name).write_bytes(rng.randbytes(size))
    (folder / "golden.jsonl").write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    office = Office(state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=CLOCK)
    try:
        checkpoint = registration.add(
            office, source, service="fraud", version="v1", golden_file=folder / "golden.jsonl"
        )
    finally:
        office.close()
    return state, checkpoint


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log in which every Python process leaves a line when it starts."""
    folder = tmp_path_factory.mktemp("started")
    (folder / "sitecustomize.py").write_text(NOTE_START, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("STARTED", str(folder / "log"))
        yield folder / "log"


def starts(log: Path) -> int:
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


@pytest.fixture
def case(proven: tuple[Path, Checkpoint], tmp_path: Path) -> Callable[[int], Case]:
    state, checkpoint = proven

    def copy(seed: int) -> Case:
        for name in ("blobs", "views"):
            shutil.copytree(state / name, tmp_path / "state" / name, symlinks=True)
        return Case(tmp_path / "state", checkpoint, random.Random(seed))

    return copy


@pytest.mark.parametrize("seed", range(500))
def test_a_corruption_is_told_by_its_code_and_nothing_is_loaded(
    case: Callable[[int], Case], started: Path, seed: int
) -> None:
    spoilt = case(seed)
    before = starts(started)
    change = CORRUPTIONS[seed % len(CORRUPTIONS)]
    code = change(spoilt)
    outcome = spoilt.judge()
    assert (outcome.ok, outcome.code, outcome.receipt) == (False, code, ""), f"seed {seed}: {change.__name__}"
    assert starts(started) == before, f"seed {seed}: {change.__name__}: a process was started"


# --- the registry that people read


def swap_two_digits(text: str, rng: random.Random) -> str:
    """Of one of the digests."""
    place = rng.choice([match.start() for match in re.finditer(r"[0-9a-f]{64}", text)]) + rng.randrange(64)
    return text[:place] + rng.choice([d for d in "0123456789abcdef" if d != text[place]]) + text[place + 1 :]


def change_a_letter(text: str, rng: random.Random) -> str:
    place = rng.choice([number for number, letter in enumerate(text) if letter.isalnum()])
    return text[:place] + rng.choice([x for x in "abxyz0189" if x != text[place]]) + text[place + 1 :]


def drop_a_line(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return "".join(lines)


def cut_it_off(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text))]


def say_it_twice(text: str, _rng: random.Random) -> str:
    return text + text


def call_a_failure_valid(text: str, _rng: random.Random) -> str:
    return text.replace("validated: true", "validated: false")


REGISTRY_EDITS = (swap_two_digits, change_a_letter, drop_a_line, cut_it_off, say_it_twice, call_a_failure_valid)


@pytest.mark.parametrize("seed", range(60))
def test_an_edited_registry_is_told(proven: tuple[Path, Checkpoint], tmp_path: Path, seed: int) -> None:
    state = Path(shutil.copytree(proven[0], tmp_path / "state", symlinks=True))
    path = state / registry_file.EXPORT_NAME
    was = path.read_text(encoding="utf-8")
    path.write_text(REGISTRY_EDITS[seed % len(REGISTRY_EDITS)](was, random.Random(seed)), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != was, f"seed {seed}"
    database = open_database(state)
    try:
        with pytest.raises(IntegrityError) as refused:
            registry_file.check(database, state, lambda _seconds: None)
        assert refused.value.code == "registry_altered", f"seed {seed}"
        path.write_text(was, encoding="utf-8")
        assert registry_file.check(database, state, lambda _seconds: None) == 1
    finally:
        database.close()


def test_a_load_would_have_been_noticed(case: Callable[[int], Case], started: Path) -> None:
    before = starts(started)
    outcome = case(0).judge()
    assert (outcome.ok, outcome.code) == (True, "")
    assert starts(started) > before


@pytest.mark.parametrize(
    "change", [lead_a_link_elsewhere, lead_the_whole_view_elsewhere, put_a_file_in_place_of_the_view]
)
def test_an_altered_view_is_told_once_and_built_anew(
    case: Callable[[int], Case], change: Callable[[Case], str]
) -> None:
    spoilt = case(1)
    assert change(spoilt) == "view_altered"
    assert [spoilt.judge().code, spoilt.judge().code] == ["view_altered", ""]
    assert all((spoilt.view / f.path).resolve() == spoilt.store.blobs / f.sha256 for f in spoilt.checkpoint.files)


def test_a_rollback_goes_on_with_a_view_that_was_built_anew(case: Callable[[int], Case]) -> None:
    spoilt = case(2)
    lead_the_whole_view_elsewhere(spoilt)
    outcome = verification.verify(spoilt.checkpoint, spoilt.store, CheckpointPolicy(), CLOCK, view_must_stand=False)
    assert outcome.ok


@pytest.mark.parametrize("seed", range(200))
def test_what_is_as_it_was_is_never_refused(tmp_path: Path, seed: int) -> None:
    """Files of any size, also empty ones and ones of the same bytes. Of random bytes only the load is left out."""
    rng = random.Random(seed)
    store = ContentStore(tmp_path / "state")
    files = []
    for number in range(rng.randint(1, 9)):
        source = tmp_path / f"source-{number}"
        source.write_bytes(rng.randbytes(rng.choice([0, 1, 511, 4096, rng.randint(2, 200_000)])))
        path = "/".join(["deep"] * rng.randint(0, 3) + [f"file-{number}"])
        files.append(store.put_file(SourceFile(path=path, source=source)))
    checkpoint = Checkpoint(
        digest=Digest("sha256:" + "0" * 64),
        service="fraud",
        version="v1",
        format="onnx",
        files=tuple(files),
        golden_sha256=store.put_bytes(rng.randbytes(rng.randint(0, 1000))),
        added_at=Instant(wall_ns=1, mono_ns=1, boot_id="boot"),
        verified_at=None,
        load_ms=None,
        failure="",
    )
    store.view(checkpoint.digest, checkpoint.files)
    checked = verification.check_bytes(checkpoint, store, CLOCK)
    assert (checked.size_bytes, checked.receipt) == (checkpoint.size_bytes, store.receipt(checkpoint.files))
    assert not store.view_is_altered(checkpoint.digest, checkpoint.files)
