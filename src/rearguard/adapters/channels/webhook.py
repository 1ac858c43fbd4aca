"""A message as one JSON POST."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from rearguard.errors import DependencyError
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Message

TIMEOUT_S = 5.0


class WebhookChannel:
    """Posts `{"key", "title", "fields"}`; any 2xx answer is a yes."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings

    def deliver(self, message: Message) -> None:
        """Post once. Raises `DependencyError` `channel_down`."""
        body = json.dumps({"key": message.key, "title": message.title, "fields": message.fields}, sort_keys=True)
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked where the setting is read
            self._settings.url,
            data=body.encode("utf-8"),
            headers={"Content-Type": "application/json", "Idempotency-Key": message.key},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                answer.read()
        except (OSError, urllib.error.HTTPError) as error:
            raise DependencyError(
                "channel_down", f"webhook {self._settings.name}: {error}", "check the receiver; delivery is tried again"
            ) from error


def build(settings: ChannelSettings) -> WebhookChannel:
    """Entry point."""
    return WebhookChannel(settings)
