"""Durable replacement of a whole file: readers see the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from rearguard.errors import DependencyError


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write to a temporary name beside `path`, sync, rename over it, sync the folder.

    Raises `DependencyError` `file_not_written`; the file that stood there before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DependencyError(
            "file_not_written", f"cannot write {path}: {error.strerror}", "free space or make the folder writable"
        ) from error
