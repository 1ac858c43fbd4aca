"""Every byte is read once, at the pace that was asked for, and what is no plain file of its owner is not read at all."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rearguard.checkpoints.hashing import (
    DIRECT_BLOCK_BYTES,
    Blob,
    BytesProof,
    HashMode,
    Pace,
    Reading,
    prove,
    read_small,
    stat_receipt,
)
from rearguard.errors import ConflictError, IntegrityError

MIB = 1024 * 1024
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""FIPS 180-4."""
DIRECT = Reading(mode=HashMode.DIRECT)


def blob_of(folder: Path, content: bytes, name: str = "model.bin") -> Blob:
    path = folder / name
    path.write_bytes(content)
    path.chmod(0o444)
    return Blob(name=name, path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def shards(folder: Path, count: int = 4, size: int = MIB) -> list[Blob]:
    return [blob_of(folder, bytes([number]) * size, f"shard-{number}") for number in range(count)]


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(IntegrityError) as refused:
        act()
    return refused.value.code


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


# --- reading


@pytest.mark.parametrize("mode", list(HashMode))
@pytest.mark.parametrize(("content", "sha256"), [(b"", EMPTY), (b"abc", ABC)])
def test_the_digest_is_that_of_the_standard(tmp_path: Path, mode: HashMode, content: bytes, sha256: str) -> None:
    (tmp_path / "b").write_bytes(content)
    blob = Blob(name="b", path=tmp_path / "b", sha256=sha256, size_bytes=len(content))
    assert prove([blob], Reading(mode=mode)).size_bytes == len(content)


@pytest.mark.parametrize(
    "size",
    [1, 511, 512, 4095, 4096, 4097, DIRECT_BLOCK_BYTES - 1, DIRECT_BLOCK_BYTES, DIRECT_BLOCK_BYTES + 513],
)
def test_past_the_page_cache_the_last_partial_block_is_read_too(tmp_path: Path, size: int) -> None:
    content = bytes(number % 251 for number in range(4099)) * (size // 4099 + 1)
    blob = blob_of(tmp_path, content[:size])
    assert prove([blob], DIRECT).size_bytes == size
    rewrite(blob.path, content[: size - 1] + bytes([content[size - 1] ^ 1]))
    assert code_of(lambda: prove([blob], DIRECT)) == "blob_altered"


def test_a_file_system_that_refuses_direct_reading_is_read_through_the_page_cache() -> None:
    """sysfs knows no O_DIRECT, and this file of it has a true size."""
    path = Path("/sys/kernel/notes")
    if not path.exists() or not os.access(path, os.R_OK):
        pytest.skip("no /sys/kernel/notes")
    content = path.read_bytes()
    blob = Blob(name="notes", path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    assert prove([blob], DIRECT).mode is HashMode.BUFFERED


def test_shards_are_all_proven_and_the_receipt_names_them_in_their_order(tmp_path: Path) -> None:
    blobs = shards(tmp_path)
    proof = prove(blobs)
    assert isinstance(proof, BytesProof)
    assert (proof.size_bytes, proof.mode, proof.receipt) == (4 * MIB, HashMode.BUFFERED, stat_receipt(blobs))


@pytest.mark.parametrize("which", range(4))
def test_a_bad_shard_is_found_wherever_it_stands(tmp_path: Path, which: int) -> None:
    blobs = shards(tmp_path)
    rewrite(blobs[which].path, b"x" + blobs[which].path.read_bytes()[1:])
    with pytest.raises(IntegrityError) as refused:
        prove(blobs)
    assert (refused.value.code, refused.value.message) == ("blob_altered", f"shard-{which} is not what was registered")


@pytest.mark.parametrize("mode", list(HashMode))
def test_progress_counts_every_byte_once_and_comes_in_the_callers_thread(tmp_path: Path, mode: HashMode) -> None:
    told: list[tuple[int, int]] = []
    prove(
        shards(tmp_path),
        Reading(mode=mode, progress=lambda count: told.append((count, threading.get_ident()))),
    )
    assert sum(count for count, _ in told) == 4 * MIB
    assert {thread for _, thread in told} == {threading.get_ident()}


def test_a_progress_that_fails_ends_every_reader(tmp_path: Path) -> None:
    before = threading.active_count()

    def fail(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(shards(tmp_path), Reading(progress=fail))
    assert threading.active_count() == before


# --- pace and stop


class Watch:
    """A monotonic clock that only waiting moves."""

    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def test_a_paced_reading_takes_as_long_as_its_pace_says(tmp_path: Path) -> None:
    """10 MiB at 2 MiB a second are 5 s."""
    watch = Watch()
    pace = Pace(2 * MIB, lambda: watch.now_ns, watch.wait)
    prove(shards(tmp_path, count=2, size=5 * MIB), Reading(mode=HashMode.DIRECT, pace=pace))
    assert watch.now_ns == 5_000_000_000 + 5_000_000_000


def test_a_pace_saves_up_no_burst() -> None:
    watch = Watch()
    pace = Pace(100, lambda: watch.now_ns, watch.wait)
    watch.now_ns += 3_600_000_000_000
    began_ns = watch.now_ns
    pace.take(100)
    assert watch.now_ns - began_ns == 1_000_000_000


@pytest.mark.parametrize("mode", list(HashMode))
@pytest.mark.parametrize("count", [1, 4])
def test_a_stopped_reading_is_no_proof_and_no_fault(tmp_path: Path, mode: HashMode, count: int) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(ConflictError) as refused:
        prove(shards(tmp_path, count, 2 * MIB), Reading(mode=mode, stop=stop))
    assert refused.value.code == "hash_stopped"


def test_a_stop_ends_a_slow_reading_at_once(tmp_path: Path) -> None:
    """One byte a second: without the stop a block would be waited for twelve days."""
    stop, ended = threading.Event(), threading.Event()
    pace = Pace(1, lambda: 0, stop.wait)

    def read() -> None:
        with pytest.raises(ConflictError):
            prove(shards(tmp_path), Reading(mode=HashMode.DIRECT, pace=pace, stop=stop, progress=began.append))
        ended.set()

    began: list[int] = []
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    stop.set()
    assert ended.wait(30)
    thread.join()


# --- what is no proof


def test_what_a_stat_tells_is_found_before_a_byte_is_read(tmp_path: Path) -> None:
    blobs = shards(tmp_path)
    blobs[-1].path.unlink()
    told: list[int] = []
    assert code_of(lambda: prove(blobs, Reading(progress=told.append))) == "blob_missing"
    assert told == []


def test_a_longer_file_is_altered_and_a_shorter_one_truncated(tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"0123456789")
    rewrite(blob.path, b"0123456789x")
    assert code_of(lambda: prove([blob])) == "blob_altered"
    rewrite(blob.path, b"012345678")
    assert code_of(lambda: prove([blob])) == "blob_truncated"


def test_the_bytes_of_another_known_blob_are_told_from_unknown_ones(tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"one")
    rewrite(blob.path, b"two")
    other = hashlib.sha256(b"two").hexdigest()
    assert code_of(lambda: prove([blob], is_known=lambda sha256: sha256 == other)) == "blob_swapped"
    assert code_of(lambda: prove([blob], is_known=lambda sha256: sha256 == EMPTY)) == "blob_altered"


def test_swapped_shards_of_one_checkpoint_are_told(tmp_path: Path) -> None:
    one, two = shards(tmp_path, count=2)
    one.path.rename(tmp_path / "aside")
    two.path.rename(one.path)
    (tmp_path / "aside").rename(two.path)
    assert code_of(lambda: prove([one, two])) == "blob_swapped"


def overwrite_behind(path: Path) -> None:
    """The first byte, with the old time put back: only the change time tells."""
    stamp = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as writer:
        writer.write(b"x")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    path.chmod(0o444)


def replace_behind(path: Path) -> None:
    """Another inode takes the name."""
    other = path.with_suffix(".new")
    other.write_bytes(b"x" * path.stat().st_size)
    other.replace(path)


def read_while(blob: Blob, change: Callable[[Path], None], times: int = 1) -> tuple[BytesProof, int]:
    """Prove a blob that is changed in the midst of its first readings; how many bytes were told of."""
    seen = {"wait": 0, "told": 0, "changed": 0}

    def told(count: int) -> None:
        seen["told"] += count

    def wait(_seconds: float) -> None:
        """Called after each piece: there are four of them in a reading."""
        if seen["wait"] % 4 == 0 and seen["changed"] < times:
            seen["changed"] += 1
            change(blob.path)
        seen["wait"] += 1

    return prove([blob], Reading(progress=told, pace=Pace(1, lambda: 0, wait))), seen["told"]


@pytest.mark.parametrize(
    ("change", "code"),
    [(overwrite_behind, "blob_altered"), (replace_behind, "blob_altered"), (Path.unlink, "blob_missing")],
)
def test_a_file_that_is_changed_behind_the_reader_is_no_proof(
    tmp_path: Path, change: Callable[[Path], None], code: str
) -> None:
    blob = blob_of(tmp_path, b"a" * (MIB - 1))
    assert code_of(lambda: read_while(blob, change)) == code


def link_behind(path: Path) -> None:
    """As `ln`, `cp -al` and backup programs do."""
    os.link(path, path.with_suffix(f".{len(list(path.parent.iterdir()))}"))


def chmod_behind(path: Path) -> None:
    path.chmod(0o400)


def replace_by_the_same(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.chmod(0o444)
    other.replace(path)


@pytest.mark.parametrize("change", [link_behind, chmod_behind, replace_by_the_same])
def test_right_bytes_that_are_touched_while_they_are_read_are_proven_by_a_second_reading(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    blob = blob_of(tmp_path, b"a" * (MIB - 1))
    proof, told = read_while(blob, change)
    assert proof.receipt == stat_receipt([blob])
    assert told == blob.size_bytes


def test_right_bytes_that_do_not_come_to_rest_are_no_proof_and_no_fault(tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"a" * (MIB - 1))
    with pytest.raises(ConflictError) as refused:
        read_while(blob, link_behind, times=99)
    assert (refused.value.code, refused.value.hint[:9]) == ("blob_changing", "try again")


def test_wrong_bytes_that_do_not_come_to_rest_are_altered(tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"a" * (MIB - 1))
    overwrite_behind(blob.path)
    assert code_of(lambda: read_while(blob, link_behind, times=99)) == "blob_altered"


def put_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def let_group_write(path: Path) -> None:
    path.chmod(0o464)


def let_others_write(path: Path) -> None:
    path.chmod(0o446)


@pytest.mark.parametrize("change", [put_link, put_pipe, put_folder, let_group_write, let_others_write])
def test_only_a_plain_file_that_its_owner_alone_may_write_is_read(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The link leads to the right bytes, and a pipe would hold whoever opens it."""
    blob = blob_of(tmp_path, b"abc")
    change(blob.path)
    assert code_of(lambda: prove([blob])) == "blob_unsafe"
    assert code_of(lambda: read_small(blob.path, blob.sha256)) == "blob_unsafe"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_a_stranger_is_not_read_and_one_of_the_stores_owner_is(tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"abc")
    os.chown(blob.path, 65534, -1)
    assert code_of(lambda: prove([blob])) == "blob_unsafe"
    os.chown(tmp_path, 65534, -1)  # root looks after the store of a service's user
    assert prove([blob]).size_bytes == 3


def test_a_small_blob_is_read_only_when_its_digest_holds(tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"abc")
    assert read_small(blob.path, ABC) == b"abc"
    assert code_of(lambda: read_small(blob.path, EMPTY)) == "blob_altered"
    assert code_of(lambda: read_small(tmp_path / "none", ABC)) == "blob_missing"


# --- receipts


@pytest.mark.parametrize("change", [overwrite_behind, replace_behind, let_group_write, put_link])
def test_a_receipt_does_not_outlive_a_change(tmp_path: Path, change: Callable[[Path], None]) -> None:
    blob = blob_of(tmp_path, b"abc")
    receipt = prove([blob]).receipt
    assert stat_receipt([blob]) == receipt
    change(blob.path)
    assert stat_receipt([blob]) != receipt
