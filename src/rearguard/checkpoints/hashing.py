"""Reading every stored byte as fast as the machine can, and saying exactly what is wrong when a byte is not as it was.

Owns how blobs are opened, read and hashed; which blobs those are and what follows is the caller's. Rules it keeps: a blob
is opened once, without following a link, and the stat receipt is what the kernel says of that very descriptor before and
after; nothing but a regular file that only its owner may write is read; the sha256 is OpenSSL's through `hashlib`, never
the platform's `sha256sum` (four times slower on Debian 12).

Two ways to read. BUFFERED fills the page cache, which is the readahead of the load that follows. DIRECT (O_DIRECT) leaves
the page cache to the model that serves, and really asks the disk: the way of the background scrub.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rearguard.errors import ConflictError, IntegrityError
from rearguard.model.time import NS_PER_S

BUFFER_BYTES = 256 * 1024
"""Best of 16 KiB to 16 MiB where the bytes are cached; what `hashlib.file_digest` takes too."""
DIRECT_BLOCK_BYTES = 4 * 1024 * 1024
DIRECT_THREADS = 4
"""One synchronous reader does not keep a disk busy; more than four gained nothing."""
READERS_A_CORE = 2
"""While one waits for the disk another hashes: cold reads go up by half, cached ones lose nothing. Measured."""
ALONE_BELOW_BYTES = 1024 * 1024
"""Less than this is hashed before a thread has begun. Chosen."""
REPORT_EVERY_S = 0.1
SMALL_LIMIT_BYTES = 1024 * 1024 * 1024
"""What `read_small` takes into memory at most. Chosen."""
READINGS = 3
"""Of a blob that changes meanwhile, before nothing is said of it. Chosen: a link or a chmod is over by the next one."""
HINT = "take the checkpoint in again from its source, then `rearguard checkpoint verify`"


class HashMode(Enum):
    """How bytes are read."""

    BUFFERED = "buffered"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A stored file and what it has to be."""

    name: str
    """How people know it: its path inside the checkpoint."""
    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesProof:
    """Every byte of these blobs is what was registered."""

    receipt: str
    """Stat receipt of the descriptors that were read; equal to a later `stat_receipt` iff nothing was written since."""
    size_bytes: int
    mode: HashMode
    """BUFFERED also when one file system refused O_DIRECT."""


class Pace:
    """Lets at most `bytes_s` bytes a second pass, summed over all threads that take from it. No burst is saved up."""

    def __init__(self, bytes_s: int, now_ns: Callable[[], int], wait: Callable[[float], object]) -> None:
        """`now_ns` is monotonic; `wait` is given seconds, and may return early when the work is to stop."""
        self._bytes_s = bytes_s
        self._now_ns = now_ns
        self._wait = wait
        self._free_at_ns = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Account for `count` bytes that were read, and wait until the next may be."""
        with self._lock:
            now_ns = self._now_ns()
            self._free_at_ns = max(self._free_at_ns, now_ns) + count * NS_PER_S // self._bytes_s
            left_ns = self._free_at_ns - now_ns
        if left_ns > 0:
            self._wait(left_ns / NS_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How, and how fast, bytes are read."""

    mode: HashMode = HashMode.BUFFERED
    pace: Pace | None = None
    """None: as fast as the machine can, a thread a file. With a pace one file after the other."""
    progress: Callable[[int], None] | None = None
    """Given the bytes that were read since its last call, in the caller's thread."""
    stop: threading.Event | None = None
    """Once set, no more is read."""


AT_ONCE = Reading()
"""Through the page cache and as fast as the machine can: for what is loaded next."""


class _Stopped(Exception):
    """The reading was called off."""


def prove(
    blobs: Iterable[Blob],
    reading: Reading = AT_ONCE,
    *,
    is_known: Callable[[str], bool] = lambda _sha256: False,
) -> BytesProof:
    """Read and hash every byte of the blobs (R12, R13).

    `is_known` says whether a digest is that of another blob. Law: it returns iff each blob is a regular file of its size
    and digest that did not change while it was read. What a stat tells of any of them is found before a byte is read.
    One that changes meanwhile (also when it is only linked, renamed over by the same bytes, or given other rights) is
    opened and read anew: the digest alone says that it was altered.

    Raises `IntegrityError` `blob_missing`, `blob_unreadable`, `blob_truncated`, `blob_altered`, `blob_swapped` or
    `blob_unsafe`, of the first blob at fault in their order; `ConflictError` `hash_stopped` once `stop` is set, and
    `blob_changing` for one whose digest is right and that changed in each of `READINGS` readings: no outcome.
    """
    work = _Work(tuple(blobs), reading, is_known)
    for blob in work.blobs:
        work.look(blob)
    total = sum(blob.size_bytes for blob in work.blobs)
    readers = _readers(work, total)
    if readers <= 1:
        work.report = reading.progress
        work.run()
    else:
        _run_threads(work, readers, reading.progress)
    for found in work.failures:
        if found is not None:
            raise found
    if None in work.marks:
        raise ConflictError("hash_stopped", "the verification was stopped before every byte was read", "run it again")
    return BytesProof(receipt=json.dumps(work.marks), size_bytes=total, mode=work.mode_used)


def stat_receipt(blobs: Iterable[Blob]) -> str:
    """What the kernel says of the stored files now; equal text means: not written since. It cannot see bit rot.

    Empty when one cannot be asked for.
    """
    try:
        return json.dumps([_mark(blob, blob.path.lstat()) for blob in blobs])
    except OSError:
        return ""


def read_small(path: Path, sha256: str) -> bytes:
    """Content of a blob whose length is not known beforehand, its digest checked. Raises as `prove`."""
    name = f"blob {sha256[:12]}"
    owners = _owners(path.parent)
    try:
        _judge_kind(name, path.lstat(), owners)
        handle = _open(path)
        try:
            info = os.fstat(handle)
            _judge_kind(name, info, owners)
            if info.st_size > SMALL_LIMIT_BYTES:
                raise IntegrityError("blob_altered", f"{name} has {info.st_size} bytes", HINT)
            with open(handle, "rb", closefd=False) as reader:
                content = reader.read(info.st_size + 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise _unread(name, error) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError("blob_altered", f"{name} is not what was registered", HINT)
    return content


class _Work:
    """What the readers share. Each index is taken by one reader only."""

    def __init__(self, blobs: tuple[Blob, ...], reading: Reading, is_known: Callable[[str], bool]) -> None:
        self.blobs = blobs
        self.reading = reading
        self.mode_used = reading.mode
        self.marks: list[list[Any] | None] = [None] * len(blobs)
        self.failures: list[IntegrityError | ConflictError | None] = [None] * len(blobs)
        self.counts = [0] * len(blobs)
        self.again = [False] * len(blobs)
        """Read before: its bytes are counted already."""
        self.report: Callable[[int], None] | None = None
        self.halt = threading.Event()
        self._is_known = is_known
        self._owners = {folder: _owners(folder) for folder in {blob.path.parent for blob in blobs}}
        # The longest first, so that no reader is left alone with it at the end.
        self._left = deque(sorted(range(len(blobs)), key=lambda index: -blobs[index].size_bytes))

    def look(self, blob: Blob) -> None:
        """Judge what a stat tells."""
        try:
            self._judge(blob, blob.path.lstat())
        except OSError as error:
            raise _unread(blob.name, error) from error

    def run(self) -> None:
        """Read blobs until none is left, one is at fault, or the work is called off."""
        while not self.halt.is_set():
            try:
                index = self._left.popleft()
            except IndexError:
                return
            try:
                self.marks[index] = self._prove(index, self.blobs[index])
            except _Stopped:
                return
            except (IntegrityError, ConflictError) as error:
                self.failures[index] = error
                self.halt.set()

    def _prove(self, index: int, blob: Blob) -> list[Any]:
        """Its mark: of the very inode that was hashed and found right."""
        for reading in range(READINGS):
            self.again[index] = reading > 0
            found, before, after = self._read(index, blob)
            settled = _mark(blob, before) == _mark(blob, after)
            if settled and found == blob.sha256:
                return _mark(blob, after)
            if settled or (found != blob.sha256 and reading == READINGS - 1):
                raise self._altered(blob, found)
        raise ConflictError(
            "blob_changing",
            f"{blob.name} holds the right bytes and was written, linked or given other rights in each of {READINGS} readings",
            "try again; find out who touches the store meanwhile",
        )

    def _altered(self, blob: Blob, found: str) -> IntegrityError:
        if self._is_known(found) or any(found == other.sha256 for other in self.blobs):
            return IntegrityError("blob_swapped", f"{blob.name} holds the bytes of another blob, {found[:12]}", HINT)
        return IntegrityError("blob_altered", f"{blob.name} is not what was registered", HINT)

    def _read(self, index: int, blob: Blob) -> tuple[str, os.stat_result, os.stat_result]:
        """The digest of what stands there, and what the kernel said of that descriptor before and after."""
        try:
            handle = _open(blob.path)
            try:
                before = os.fstat(handle)
                self._judge(blob, before)
                found = self._hash(index, handle, before.st_size)
                after = os.fstat(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise _unread(blob.name, error) from error
        return found, before, after

    def _judge(self, blob: Blob, info: os.stat_result) -> None:
        _judge_kind(blob.name, info, self._owners[blob.path.parent])
        if info.st_size < blob.size_bytes:
            message = f"{blob.name} has {info.st_size} of {blob.size_bytes} bytes"
            raise IntegrityError("blob_truncated", message, HINT)
        if info.st_size > blob.size_bytes:
            message = f"{blob.name} has {info.st_size} bytes, {blob.size_bytes} were registered"
            raise IntegrityError("blob_altered", message, HINT)

    def _hash(self, index: int, handle: int, size_bytes: int) -> str:
        hasher, read = hashlib.sha256(), 0
        if self.reading.mode is HashMode.DIRECT:
            read = self._hash_direct(index, handle, size_bytes, hasher)
        if read < size_bytes:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            buffer = bytearray(min(BUFFER_BYTES, size_bytes))
            with memoryview(buffer) as view:
                while read < size_bytes and (count := os.readv(handle, [view])):
                    hasher.update(view[:count])
                    read += count
                    self._note(index, count)
        return hasher.hexdigest()

    def _hash_direct(self, index: int, handle: int, size_bytes: int, hasher: Any) -> int:
        """Bytes hashed past the page cache; less than all where the file system refuses, the buffered way goes on there."""
        read = 0
        try:
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_DIRECT)
            # An anonymous map is aligned to a page, which O_DIRECT asks for.
            with mmap.mmap(-1, DIRECT_BLOCK_BYTES) as block, memoryview(block) as view:
                while read < size_bytes and (count := os.readv(handle, [view])):
                    hasher.update(view[:count])
                    read += count
                    self._note(index, count)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.mode_used = HashMode.BUFFERED
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~os.O_DIRECT)
        return read

    def _note(self, index: int, count: int) -> None:
        if not self.again[index]:
            self.counts[index] += count
            if self.report is not None:
                self.report(count)
        if self.reading.pace is not None:
            self.reading.pace.take(count)
        if self.halt.is_set() or (self.reading.stop is not None and self.reading.stop.is_set()):
            self.halt.set()
            raise _Stopped


def _readers(work: _Work, total_bytes: int) -> int:
    if work.reading.pace is not None or total_bytes < ALONE_BELOW_BYTES:
        return 1
    most = DIRECT_THREADS if work.reading.mode is HashMode.DIRECT else READERS_A_CORE * len(os.sched_getaffinity(0))
    return min(len(work.blobs), most)


def _run_threads(work: _Work, readers: int, progress: Callable[[int], None] | None) -> None:
    threads = [threading.Thread(target=work.run, name=f"hash-{number}", daemon=True) for number in range(readers)]
    told = 0
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(None if progress is None else REPORT_EVERY_S)
                told = _tell(work.counts, told, progress)
        _tell(work.counts, told, progress)
    except BaseException:
        work.halt.set()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _tell(counts: Sequence[int], told: int, progress: Callable[[int], None] | None) -> int:
    read = sum(counts)
    if progress is not None and read > told:
        progress(read - told)
    return read


def _owners(folder: Path) -> frozenset[int]:
    """Who may own a blob: root, we, and whoever owns the store and could replace any blob of it anyway."""
    try:
        return frozenset({0, os.geteuid(), folder.stat().st_uid})
    except OSError:
        return frozenset({0, os.geteuid()})


def _open(path: Path) -> int:
    # O_NONBLOCK: a pipe that took a blob's place since it was looked at must not hold us.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _mark(blob: Blob, info: os.stat_result) -> list[Any]:
    return [blob.name, info.st_dev, info.st_ino, info.st_size, str(info.st_mtime_ns), str(info.st_ctime_ns)]


def _judge_kind(name: str, info: os.stat_result, owners: frozenset[int]) -> None:
    """Raises `IntegrityError` `blob_unsafe` for what is no regular file, or may be written by others than its owner."""
    why = ""
    if stat.S_ISLNK(info.st_mode):
        why = "a link"
    elif not stat.S_ISREG(info.st_mode):
        why = "no regular file"
    elif info.st_uid not in owners:
        why = f"owned by user {info.st_uid}"
    elif info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = f"writable by others (mode {stat.S_IMODE(info.st_mode):04o})"
    if why:
        raise IntegrityError("blob_unsafe", f"the stored {name} is {why}", HINT)


def _unread(name: str, error: OSError) -> IntegrityError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return IntegrityError("blob_missing", f"the stored bytes of {name} are gone", HINT)
    if error.errno == errno.ELOOP:
        return IntegrityError("blob_unsafe", f"the stored {name} is a link", HINT)
    return IntegrityError("blob_unreadable", f"{name}: {error.strerror}", "mend the disk or the rights of the file")
