"""A folder that somebody hands over with the bytes of checkpoints: blobs by their sha256, an OCI layout, or a state.

Only finds them. Names are not believed: whoever takes a blob in hashes it.
"""

from __future__ import annotations

import stat
from pathlib import Path

from rearguard.errors import UsageError


class BlobFolder:
    """Blobs at FOLDER/blobs/sha256/HEX, FOLDER/sha256/HEX or FOLDER/HEX."""

    def __init__(self, folder: Path) -> None:
        """Raises `UsageError` `blobs_missing` when it is no folder."""
        if not folder.is_dir():
            raise UsageError(
                "blobs_missing", f"{folder} is no folder", "name a folder of blobs, an OCI layout, or a state directory"
            )
        self.folder = folder
        self._places = (folder / "blobs" / "sha256", folder / "sha256", folder)

    def find(self, sha256: str) -> Path | None:
        """The file named `sha256`; None when there is none that is a regular file (links and pipes are not taken)."""
        return next((place / sha256 for place in self._places if size_of(place / sha256) is not None), None)


def size_of(path: Path) -> int | None:
    """Size in bytes of a regular file; None for anything else, also for a link to one."""
    try:
        info = path.lstat()
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None
