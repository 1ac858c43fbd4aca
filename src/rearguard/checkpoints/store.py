"""The content store: blobs addressed by sha256, and views that a model server reads.

A blob is the file itself, its blocks shared where the file system can (reflink) or copied, never hard-linked (that would
let its owner edit the stored bytes in place); read-only, and never rewritten. A view is a folder of symbolic links named
as the files were, built once at registration, so that a restore moves no bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rearguard.checkpoints import claims, faults, hashing
from rearguard.checkpoints.sources import SourceFile as SourceFile
from rearguard.checkpoints.sources import changed, mark_of, open_source
from rearguard.checkpoints.sources import list_sources as list_sources
from rearguard.errors import ConflictError, DependencyError, IntegrityError
from rearguard.model.checkpoint import CheckpointFile
from rearguard.model.service import Digest
from rearguard.rules.chain import canonical_bytes

_CHUNK_BYTES = 128 * 1024
"""Of one write. Writes of 1 MiB cost four and a half times as much processor time here. Measured."""
_FICLONE = 0x40049409
"""ioctl of linux/fs.h: let two files share their blocks until one is written."""
_NO_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.EBADF}
)
"""What file systems say that cannot, or cannot between these two."""


def checkpoint_digest(*, format: str, files: Iterable[CheckpointFile], golden_sha256: str) -> Digest:
    """Address of a checkpoint: sha256 of the canonical manifest. Name and version are labels, not part of it."""
    manifest = {
        "format": format,
        "files": [{"path": f.path, "sha256": f.sha256, "size": f.size_bytes} for f in files],
        "golden": golden_sha256,
    }
    return Digest("sha256:" + hashlib.sha256(canonical_bytes(manifest)).hexdigest())


def _nobody(_count: int) -> None:
    """Nobody looks on."""


def _hash(handle: int, progress: Callable[[int], None] = _nobody) -> str:
    """sha256 of a file from its beginning, wherever its descriptor stands."""
    hasher, buffer, at = hashlib.sha256(), bytearray(hashing.BUFFER_BYTES), 0
    with memoryview(buffer) as view:
        while count := os.preadv(handle, [view], at):
            hasher.update(view[:count])
            at += count
            progress(count)
    return hasher.hexdigest()


def _clone(source: int, writer: int) -> bool:
    """Share the blocks of `source`, where the file system can."""
    try:
        fcntl.ioctl(writer, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def _copy_hashed(source: int, writer: int, size_bytes: int, progress: Callable[[int], None]) -> str:
    """Copy and hash in one pass; stops after `size_bytes`, also when somebody goes on writing the source."""
    hasher, buffer, at = hashlib.sha256(), bytearray(_CHUNK_BYTES), 0
    with memoryview(buffer) as view:
        while at <= size_bytes and (count := os.preadv(source, [view], at)):
            hasher.update(view[:count])
            _write(writer, view[:count])
            at += count
            progress(count)
            faults.reach("ingest", "in_copy")
    return hasher.hexdigest()


def _write(writer: int, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(writer, left) :]


def _unexpected(source: SourceFile) -> IntegrityError:
    return IntegrityError(
        "blob_altered",
        f"{source.source} is not what its name says; nothing was registered",
        "copy it again from where it came",
    )


def _not_written(message: str) -> DependencyError:
    return DependencyError("store_not_written", message, "free space on the state directory's disk")


_VIEW_TRIES = 20
"""Chosen: so often in a row nobody is overtaken who does not fight over one view all the time."""


class ContentStore:
    """Blobs and views below the state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.blobs = state / "blobs" / "sha256"
        self.views = state / "views"
        self.aside = state / "aside"
        """What stood in the place of a blob and was replaced: outside of the layout that the blobs are part of."""
        self.incoming = state / "incoming"
        """Where a pull gathers what it fetches; empty when nobody pulls."""
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

    def sweep(self) -> int:
        """Remove what processes that died left half taken in; returns how much that was. What is in use stays."""
        return sum(claims.sweep(folder) for folder in (self.blobs, self.views, self.incoming))

    def put_files(
        self, sources: Iterable[SourceFile], progress: Callable[[int], None] = _nobody
    ) -> tuple[CheckpointFile, ...]:
        """Take files in, one after the other; `progress` is given the bytes done since its last call.

        What is in the store already is hashed and not copied, so a second call after a kill copies only what is missing.
        Raises as `put_file`, and before anything is copied `DependencyError` `store_full` when the rest cannot fit.
        """
        wanted, sizes = tuple(sources), self._sizes()
        self._require_room(sum(s.size_bytes for s in wanted if s.size_bytes not in sizes), wanted[0].source)
        return tuple(self.put_file(source, progress=progress, sizes=sizes) for source in wanted)

    def put_file(
        self,
        source: SourceFile,
        *,
        expected: str = "",
        progress: Callable[[int], None] = _nobody,
        sizes: set[int] | None = None,
    ) -> CheckpointFile:
        """Take one file in, by sharing its blocks or by copying it, never by a hard link. Idempotent by content.

        `sizes` are those of the blobs that are here, when the caller knows. Raises `IntegrityError` `blob_altered` when
        it is not the `expected` bytes, `ConflictError` `source_changed` when it was written meanwhile, `UsageError` as
        `open_source`, `DependencyError` `store_full`, `store_not_written` (disk full, no right).
        """
        handle = open_source(source)
        try:
            info = os.fstat(handle)
            digest = ""
            if info.st_size in (self._sizes() if sizes is None else sizes):
                digest = _hash(handle)
                if expected and digest != expected:
                    raise _unexpected(source)
                if not self._is_intact(digest, info.st_size):
                    digest = ""
            if not digest:
                self._require_room(info.st_size, source.source)
                digest = self._copy(source, handle, info.st_size, expected, progress)
            else:
                progress(info.st_size)
            if not source.ours and mark_of(os.fstat(handle)) != mark_of(info):
                raise changed(source)
        except OSError as error:
            raise _not_written(f"cannot store {source.source}: {error.strerror}") from error
        finally:
            os.close(handle)
        if sizes is not None:
            sizes.add(info.st_size)
        return CheckpointFile(path=source.path, sha256=digest, size_bytes=info.st_size)

    def _copy(
        self, source: SourceFile, handle: int, size_bytes: int, expected: str, progress: Callable[[int], None]
    ) -> str:
        """The bytes under a temporary name, then under their own; the sha256 is of what was written."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        if source.ours:
            return self._move(source, handle, expected, progress)
        faults.reach("ingest", "before_copy")
        with claims.file(self.blobs) as (temporary, writer):
            cloned = _clone(handle, writer)
            digest = _hash(writer, progress) if cloned else _copy_hashed(handle, writer, size_bytes, progress)
            faults.reach("ingest", "copied")
            if os.fstat(writer).st_size != size_bytes:
                raise changed(source)
            if expected and digest != expected:
                raise _unexpected(source)
            self._keep(temporary, writer, digest)
        return digest

    def _move(self, source: SourceFile, handle: int, expected: str, progress: Callable[[int], None]) -> str:
        digest = _hash(handle, progress)
        if expected and digest != expected:
            raise _unexpected(source)
        self._keep(source.source, handle, digest)
        return digest

    def put_bytes(self, content: bytes) -> str:
        """Store bytes; returns their sha256."""
        digest = hashlib.sha256(content).hexdigest()
        if self._is_intact(digest, len(content)):
            return digest
        try:
            self.blobs.mkdir(parents=True, exist_ok=True)
            with claims.file(self.blobs) as (temporary, writer):
                _write(writer, content)
                self._keep(temporary, writer, digest)
        except OSError as error:
            raise _not_written(f"cannot store a blob: {error.strerror}") from error
        return digest

    def _keep(self, temporary: Path, writer: int, digest: str) -> None:
        """Over whatever stood there: absent, or no longer what its name says, so the same bytes mend it."""
        os.fchmod(writer, 0o444)
        os.fsync(writer)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if stat.S_ISDIR((self.blobs / digest).lstat().st_mode):  # over a folder nothing can be renamed
                self.aside.mkdir(exist_ok=True)
                (self.blobs / digest).rename(self.aside / f"{digest}.{len(os.listdir(self.aside)) + 1}")
        temporary.replace(self.blobs / digest)
        handle = os.open(self.blobs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        faults.reach("ingest", "blob_kept")

    def _is_intact(self, digest: str, size_bytes: int) -> bool:
        """True when the blob is there and every byte of it is read and right."""
        try:
            hashing.prove([hashing.Blob(name=digest, path=self.blobs / digest, sha256=digest, size_bytes=size_bytes)])
        except (IntegrityError, ConflictError):
            return False
        return True

    def _sizes(self) -> set[int]:
        """Sizes of the blobs that are here: a file of another size is not among them and need not be hashed to know."""
        sizes: set[int] = set()
        with contextlib.suppress(OSError), os.scandir(self.blobs) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    with contextlib.suppress(OSError):  # gone since it was listed
                        sizes.add(entry.stat(follow_symlinks=False).st_size)
        return sizes

    def _require_room(self, size_bytes: int, source: Path) -> None:
        """Also of a file that claims to be huge and is a hole."""
        folder = next(f for f in (self.blobs, *self.blobs.parents) if f.exists())
        free_bytes = shutil.disk_usage(folder).free
        if size_bytes > free_bytes:
            raise DependencyError(
                "store_full",
                f"taking in {source} needs {size_bytes} bytes, {folder} has {free_bytes} free; nothing was copied",
                "free space on the state directory's disk",
            )

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
        for left in reversed(range(_VIEW_TRIES)):
            try:
                self._build_view(folder, files)
                break
            except OSError as error:
                if self._is_sound(folder, files):  # another one was faster
                    break
                if left and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    continue  # somebody put another one there, or took it away, between our two moves
                raise DependencyError(
                    "store_not_written",
                    f"cannot build {folder}: {error.strerror}",
                    f"free space, and make {self.views} writable for this user",
                ) from error
        return folder

    def _build_view(self, folder: Path, files: tuple[CheckpointFile, ...]) -> None:
        self.views.mkdir(parents=True, exist_ok=True)
        with claims.folder(self.views) as built, claims.folder(self.views) as aside:
            for file in files:
                link = built / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._link(folder, file))
            if os.path.lexists(folder):
                folder.rename(aside / folder.name)
            built.chmod(0o755)
            built.replace(folder)

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
                try:
                    found[path.relative_to(folder).as_posix()] = str(path.readlink()) if path.is_symlink() else None
                except FileNotFoundError:
                    return False  # another one is building it
        return found == wanted
