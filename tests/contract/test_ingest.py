"""Taking files in: what a source may do meanwhile, what is not copied, what is left behind, and names that are refused."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rearguard.checkpoints import claims
from rearguard.checkpoints.store import ContentStore, SourceFile, list_sources
from rearguard.errors import ConflictError, DependencyError, IntegrityError, UsageError

CONTENT = bytes(range(256)) * 4096
"""1 MiB: eight writes."""


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "state")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights.bin").write_bytes(CONTENT)
    return tmp_path / "model"


def names(store: ContentStore) -> set[str]:
    return {path.name for path in store.blobs.iterdir()} if store.blobs.exists() else set()


# --- a source that changes


def overwrite(path: Path) -> None:
    path.write_bytes(CONTENT[::-1])


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(CONTENT)
    path.with_suffix(".new").rename(path)


def remove(path: Path) -> None:
    path.unlink()


def overwrite_and_put_the_time_back(path: Path) -> None:
    was = path.stat()
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.mark.parametrize("change", [overwrite, replace, remove, overwrite_and_put_the_time_back])
def test_a_source_that_is_not_what_was_listed_is_refused(
    store: ContentStore, model: Path, change: Callable[[Path], None]
) -> None:
    sources = list_sources(model)
    change(model / "deep" / "weights.bin")
    with pytest.raises(ConflictError) as refused:
        store.put_files(sources)
    assert refused.value.code == "source_changed"
    assert names(store) == set()


@pytest.mark.parametrize(
    "change", [overwrite, lambda path: os.truncate(path, len(CONTENT) + 1)], ids=["written", "grown"]
)
def test_a_source_that_is_written_while_it_is_copied_is_refused(
    store: ContentStore, model: Path, change: Callable[[Path], object]
) -> None:
    done = []

    def meanwhile(_count: int) -> None:
        if not done:
            done.append(change(model / "deep" / "weights.bin"))

    with pytest.raises(ConflictError) as refused:
        store.put_files(list_sources(model), meanwhile)
    assert refused.value.code == "source_changed"
    assert [name for name in names(store) if name.startswith(".")] == []


def link_the_file(model: Path) -> None:
    (model / "deep" / "weights.bin").rename(model.parent / "elsewhere.bin")
    (model / "deep" / "weights.bin").symlink_to(model.parent / "elsewhere.bin")


def link_the_folder(model: Path) -> None:
    (model / "deep").rename(model.parent / "elsewhere")
    (model / "deep").symlink_to(model.parent / "elsewhere")


def pipe(model: Path) -> None:
    (model / "deep" / "weights.bin").unlink()
    os.mkfifo(model / "deep" / "weights.bin")


@pytest.mark.parametrize("change", [link_the_file, link_the_folder, pipe])
def test_a_link_or_pipe_that_takes_the_place_of_what_was_listed_is_not_followed(
    store: ContentStore, model: Path, change: Callable[[Path], None]
) -> None:
    sources = list_sources(model)
    change(model)
    with pytest.raises(UsageError) as refused:
        store.put_files(sources)
    assert refused.value.code == "checkpoint_unsafe_file"


# --- names


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\u202egnp.exe", "a\\b", os.fsdecode(b"\xff\xfe")])
def test_a_name_that_cannot_be_shown_is_refused(model: Path, name: str) -> None:
    (model / name).write_bytes(b"x")
    with pytest.raises(UsageError) as refused:
        list_sources(model)
    assert refused.value.code == "checkpoint_unsafe_name"
    refused.value.message.encode("utf-8")


def test_absurd_depth_is_refused(model: Path) -> None:
    deep = model
    for _ in range(40):
        deep = deep / "d"
        deep.mkdir()
    (deep / "weights.bin").write_bytes(b"x")
    with pytest.raises(UsageError) as refused:
        list_sources(model)
    assert refused.value.code == "checkpoint_unsafe_name"


def test_thousands_of_levels_are_refused_without_going_there(model: Path) -> None:
    here = os.open(model, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(UsageError) as refused:
        list_sources(model)
    assert refused.value.code == "checkpoint_unsafe_name"
    subprocess.run(["rm", "-rf", str(model)], check=True)  # shutil is too recursive for it


def test_too_many_files_are_refused(model: Path) -> None:
    for number in range(10_001):
        (model / str(number)).touch()
    with pytest.raises(UsageError) as refused:
        list_sources(model)
    assert refused.value.code == "checkpoint_unsafe_name"


# --- room


def test_a_file_that_is_mostly_a_hole_is_refused_before_anything_is_copied(store: ContentStore, model: Path) -> None:
    with (model / "sparse.bin").open("wb") as sparse:
        sparse.truncate(shutil.disk_usage(model).total * 4)
    with pytest.raises(DependencyError) as refused:
        store.put_files(list_sources(model))
    assert (refused.value.code, refused.value.exit_code) == ("store_full", 69)
    assert names(store) == set()


SMALL_LIMIT = """
import resource, signal, sys
from pathlib import Path
from rearguard.checkpoints.store import ContentStore, list_sources
from rearguard.errors import DependencyError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    ContentStore(Path(sys.argv[1])).put_files(list_sources(Path(sys.argv[2])))
except DependencyError as error:
    print(error.code)
"""


def test_a_write_that_fails_half_way_leaves_nothing(store: ContentStore, model: Path) -> None:
    """The kernel refuses to let a file grow, as it does when the disk is full."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_LIMIT, str(store.state), str(model)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "store_not_written"
    assert names(store) == set()


# --- what is not copied


def test_what_is_stored_and_intact_is_hashed_and_not_copied(store: ContentStore, model: Path) -> None:
    """Not even a temporary file is made: the folder cannot be written."""
    (kept,) = store.put_files(list_sources(model))
    before = store.blobs.stat()
    assert store.put_files(list_sources(model)) == (kept,)
    assert store.blobs.stat().st_mtime_ns == before.st_mtime_ns


def test_a_blob_is_never_a_hard_link_of_its_source(store: ContentStore, model: Path) -> None:
    (kept,) = store.put_files(list_sources(model))
    assert (store.blobs / kept.sha256).stat().st_ino != (model / "deep" / "weights.bin").stat().st_ino
    assert (store.blobs / kept.sha256).stat().st_nlink == 1


def test_progress_adds_up_to_the_size(store: ContentStore, model: Path) -> None:
    told: list[int] = []
    store.put_files(list_sources(model), told.append)
    assert sum(told) == len(CONTENT)
    assert len(told) == 8


def test_bytes_that_are_not_those_expected_are_not_kept(store: ContentStore, model: Path) -> None:
    source = SourceFile(path="x", source=model / "deep" / "weights.bin")
    with pytest.raises(IntegrityError) as refused:
        store.put_file(source, expected="0" * 64)
    assert refused.value.code == "blob_altered"
    assert names(store) == set()


@pytest.fixture
def reflinks(require_part: Callable[[str, bool, str], None]) -> Path:
    """A folder on a file system that shares blocks, where the machine has one."""
    named = Path(os.environ.get("REARGUARD_TEST_REFLINK", "/nonexistent"))
    if not named.is_dir():
        pytest.skip("REARGUARD_TEST_REFLINK names no folder on XFS or btrfs")
    return named


def test_blocks_are_shared_where_the_file_system_can(reflinks: Path) -> None:
    folder = reflinks / str(os.getpid())
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights.bin").write_bytes(CONTENT)
    store = ContentStore(folder / "state")
    (kept,) = store.put_files(list_sources(folder / "model"))
    assert kept.sha256 == hashlib.sha256(CONTENT).hexdigest()
    said = subprocess.run(
        ["filefrag", "-v", str(store.blobs / kept.sha256)], capture_output=True, text=True, check=True
    )
    assert "shared" in said.stdout
    shutil.rmtree(folder)


# --- what the dead leave


def leave(folder: Path, name: str, *, locked: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    if locked:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle
    os.close(handle)
    return -1


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_holds_stays(store: ContentStore) -> None:
    leave(store.blobs, ".claimed-999.1", locked=False)
    held = leave(store.blobs, ".claimed-999.2", locked=True)
    (store.incoming / ".claimed-999.3" / "layout").mkdir(parents=True)
    assert store.sweep() == 2
    assert names(store) == {".claimed-999.2"}
    os.close(held)
    assert store.sweep() == 1


def test_a_temporary_file_of_the_release_before_goes_with_its_process(store: ContentStore) -> None:
    """That release does not lock what it writes."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leave(store.blobs, f".ingest.{ended.pid}", locked=False)
    leave(store.blobs, f".ingest.{os.getpid()}", locked=False)
    store.sweep()
    assert names(store) == {f".ingest.{os.getpid()}"}


def test_a_blob_is_never_swept(store: ContentStore, model: Path) -> None:
    (kept,) = store.put_files(list_sources(model))
    store.sweep()
    assert names(store) == {kept.sha256}


def test_a_claim_that_was_renamed_leaves_what_now_has_its_old_name(tmp_path: Path) -> None:
    with claims.file(tmp_path) as (path, _handle):
        path.rename(tmp_path / "kept")
        path.write_bytes(b"of another process")
    assert {p.name for p in tmp_path.iterdir()} == {"kept", path.name}


def test_a_folder_that_cannot_be_written_is_told(store: ContentStore, model: Path) -> None:
    store.blobs.parent.mkdir(parents=True)
    store.blobs.write_text("no folder", encoding="utf-8")
    with pytest.raises(DependencyError) as refused:
        store.put_files(list_sources(model))
    assert os.strerror(errno.EEXIST) in refused.value.message or "ot a directory" in refused.value.message
