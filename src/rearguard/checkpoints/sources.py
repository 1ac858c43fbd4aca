"""The files that somebody wants taken in: found, named, and opened without being led elsewhere.

A source is listed without being opened, and opened once, later, without following a link at any step below the folder
that was named. What is then opened must be the very file that was listed.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from rearguard.errors import ConflictError, UsageError
from rearguard.rules import file_names

Mark = tuple[int, int, int, int, int]
"""Device, inode, size, times of content and of status: what changes when a file is written or replaced."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_STEP = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_LINKS = "copy the file itself into the folder; links and devices are refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to take in: its path inside the checkpoint, and where it lies now."""

    path: str
    source: Path
    root: Path | None = None
    """The folder that was named; below it no link is followed. None: the file itself was named."""
    mark: Mark | None = None
    """What was listed; None: whatever regular file is found."""
    size_bytes: int = 0
    """As listed."""
    ours: bool = False
    """Made by us on the store's own file system, and nobody else's: it may be moved in."""


def list_sources(path: Path) -> tuple[SourceFile, ...]:
    """The regular files of a checkpoint given as one file or one folder, sorted by path. Opens none of them.

    Raises `UsageError`: `checkpoint_path_missing`, `checkpoint_empty`, `checkpoint_unsafe_file` for links, devices
    and sockets (a link could lead outside and change later), `checkpoint_unsafe_name` for names that no checkpoint may
    hold: controls, absurd depth, length or number.
    """
    if not path.exists():
        raise UsageError(
            "checkpoint_path_missing",
            f"{path} does not exist",
            f"name the model file, or the folder that holds it; the current folder is {Path.cwd()}",
        )
    info = path.lstat()
    if stat.S_ISREG(info.st_mode):
        found = [_listed(path.name, path, None, info)]
    elif path.is_dir():
        found = _list_folder(path)
    else:
        raise UsageError(
            "checkpoint_unsafe_file",
            f"{path} is neither a regular file nor a folder",
            "name the model file itself or its folder; links and devices are refused",
        )
    if not found:
        raise UsageError("checkpoint_empty", f"{path} holds no files", "name the model file or its folder")
    _refuse_names(found)
    return tuple(sorted(found, key=lambda f: f.path))


def _list_folder(path: Path) -> list[SourceFile]:
    found: list[SourceFile] = []
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder, folders, names, handle in os.fwalk(".", dir_fd=root, follow_symlinks=False):
            inside = "" if folder == "." else f"{folder.removeprefix('./')}/"
            if inside.count("/") > file_names.MAX_DEPTH:
                _refuse_names([SourceFile(path=f"{inside}x", source=path)])
            for name in sorted([*names, *folders]):
                info = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode) and name in folders:
                    continue
                if not stat.S_ISREG(info.st_mode):
                    raise UsageError(
                        "checkpoint_unsafe_file", f"{path / f'{inside}{name}'} is not a regular file", _LINKS
                    )
                found.append(_listed(f"{inside}{name}", path / f"{inside}{name}", path, info))
                if len(found) > file_names.MAX_FILES:
                    _refuse_names(found)
    finally:
        os.close(root)
    return found


def _listed(name: str, source: Path, root: Path | None, info: os.stat_result) -> SourceFile:
    return SourceFile(path=name, source=source, root=root, mark=mark_of(info), size_bytes=info.st_size)


def _refuse_names(found: list[SourceFile]) -> None:
    path, why = file_names.fault_of_all(source.path for source in found)
    if why:
        raise UsageError(
            "checkpoint_unsafe_name",
            f"no checkpoint may hold the file {path[:200]!r}: {why}",
            "rename it, or copy the files of the model alone into a folder",
        )


def mark_of(info: os.stat_result) -> Mark:
    """What tells one state of a file from another."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def open_source(source: SourceFile) -> int:
    """A descriptor of exactly the regular file that was listed; the caller closes it.

    Raises `UsageError` `checkpoint_unsafe_file`, `source_unreadable`; `ConflictError` `source_changed`.
    """
    try:
        handle = _open(source)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            message = f"{source.source} is reached through a link, or is no regular file"
            raise UsageError("checkpoint_unsafe_file", message, _LINKS) from error
        if error.errno == errno.ENOENT and source.mark is not None:
            raise changed(source) from error
        message = f"cannot read {source.source}: {error.strerror}"
        raise UsageError("source_unreadable", message, "make it readable for this user") from error
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise UsageError("checkpoint_unsafe_file", f"{source.source} is not a regular file", _LINKS)
    if source.mark is not None and mark_of(info) != source.mark:
        os.close(handle)
        raise changed(source)
    return handle


def changed(source: SourceFile) -> ConflictError:
    """The source is not what it was a moment ago."""
    return ConflictError(
        "source_changed",
        f"{source.source} was written or replaced while it was taken in; nothing was registered",
        "wait until whoever writes it is done, then repeat the command",
    )


def _open(source: SourceFile) -> int:
    if source.root is None:
        return os.open(source.source, _OPEN)
    *folders, name = source.path.split("/")
    at = os.open(source.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, _STEP, dir_fd=at)
            os.close(at)
            at = below
        return os.open(name, _OPEN, dir_fd=at)
    finally:
        os.close(at)
