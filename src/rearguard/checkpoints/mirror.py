"""A folder on another disk that keeps a second copy of the store's blobs: `ports.CheckpointCopy` on a file system.

Blobs lie as in the store, FOLDER/blobs/sha256/HEX, so that `registry import --blobs FOLDER` and an OCI layout find them. A
marker in the folder says whose copy it is: a folder that had it and has it no longer is a mount point without its disk, and
is not written to. A blob is verified from the disk, past the page cache where the file system can.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rearguard.checkpoints import hashing
from rearguard.checkpoints.storage import domain_of
from rearguard.errors import ConflictError, DependencyError, IntegrityError, RefusedError
from rearguard.evidence.files import replace_file

MARKER = "rearguard-mirror.json"
_FORMAT = "rearguard/mirror/1"
_HEX = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_HINT = "mount its disk, and make the folder writable; `rearguard checkpoint mirror` shows how it stands"


def unavailable(folder: Path, why: str, hint: str = _HINT) -> DependencyError:
    """The folder is not there, or not as it should be."""
    return DependencyError("mirror_unavailable", f"the second copy at {folder}: {why}", hint)


class FolderMirror:
    """`ports.CheckpointCopy` on a folder."""

    def __init__(self, folder: Path, store_id: str, reading: hashing.Reading | None = None) -> None:
        """`store_id` names the store whose copy it is; `reading` paces and stops what is read and written."""
        self.folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._store_id = store_id
        self._reading = reading or hashing.Reading(mode=hashing.HashMode.DIRECT)

    def prepare(self, *, known: bool, anew: bool) -> None:
        """See `ports.CheckpointCopy`. The folder itself has to be there: it is never made."""
        with self._wrapped():
            names = set(os.listdir(self.folder))
        if MARKER in names:
            self._check_marker()
        else:
            if known and not anew:
                raise unavailable(
                    self.folder,
                    f"it had {MARKER} and has it no longer",
                    "mount its disk; for a new and empty one: `rearguard checkpoint mirror --now --new-disk`",
                )
            strange = sorted(n for n in names - {"lost+found"} if not n.startswith(f".{MARKER}."))
            if strange:
                raise RefusedError(
                    "mirror_not_empty",
                    f"{self.folder} holds {strange[0]} and no {MARKER}: it is no second copy of this store",
                    "name an empty folder as checkpoints.mirror",
                )
            content = json.dumps({"format": _FORMAT, "store": self._store_id}) + "\n"
            self._replace(self.folder / MARKER, content.encode("utf-8"))
        with self._wrapped():
            self._blobs.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Remove what writers that died left; only for whoever holds the lock of those that write (`mirroring`)."""
        with self._wrapped():
            for name in os.listdir(self._blobs):
                if name.startswith(".put."):
                    (self._blobs / name).unlink(missing_ok=True)

    def domain(self) -> str:
        """See `ports.CheckpointCopy`."""
        return domain_of(self.folder)

    def list(self) -> Iterable[str]:
        """See `ports.CheckpointCopy`."""
        with self._wrapped():
            return [name for name in os.listdir(self._blobs) if _HEX.fullmatch(name)]

    def put(self, sha256: str, chunks: Iterable[bytes]) -> None:
        """See `ports.CheckpointCopy`. The marker is looked at each time: the disk may have gone since the last blob."""
        self._check_marker()
        hasher, temporary = hashlib.sha256(), self._blobs / f".put.{os.getpid()}.{threading.get_ident()}"
        try:
            with self._wrapped(), temporary.open("wb") as writer:
                for chunk in chunks:
                    hasher.update(chunk)
                    writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
                # What is written here is not read from here: the page cache belongs to the model that serves.
                os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if hasher.hexdigest() != sha256:
                raise IntegrityError("blob_altered", f"the source of {sha256[:12]} is not what was registered", "")
            with self._wrapped():
                temporary.chmod(0o444)
                temporary.replace(self._blobs / sha256)
                _sync(self._blobs)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def open(self, sha256: str) -> Iterator[bytes]:
        """See `ports.CheckpointCopy`."""
        return read_past_cache(self._blobs / sha256, f"the second copy of {sha256[:12]}", self._tick)

    def verify(self, sha256: str, size_bytes: int) -> None:
        """See `ports.CheckpointCopy`."""
        name = f"second copy of {sha256[:12]}"
        blob = hashing.Blob(name=name, path=self._blobs / sha256, sha256=sha256, size_bytes=size_bytes)
        hashing.prove([blob], self._reading)

    def remove(self, sha256: str) -> None:
        """See `ports.CheckpointCopy`."""
        if _HEX.fullmatch(sha256) is None:
            return
        with self._wrapped():
            (self._blobs / sha256).unlink(missing_ok=True)
            _sync(self._blobs)

    def publish(self, name: str, content: bytes) -> None:
        """See `ports.CheckpointCopy`."""
        self._check_marker()
        path = self.folder / name
        with contextlib.suppress(OSError):
            if path.read_bytes() == content:
                return
        self._replace(path, content)

    def _check_marker(self) -> None:
        try:
            document = json.loads((self.folder / MARKER).read_text(encoding="utf-8"))
            found = (document["format"], document["store"])
        except OSError as error:
            raise unavailable(self.folder, f"{MARKER}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{self.folder / MARKER} cannot be understood"
            raise RefusedError("mirror_foreign", message, "name an empty folder as checkpoints.mirror") from error
        if found != (_FORMAT, self._store_id):
            raise RefusedError(
                "mirror_foreign",
                f"{self.folder} is the second copy of another store ({found[1]}, this one is {self._store_id})",
                "name another folder as checkpoints.mirror; a copy is taken in with `rearguard registry import --blobs`",
            )

    def _replace(self, path: Path, content: bytes) -> None:
        try:
            replace_file(path, content)
        except DependencyError as error:
            cause = error.__cause__
            raise (self._error(cause) if isinstance(cause, OSError) else error) from error

    @contextlib.contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> DependencyError:
        if error.errno in _FULL:
            hint = "free space on its disk; `rearguard checkpoint gc` frees what is needed no longer"
            return DependencyError("mirror_full", f"the second copy at {self.folder}: {error.strerror}", hint)
        return unavailable(self.folder, error.strerror or type(error).__name__)

    def _tick(self, count: int) -> None:
        tick(self._reading, count)


def tick(reading: hashing.Reading, count: int) -> None:
    """Account for bytes that were read, as `hashing.prove` does. Raises `ConflictError` `hash_stopped` once stopped."""
    if reading.progress is not None:
        reading.progress(count)
    if reading.pace is not None:
        reading.pace.take(count)
    if reading.stop is not None and reading.stop.is_set():
        raise ConflictError("hash_stopped", "the copy was stopped before every byte was read", "run it again")


def read_past_cache(path: Path, name: str, each: Callable[[int], None] = lambda _count: None) -> Iterator[bytes]:
    """The bytes of a regular file in pieces, past the page cache where the file system can.

    Raises `IntegrityError` `blob_missing`, `blob_unreadable`, `blob_unsafe` for a link.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with contextlib.suppress(OSError):
                fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_DIRECT)
            with mmap.mmap(-1, hashing.DIRECT_BLOCK_BYTES) as block, memoryview(block) as view:
                while count := _read(handle, view):
                    yield bytes(view[:count])
                    each(count)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise IntegrityError("blob_missing", f"{name} is gone", hashing.HINT) from error
        code = "blob_unsafe" if error.errno == errno.ELOOP else "blob_unreadable"
        raise IntegrityError(code, f"{name}: {error.strerror}", hashing.HINT) from error


def _read(handle: int, view: memoryview) -> int:
    try:
        return os.readv(handle, [view])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The file system takes the flag and refuses the read, or the tail of the file is not aligned.
        fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~os.O_DIRECT)
        return os.readv(handle, [view])


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
