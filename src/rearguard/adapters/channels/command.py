"""A message as JSON on the standard input of a command."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict

from rearguard.adapters import process
from rearguard.errors import DependencyError
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Message

TIMEOUT_S = 10.0


class CommandChannel:
    """Runs the declared command without a shell; exit 0 is a yes, whatever it leaves in the background."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings

    def deliver(self, message: Message) -> None:
        """Run once. Raises `DependencyError` `channel_down`."""
        body = json.dumps(asdict(message), sort_keys=True)
        try:
            ended = process.run(self._settings.argv, body.encode("utf-8"), TIMEOUT_S)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise DependencyError(
                "channel_down", f"command {self._settings.name}: {error}", "run it by hand"
            ) from error
        if ended.code != 0:
            tail = ended.stderr.strip()[-300:]
            raise DependencyError(
                "channel_down", f"command {self._settings.name} ended with {ended.code}: {tail}", "run it by hand"
            )


def build(settings: ChannelSettings) -> CommandChannel:
    """Entry point."""
    return CommandChannel(settings)
