"""The content store: blobs addressed by sha256, and views that a model server reads.

A blob is the file itself, copied in (a hard link would let its owner edit the stored bytes in place), read-only, and
never rewritten. A view is a folder of symbolic links named as the files were, built once at registration, so that a
restore moves no bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rearguard.checkpoints import hashing
from rearguard.errors import ConflictError, DependencyError, UsageError
from rearguard.model.checkpoint import CheckpointFile
from rearguard.model.service import Digest
from rearguard.rules.chain import canonical_bytes

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to take in: its path inside the checkpoint, and where it lies now."""

    path: str
    source: Path


def list_sources(path: Path) -> tuple[SourceFile, ...]:
    """The regular files of a checkpoint given as one file or one folder, sorted by path.

    Raises `UsageError`: `checkpoint_path_missing`, `checkpoint_empty`, `checkpoint_unsafe_file` for links, devices
    and sockets (a link could lead outside and change later).
    """
    if not path.exists():
        raise UsageError(
            "checkpoint_path_missing",
            f"{path} does not exist",
            f"name the model file, or the folder that holds it; the current folder is {Path.cwd()}",
        )
    if path.is_file() and not path.is_symlink():
        return (SourceFile(path=path.name, source=path),)
    if not path.is_dir():
        raise UsageError(
            "checkpoint_unsafe_file",
            f"{path} is neither a regular file nor a folder",
            "name the model file itself or its folder; links and devices are refused",
        )
    found = []
    for folder, folders, names in os.walk(path):
        for name in sorted([*names, *(f for f in folders if (Path(folder) / f).is_symlink())]):
            source = Path(folder) / name
            if not stat.S_ISREG(source.lstat().st_mode):
                raise UsageError(
                    "checkpoint_unsafe_file",
                    f"{source} is not a regular file",
                    "copy the file itself into the folder; links and devices are refused",
                )
            found.append(SourceFile(path=str(PurePosixPath(source.relative_to(path))), source=source))
    if not found:
        raise UsageError("checkpoint_empty", f"{path} holds no files", "name the model file or its folder")
    return tuple(sorted(found, key=lambda f: f.path))


def checkpoint_digest(*, format: str, files: Iterable[CheckpointFile], golden_sha256: str) -> Digest:
    """Address of a checkpoint: sha256 of the canonical manifest. Name and version are labels, not part of it."""
    manifest = {
        "format": format,
        "files": [{"path": f.path, "sha256": f.sha256, "size": f.size_bytes} for f in files],
        "golden": golden_sha256,
    }
    return Digest("sha256:" + hashlib.sha256(canonical_bytes(manifest)).hexdigest())


def _remove(path: Path) -> None:
    """Whatever stands there; nothing, when it cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _is_intact(blob: Path, sha256: str) -> bool:
    try:
        with blob.open("rb") as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest() == sha256
    except OSError:
        return False


class ContentStore:
    """Blobs and views below the state directory."""

    def __init__(self, state: Path) -> None:
        self.blobs = state / "blobs" / "sha256"
        self.views = state / "views"
        self._lock = state / "store.lock"

    @contextlib.contextmanager
    def ingesting(self) -> Iterator[None]:
        """Hold what comes in against a collection, until it is registered; several may hold it at a time.

        Waits while somebody collects. Raises `DependencyError` `store_not_written`.
        """
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Be alone with the store: nothing comes in meanwhile. Raises `ConflictError` `store_busy`, at once."""
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            hint = "make the state directory writable"
            raise DependencyError("store_not_written", f"cannot open {self._lock}: {error.strerror}", hint) from error
        try:
            fcntl.flock(handle, kind)
        except BlockingIOError as error:
            os.close(handle)
            raise ConflictError(
                "store_busy", f"checkpoints are being taken in ({self._lock} is held)", "try again when that is done"
            ) from error
        try:
            yield
        finally:
            os.close(handle)

    def put_file(self, source: SourceFile) -> CheckpointFile:
        """Copy one file in; idempotent by content. Raises `DependencyError` `store_not_written` (disk full, no right)."""
        hasher = hashlib.sha256()
        size = 0
        temporary = self.blobs / f".ingest.{os.getpid()}"
        try:
            self.blobs.mkdir(parents=True, exist_ok=True)
            with source.source.open("rb") as reader, temporary.open("wb") as writer:
                while chunk := reader.read(_CHUNK_BYTES):
                    hasher.update(chunk)
                    size += writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
            self._keep(temporary, hasher.hexdigest())
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise DependencyError(
                "store_not_written",
                f"cannot store {source.source}: {error.strerror}",
                "free space on the state directory's disk",
            ) from error
        return CheckpointFile(path=source.path, sha256=hasher.hexdigest(), size_bytes=size)

    def put_bytes(self, content: bytes) -> str:
        """Store bytes; returns their sha256."""
        digest = hashlib.sha256(content).hexdigest()
        temporary = self.blobs / f".ingest.{os.getpid()}"
        try:
            self.blobs.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as writer:
                writer.write(content)
                writer.flush()
                os.fsync(writer.fileno())
            self._keep(temporary, digest)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise DependencyError(
                "store_not_written",
                f"cannot store a blob: {error.strerror}",
                "free space on the state directory's disk",
            ) from error
        return digest

    def _keep(self, temporary: Path, digest: str) -> None:
        blob = self.blobs / digest
        if _is_intact(blob, digest):
            temporary.unlink()
            return
        # Absent, or no longer what its name says: taking the same bytes in again mends it.
        temporary.chmod(0o444)
        temporary.replace(blob)
        handle = os.open(self.blobs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def get_bytes(self, sha256: str) -> bytes:
        """Content of a small blob, its digest checked. Raises as `check_file` does."""
        return hashing.read_small(self.blobs / sha256, sha256)

    def blobs_of(self, files: Iterable[CheckpointFile]) -> tuple[hashing.Blob, ...]:
        """Where the bytes of these files lie and what they have to be, ready to be hashed."""
        return tuple(
            hashing.Blob(name=f.path, path=self.blobs / f.sha256, sha256=f.sha256, size_bytes=f.size_bytes)
            for f in files
        )

    def holds(self, sha256: str) -> bool:
        """True when a blob of that name is there, whatever its bytes."""
        return os.path.lexists(self.blobs / sha256)

    def check_file(self, file: CheckpointFile) -> None:
        """Read every byte and compare (R12, R13). Raises `IntegrityError` as `hashing.prove`."""
        hashing.prove(self.blobs_of([file]), is_known=self.holds)

    def receipt(self, files: Iterable[CheckpointFile]) -> str:
        """What the kernel says of the stored files now; equal text means: not written since. It cannot see bit rot."""
        return hashing.stat_receipt(self.blobs_of(files))

    def view(self, digest: Digest, files: Iterable[CheckpointFile]) -> Path:
        """Folder with the checkpoint's files under their own names; built once, atomically, and idempotent.

        The links are relative, so a state directory may be moved. A folder that is not exactly what the files say is
        put aside and built anew: it is derived, and what was proven are the blobs.
        """
        files = tuple(files)
        folder = self.views / digest.removeprefix("sha256:")
        if self._is_sound(folder, files):
            return folder
        temporary = self.views / f".{folder.name}.{os.getpid()}"
        aside = self.views / f".{folder.name}.{os.getpid()}.aside"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            for file in files:
                link = temporary / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._link(folder, file))
            if os.path.lexists(folder):
                _remove(aside)
                folder.rename(aside)
            temporary.replace(folder)
            _remove(aside)
        except OSError as error:
            if self._is_sound(folder, files):  # another process was faster
                return folder
            raise DependencyError(
                "store_not_written", f"cannot build {folder}: {error.strerror}", "free space"
            ) from error
        return folder

    def view_is_altered(self, digest: Digest, files: Iterable[CheckpointFile]) -> bool:
        """True when a view stands that is not the links of these files; one that was never built is not altered."""
        folder = self.views / digest.removeprefix("sha256:")
        return os.path.lexists(folder) and not self._is_sound(folder, tuple(files))

    def _link(self, folder: Path, file: CheckpointFile) -> str:
        return os.path.relpath(self.blobs / file.sha256, (folder / file.path).parent)

    def _is_sound(self, folder: Path, files: tuple[CheckpointFile, ...]) -> bool:
        """True when it is a folder, and no link to one, that holds the links of these files and nothing else."""
        if folder.is_symlink():
            return False  # relative links in a folder elsewhere lead elsewhere
        wanted = {file.path: self._link(folder, file) for file in files}
        found = {}
        for parent, folders, names in os.walk(folder):
            for name in [*names, *(f for f in folders if (Path(parent) / f).is_symlink())]:
                path = Path(parent) / name
                found[path.relative_to(folder).as_posix()] = str(path.readlink()) if path.is_symlink() else None
        return found == wanted
