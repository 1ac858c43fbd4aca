"""A message as one JSON POST, signed as Standard Webhooks says when there is a secret."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rearguard.errors import DependencyError
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Message

TIMEOUT_S = 5.0
"""From the first byte sent to the status line; a receiver that drips its answer does not hold us longer."""


def signature(secret: str, message_id: str, unix_s: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body` (Standard Webhooks 1.0, "Signature scheme").

    `secret` is `whsec_` and base64.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{unix_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode("ascii")


class _Deadline:
    """Cuts the connection when the time is up: a timeout of the socket begins anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: socket.socket) -> None:
        """Cut this one; its duplicate, because TLS takes the original over."""
        with self._lock:
            self._socket = connected.dup()
        if self.passed:
            self._cut()

    def end(self) -> None:
        """The answer is there, or there will be none."""
        self._timer.cancel()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _cut(self) -> None:
        self.passed = True
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)


class _Watched(http.client.HTTPConnection):
    """Shows its socket to the deadline before TLS and the request begin."""

    deadline: _Deadline

    def connect(self) -> None:
        """As the base class."""
        super().connect()
        self.deadline.watch(self.sock)


class _WatchedTls(http.client.HTTPSConnection, _Watched):
    """The same under TLS."""


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()

        class Connection(_Watched):
            pass

        Connection.deadline = deadline
        self._class = Connection

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._class, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()

        class Connection(_WatchedTls):
            pass

        Connection.deadline = deadline
        self._class = Connection

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._class, req)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and its 200 would pass for a yes."""

    def redirect_request(self, *_arguments: Any) -> None:
        """None makes the 3xx answer an `HTTPError`."""


class WebhookChannel:
    """Posts the message as JSON; any 2xx answer is a yes, a redirect is not."""

    def __init__(
        self,
        settings: ChannelSettings,
        unix_s: Callable[[], float] = time.time,  # noqa: TID251 - edge: the instant of an attempt, for the receiver only
    ) -> None:
        self._settings = settings
        self._unix_s = unix_s

    def deliver(self, message: Message) -> None:
        """Post once. Raises `DependencyError` `channel_down`."""
        body = json.dumps(asdict(message), sort_keys=True).encode("utf-8")
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.key, "User-Agent": "rearguard"}
        if self._settings.secret:
            sent_s = int(self._unix_s())
            headers["webhook-id"] = message.key
            headers["webhook-timestamp"] = str(sent_s)
            headers["webhook-signature"] = signature(self._settings.secret, message.key, sent_s, body)
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked where the setting is read
            self._settings.url, data=body, headers=headers, method="POST"
        )
        deadline = _Deadline(TIMEOUT_S)
        opener = urllib.request.build_opener(_NoRedirect, _Http(deadline), _Https(deadline))
        try:
            with opener.open(request, timeout=TIMEOUT_S):
                pass  # the status line is the answer; a body without end must not hold us
            if deadline.passed:
                raise TimeoutError  # cut off in the midst of the headers, which looks like their end
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            what = f"no answer within {TIMEOUT_S:g} s" if deadline.passed else str(error)
            raise DependencyError(
                "channel_down",
                f"webhook {self._settings.name}: {what}",
                "check the receiver; delivery is tried again, at once with `rearguard messages retry`",
            ) from error
        finally:
            deadline.end()


def build(settings: ChannelSettings) -> WebhookChannel:
    """Entry point."""
    return WebhookChannel(settings)
