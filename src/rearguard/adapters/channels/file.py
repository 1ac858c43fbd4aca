"""A message as one JSON line appended to a file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from rearguard.errors import DependencyError
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Message


class FileChannel:
    """Appends one line a message."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings

    def deliver(self, message: Message) -> None:
        """Append with one write. Raises `DependencyError` `channel_down`."""
        line = json.dumps(asdict(message), sort_keys=True)
        try:
            handle = os.open(self._settings.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, line.encode("utf-8") + b"\n")
            finally:
                os.close(handle)
        except OSError as error:
            raise DependencyError(
                "channel_down", f"file {self._settings.path}: {error.strerror}", "make the folder writable"
            ) from error


def build(settings: ChannelSettings) -> FileChannel:
    """Entry point."""
    return FileChannel(settings)
