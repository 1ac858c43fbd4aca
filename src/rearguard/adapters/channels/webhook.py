"""A message as one JSON POST."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from rearguard.errors import DependencyError
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Message

TIMEOUT_S = 5.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and its 200 would pass for a yes."""

    def redirect_request(self, *_arguments: Any) -> None:
        """None makes the 3xx answer an `HTTPError`."""


class WebhookChannel:
    """Posts `{"key", "title", "fields"}`; any 2xx answer is a yes, a redirect is not."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings
        self._opener = urllib.request.build_opener(_NoRedirect)

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
            with self._opener.open(request, timeout=TIMEOUT_S):
                pass  # the status line is the answer; a body without end must not hold us
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            raise DependencyError(
                "channel_down", f"webhook {self._settings.name}: {error}", "check the receiver; delivery is tried again"
            ) from error


def build(settings: ChannelSettings) -> WebhookChannel:
    """Entry point."""
    return WebhookChannel(settings)
