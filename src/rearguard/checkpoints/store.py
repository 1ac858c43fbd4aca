"""The content store: blobs addressed by sha256, and views that a model server reads.

A blob is the file itself, copied in (a hard link would let its owner edit the stored bytes in place), read-only, and
never rewritten. A view is a folder of symbolic links named as the files were, built once at registration, so that a
restore moves no bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rearguard.errors import DependencyError, IntegrityError, UsageError
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
        blob = self.blobs / sha256
        try:
            content = blob.read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError("blob_missing", f"blob {sha256[:12]} is gone", "add the checkpoint again") from error
        except OSError as error:
            raise IntegrityError(
                "blob_unreadable", f"blob {sha256[:12]}: {error.strerror}", "mend the disk or its rights"
            ) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise IntegrityError("blob_altered", f"blob {sha256[:12]} was altered", "add the checkpoint again")
        return content

    def check_file(self, file: CheckpointFile, progress: Callable[[int], None] | None = None) -> None:
        """Read every byte and compare (R12, R13).

        Raises `IntegrityError` with the code `blob_missing`, `blob_unreadable`, `blob_truncated` or `blob_altered`.
        """
        blob = self.blobs / file.sha256
        hint = "take the checkpoint in again from its source, then `rearguard checkpoint verify`"
        hasher = hashlib.sha256()
        size = 0
        try:
            with blob.open("rb", buffering=0) as reader:
                buffer = bytearray(_CHUNK_BYTES)
                while count := reader.readinto(buffer):
                    hasher.update(memoryview(buffer)[:count])
                    size += count
                    if progress is not None:
                        progress(count)
        except FileNotFoundError as error:
            raise IntegrityError("blob_missing", f"the stored bytes of {file.path} are gone", hint) from error
        except OSError as error:
            raise IntegrityError("blob_unreadable", f"{file.path}: {error.strerror}", hint) from error
        if size < file.size_bytes:
            raise IntegrityError("blob_truncated", f"{file.path} has {size} of {file.size_bytes} bytes", hint)
        if hasher.hexdigest() != file.sha256:
            raise IntegrityError("blob_altered", f"{file.path} is not what was registered", hint)

    def receipt(self, files: Iterable[CheckpointFile]) -> str:
        """What the kernel says of the stored files now; equal text means: not written since. It cannot see bit rot."""
        marks = []
        for file in files:
            try:
                info = (self.blobs / file.sha256).stat()
            except OSError:
                return ""
            marks.append(
                [file.path, info.st_dev, info.st_ino, info.st_size, str(info.st_mtime_ns), str(info.st_ctime_ns)]
            )
        return json.dumps(marks)

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
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            temporary.replace(folder)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            if self._is_sound(folder, files):  # another process was faster
                return folder
            raise DependencyError(
                "store_not_written", f"cannot build {folder}: {error.strerror}", "free space"
            ) from error
        return folder

    def _link(self, folder: Path, file: CheckpointFile) -> str:
        return os.path.relpath(self.blobs / file.sha256, (folder / file.path).parent)

    def _is_sound(self, folder: Path, files: tuple[CheckpointFile, ...]) -> bool:
        """True when the folder holds the links of these files and nothing else."""
        wanted = {file.path: self._link(folder, file) for file in files}
        found = {}
        for parent, folders, names in os.walk(folder):
            for name in [*names, *(f for f in folders if (Path(parent) / f).is_symlink())]:
                path = Path(parent) / name
                found[path.relative_to(folder).as_posix()] = str(path.readlink()) if path.is_symlink() else None
        return found == wanted
