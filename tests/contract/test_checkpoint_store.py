"""The content store: what is taken in, what is refused, and that no changed byte goes unseen (R12, R13)."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rearguard.checkpoints.store import ContentStore, SourceFile, checkpoint_digest, list_sources
from rearguard.errors import DependencyError, IntegrityError, UsageError
from rearguard.model.checkpoint import CheckpointFile
from rearguard.model.service import Digest

CONTENT = bytes(range(256)) * 12_289
"""3 MiB and a little: more than one read."""
VIEW = Digest("sha256:" + "a" * 64)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "state")


@pytest.fixture
def stored(tmp_path: Path, store: ContentStore) -> CheckpointFile:
    source = tmp_path / "model.onnx"
    source.write_bytes(CONTENT)
    return store.put_file(SourceFile(path="model.onnx", source=source))


def code_of(check: Callable[[], object]) -> str:
    with pytest.raises(IntegrityError) as refused:
        check()
    return refused.value.code


def overwrite(blob: Path, content: bytes) -> None:
    blob.chmod(0o644)
    blob.write_bytes(content)


# --- what is taken in


def test_a_folder_is_taken_in_by_its_regular_files_in_order(tmp_path: Path) -> None:
    for name in ("b.bin", "a/z.bin", "a.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [source.path for source in list_sources(tmp_path)] == ["a.onnx", "a/z.bin", "b.bin"]


def test_one_file_is_taken_in_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert [source.path for source in list_sources(tmp_path / "model.onnx")] == ["model.onnx"]


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_folder_link(path: Path) -> None:
    path.symlink_to("/etc")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


@pytest.mark.parametrize("make", [make_link, make_folder_link, make_dangling_link, make_pipe, make_socket])
def test_what_is_no_regular_file_is_refused_inside_a_folder(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    make(tmp_path / "odd")
    with pytest.raises(UsageError) as refused:
        list_sources(tmp_path)
    assert refused.value.code == "checkpoint_unsafe_file"


@pytest.mark.parametrize("make", [make_link, make_pipe, make_socket])
def test_what_is_no_regular_file_is_refused_when_it_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd.onnx")
    with pytest.raises(UsageError) as refused:
        list_sources(tmp_path / "odd.onnx")
    assert refused.value.code == "checkpoint_unsafe_file"


def test_a_device_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        list_sources(Path("/dev/zero"))
    assert refused.value.code == "checkpoint_unsafe_file"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        list_sources(tmp_path)
    assert refused.value.code == "checkpoint_empty"


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        list_sources(tmp_path / "absent")
    assert refused.value.code == "checkpoint_path_missing"


# --- the address


ABC = CheckpointFile(
    path="model.onnx", sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", size_bytes=3
)
"""`abc`, the first example of FIPS 180-2."""


def test_an_address_is_the_sha256_of_the_canonical_manifest() -> None:
    """By coreutils: printf '{"files":[{"path":"model.onnx","sha256":"ba78…15ad","size":3}],"format":"onnx","golden":"00"}'."""
    expected = "sha256:1f6a0ce85399fda499730562ea69c733245819c03f47c394e8a3132593528cbf"
    assert checkpoint_digest(format="onnx", files=[ABC], golden_sha256="00") == expected


@pytest.mark.parametrize(
    ("format_name", "path", "sha256", "golden"),
    [
        ("sklearn-skops", "model.onnx", ABC.sha256, "00"),
        ("onnx", "other.onnx", ABC.sha256, "00"),
        ("onnx", "model.onnx", "0" * 64, "00"),
        ("onnx", "model.onnx", ABC.sha256, "01"),
    ],
)
def test_anything_else_that_is_served_has_another_address(
    format_name: str, path: str, sha256: str, golden: str
) -> None:
    other = CheckpointFile(path=path, sha256=sha256, size_bytes=3)
    assert checkpoint_digest(format=format_name, files=[other], golden_sha256=golden) != checkpoint_digest(
        format="onnx", files=[ABC], golden_sha256="00"
    )


def test_a_blob_is_named_by_the_sha256_of_its_bytes(tmp_path: Path, store: ContentStore) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    taken = store.put_file(SourceFile(path="model.onnx", source=tmp_path / "abc"))
    assert taken == ABC
    assert (store.blobs / ABC.sha256).read_bytes() == b"abc"


def test_a_blob_is_read_only(store: ContentStore, stored: CheckpointFile) -> None:
    assert (store.blobs / stored.sha256).stat().st_mode & 0o222 == 0


def test_a_later_change_of_the_source_does_not_reach_the_store(
    tmp_path: Path, store: ContentStore, stored: CheckpointFile
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"changed")
    store.check_file(stored)


def test_the_same_bytes_are_stored_once(tmp_path: Path, store: ContentStore, stored: CheckpointFile) -> None:
    inode = (store.blobs / stored.sha256).stat().st_ino
    again = store.put_file(SourceFile(path="again.onnx", source=tmp_path / "model.onnx"))
    assert again.sha256 == stored.sha256
    assert [path.stat().st_ino for path in store.blobs.iterdir()] == [inode]


# --- what is found


@pytest.mark.parametrize("offset", [0, 1, 1_048_575, 1_048_576, len(CONTENT) // 2, len(CONTENT) - 1])
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_one_flipped_bit_is_found(store: ContentStore, stored: CheckpointFile, offset: int, bit: int) -> None:
    changed = bytearray(CONTENT)
    changed[offset] ^= bit
    overwrite(store.blobs / stored.sha256, changed)
    assert code_of(lambda: store.check_file(stored)) == "blob_altered"


@pytest.mark.parametrize("size", [0, 1, len(CONTENT) - 1])
def test_a_truncated_blob_is_found(store: ContentStore, stored: CheckpointFile, size: int) -> None:
    overwrite(store.blobs / stored.sha256, CONTENT[:size])
    assert code_of(lambda: store.check_file(stored)) == "blob_truncated"


def test_a_blob_with_a_byte_more_is_found(store: ContentStore, stored: CheckpointFile) -> None:
    overwrite(store.blobs / stored.sha256, CONTENT + b"\0")
    assert code_of(lambda: store.check_file(stored)) == "blob_altered"


def test_a_deleted_blob_is_found(store: ContentStore, stored: CheckpointFile) -> None:
    (store.blobs / stored.sha256).unlink()
    assert code_of(lambda: store.check_file(stored)) == "blob_missing"


def test_swapped_blobs_are_found(tmp_path: Path, store: ContentStore, stored: CheckpointFile) -> None:
    (tmp_path / "other").write_bytes(CONTENT[::-1])
    other = store.put_file(SourceFile(path="other.onnx", source=tmp_path / "other"))
    one, two = store.blobs / stored.sha256, store.blobs / other.sha256
    aside = tmp_path / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    assert [code_of(lambda f=f: store.check_file(f)) for f in (stored, other)] == ["blob_swapped"] * 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "code"),
    [(lambda blob: overwrite(blob, b"x"), "blob_altered"), (lambda blob: blob.unlink(), "blob_missing")],
    ids=["altered", "missing"],
)
def test_a_golden_set_that_is_not_what_was_stored_is_not_read(
    store: ContentStore, change: Callable[[Path], None], code: str
) -> None:
    sha256 = store.put_bytes(b"golden")
    change(store.blobs / sha256)
    assert code_of(lambda: store.get_bytes(sha256)) == code


CHECK = """
import os, sys
from pathlib import Path
from rearguard.checkpoints.store import ContentStore
from rearguard.errors import IntegrityError
from rearguard.model.checkpoint import CheckpointFile
state, sha256, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for check in (
    lambda: ContentStore(state).check_file(CheckpointFile(path="model.onnx", sha256=sha256, size_bytes=size)),
    lambda: ContentStore(state).get_bytes(sha256),
):
    try:
        check()
    except IntegrityError as error:
        print(error.code, error.message)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_blob_without_rights_is_unreadable_and_not_altered(public: Path) -> None:
    """As a user who is not root: root ignores permission bits."""
    store = ContentStore(public)
    (public / "source").write_bytes(CONTENT)
    taken = store.put_file(SourceFile(path="model.onnx", source=public / "source"))
    (store.blobs / taken.sha256).chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(public), taken.sha256, str(taken.size_bytes)],
        capture_output=True,
        text=True,
        check=True,
    )
    denied = os.strerror(errno.EACCES)
    assert done.stdout.splitlines() == [
        f"blob_unreadable model.onnx: {denied}",
        f"blob_unreadable blob {taken.sha256[:12]}: {denied}",
    ]


# --- mending


def let_everybody_write(blob: Path) -> None:
    blob.chmod(0o666)


def put_a_pipe(blob: Path) -> None:
    blob.unlink()
    os.mkfifo(blob)


def put_a_folder(blob: Path) -> None:
    blob.unlink()
    (blob / "inside").mkdir(parents=True)


def put_a_link_to_equal_bytes(blob: Path) -> None:
    blob.rename(blob.parent.parent / "elsewhere")
    blob.symlink_to(blob.parent.parent / "elsewhere")


CHANGES = [
    lambda b: overwrite(b, CONTENT[::-1]),
    lambda b: overwrite(b, b""),
    Path.unlink,
    let_everybody_write,
    put_a_pipe,
    put_a_folder,
    put_a_link_to_equal_bytes,
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("change", CHANGES)
def test_taking_the_same_bytes_in_again_mends_the_blob(
    tmp_path: Path, store: ContentStore, stored: CheckpointFile, change: Callable[[Path], None]
) -> None:
    """What the hint says. An altered blob of the right size must not pass for the one that is already there."""
    change(store.blobs / stored.sha256)
    store.put_file(SourceFile(path="model.onnx", source=tmp_path / "model.onnx"))
    store.check_file(stored)


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path, store: ContentStore) -> None:
    store.blobs.parent.mkdir(parents=True)
    store.blobs.write_text("no folder", encoding="utf-8")
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(DependencyError) as refused:
        store.put_file(SourceFile(path="model.onnx", source=tmp_path / "source"))
    assert refused.value.code == "store_not_written"


# --- receipts


def test_a_receipt_stays_the_same_while_nothing_is_written(store: ContentStore, stored: CheckpointFile) -> None:
    assert store.receipt([stored]) == store.receipt([stored]) != ""


def test_a_receipt_changes_when_a_byte_was_written_and_the_old_time_put_back(
    store: ContentStore, stored: CheckpointFile
) -> None:
    blob, before = store.blobs / stored.sha256, store.receipt([stored])
    stamp = blob.stat()
    overwrite(blob, CONTENT[::-1])
    os.utime(blob, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    blob.chmod(0o444)
    assert store.receipt([stored]) != before


def test_a_missing_blob_has_an_empty_receipt(store: ContentStore, stored: CheckpointFile) -> None:
    (store.blobs / stored.sha256).unlink()
    assert store.receipt([stored]) == ""


# --- views


def test_a_view_shows_the_files_under_their_own_names(store: ContentStore, stored: CheckpointFile) -> None:
    deep = CheckpointFile(path="weights/one/model.bin", sha256=stored.sha256, size_bytes=stored.size_bytes)
    folder = store.view(VIEW, [stored, deep])
    assert (folder / "model.onnx").read_bytes() == (folder / "weights" / "one" / "model.bin").read_bytes() == CONTENT


def test_a_view_is_built_once(store: ContentStore, stored: CheckpointFile) -> None:
    inode = store.view(VIEW, [stored]).stat().st_ino
    assert store.view(VIEW, [stored]).stat().st_ino == inode


def foreign_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(b"another model")


def foreign_link(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("/dev/null")


def one_more(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"external data")


def one_less(folder: Path) -> None:
    (folder / "model.onnx").unlink()


@pytest.mark.parametrize("change", [foreign_file, foreign_link, one_more, one_less])
def test_a_view_that_was_changed_is_never_served(
    store: ContentStore, stored: CheckpointFile, change: Callable[[Path], None]
) -> None:
    """The blobs are proven, the view is what is loaded: it must show exactly them."""
    change(store.view(VIEW, [stored]))
    folder = store.view(VIEW, [stored])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.onnx": CONTENT}
    assert [path.name for path in store.views.iterdir()] == [folder.name]


def test_a_state_directory_may_be_moved(tmp_path: Path, store: ContentStore, stored: CheckpointFile) -> None:
    store.view(VIEW, [stored])
    (tmp_path / "state").rename(tmp_path / "moved")
    assert (ContentStore(tmp_path / "moved").view(VIEW, [stored]) / "model.onnx").read_bytes() == CONTENT
