"""A target that speaks the Open Inference Protocol (V2 REST) and its model repository extension.

Made for `rearguard serve`, whose load call takes the digest, the epoch and the key as parameters. Standard library
only, one connection a call: a stale kept-alive connection would look like a dead target. A call ends within its time
limit, also when the answer drips.

Options: `url` (`http://host:port`), `model` (name in the paths), `timeout_s` (default 5; of `active`, and of nothing
else: an activation and a probe bring their own).

It holds standbys (`ports.WarmTarget`) where `/v2` names the extension `rearguard_standby`: a load with `activate: false`. Any
other server is never asked to, because it would take that load for an order to serve.

A timed-out activation may still take effect later; the epoch fences it off once a newer order was given.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import socket
import threading
import time
from typing import Any
from urllib.parse import quote, urlsplit

from rearguard.errors import ConfigError, DependencyError, RefusedError, TransientTargetError
from rearguard.model.service import Digest, Place
from rearguard.ports import Activated, Activation, ProbeAnswer, Standby

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ACCEPTED = "url (http://host:port), model, timeout_s (seconds, default 5)"
_STANDBY_EXTENSION = "rearguard_standby"
_MAX_ANSWER_BYTES = 256 * 1024 * 1024

_probe_numbers = itertools.count(1)
"""One count a process: with the process id it makes the ids of probes distinct without a random source."""


class _Cut:
    """Ends a call whose time is up."""

    def __init__(self, seconds: float) -> None:
        self.done = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: socket.socket) -> None:
        """Cut this one; its duplicate, because the connection lets go of it once the head of the answer is read."""
        with self._lock:
            self._socket = connected.dup()
        if self.done:
            self._cut()

    def cancel(self) -> None:
        """The call has ended."""
        self._timer.cancel()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _cut(self) -> None:
        self.done = True
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)


class OipTarget:
    """`ports.WarmTarget` over HTTP. Holds no connection, so any thread may use it at any time."""

    def __init__(self, *, host: str, port: int, model: str, timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._model = model
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._load_path = f"/v2/repository/models/{quote(model, safe='')}/load"
        self._unload_path = f"/v2/repository/models/{quote(model, safe='')}/unload"
        self._timeout_s = timeout_s

    def activate(self, order: Activation) -> Activated:
        """Post the load; the server answers once new requests are answered by `order.digest`.

        A second call with the same key changes nothing (the server compares it with the last applied).
        """
        status, answer = self._load(order, {})
        self._accept(status, answer)
        if answer.get("digest") not in (None, order.digest):
            raise DependencyError(
                "target_bad_answer", f"{self} activated {answer.get('digest')!r} instead of {order.digest}"
            )
        warm = answer.get("warm")
        return Activated(warm=warm if isinstance(warm, bool) else None)

    def prepare(self, order: Activation, memory_bytes: int | None) -> None:
        """Post the load of a standby; the server answers once it has answered an inference.

        A second call of a digest that stands or serves changes nothing (the server knows what it has loaded).
        """
        self._require_extension(order.timeout_s)
        status, answer = self._load(order, {"activate": False, "memory_bytes": memory_bytes})
        code = answer.get("code")
        if status == 422 and isinstance(code, str) and code.startswith("standby_"):
            raise RefusedError(code, f"{self}: {str(answer.get('error', ''))[:500]}", str(answer.get("hint", ""))[:200])
        self._accept(status, answer)

    def unload(self, digest: Digest) -> None:
        """Post the unload of one digest; what is not loaded is as it should be.

        Never sent to a server without the extension, for which it would mean the whole model.
        """
        self._require_extension(self._timeout_s)
        status, answer = self._call("POST", self._unload_path, {"parameters": {"digest": digest}}, self._timeout_s)
        if (status, answer.get("code")) == (404, "not_loaded"):
            return
        if status == 409:
            code, hint = str(answer.get("code") or "target_refused"), str(answer.get("hint", ""))[:200]
            raise RefusedError(code, f"{self}: {str(answer.get('error', ''))[:500]}", hint)
        self._accept(status, answer)

    def standbys(self) -> tuple[Standby, ...]:
        """From the repository's index: every slot but the active one."""
        status, raw = self._exchange("POST", "/v2/repository/index", {}, self._timeout_s)
        if status >= 500:
            self._accept(status, self._parse(status, raw))
        entries = self._read_json(status, raw) if status < 300 else None
        if not isinstance(entries, list):
            raise self._unsupported()
        found = []
        for entry in entries:
            parameters = entry.get("parameters") if isinstance(entry, dict) else None
            if not isinstance(parameters, dict) or not isinstance(parameters.get("answered"), bool):
                raise self._unsupported()
            if not parameters.get("active"):
                found.append(self._standby(entry, parameters))
        if not found:
            self._require_extension(self._timeout_s)  # an empty index says nothing of what the server can
        return tuple(found)

    def active(self) -> Digest | None:
        """Digest from the model's metadata; `DependencyError` when the server does not tell one at all."""
        status, answer = self._call("GET", self._path, None, self._timeout_s)
        self._accept(status, answer)
        parameters = answer.get("parameters")
        if not isinstance(parameters, dict) or "digest" not in parameters:
            raise DependencyError(
                "target_without_digest",
                f"{self} does not say which digest it serves",
                "serve it with `rearguard serve`, or use the target `command`",
            )
        digest = parameters["digest"]
        return None if digest in (None, "") else self._digest(digest)

    def probe(self, request: dict[str, Any], timeout_s: float) -> ProbeAnswer:
        """Post `request` with an id of our own to the unversioned path, as a client would."""
        probe_id = f"rearguard-probe-{os.getpid()}-{next(_probe_numbers)}"
        started_ns = time.monotonic_ns()  # noqa: TID251 - edge: latency
        status, answer = self._call("POST", f"{self._path}/infer", {**request, "id": probe_id}, timeout_s)
        latency_ms = (time.monotonic_ns() - started_ns) / 1e6  # noqa: TID251 - edge: latency
        self._accept(status, answer)
        if answer.get("id") not in (None, "", probe_id):
            raise DependencyError("target_bad_answer", f"{self} answered {answer.get('id')!r} to {probe_id!r}")
        outputs = answer.get("outputs")
        if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
            raise DependencyError("target_bad_answer", f"{self} answered without outputs")
        parameters = answer.get("parameters")
        digest = parameters.get("digest") if isinstance(parameters, dict) else None
        return ProbeAnswer(
            digest=None if digest is None else self._digest(digest), response=answer, latency_ms=latency_ms
        )

    def close(self) -> None:
        """Nothing is held open."""

    def __str__(self) -> str:
        return f"http://{self._host}:{self._port} model {self._model}"

    def _standby(self, entry: dict[str, Any], parameters: dict[str, Any]) -> Standby:
        up, rss = entry.get("state") == "READY", parameters.get("rss_bytes")
        reason = str(entry.get("reason") or "")[:500]
        return Standby(
            digest=self._digest(parameters.get("digest")),
            ready=up and parameters["answered"],
            reason=reason or ("" if parameters["answered"] else "it has answered no inference"),
            rss_bytes=rss if type(rss) is int else None,
        )

    def _load(self, order: Activation, more: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Post a load. Raises `RefusedError` `target_epoch_stale`."""
        parameters = {
            "digest": order.digest,
            "version": order.version,
            "format": order.format,
            "path": order.path,
            "trusted_types": list(order.trusted_types),
            "epoch": order.epoch,
            "key": order.key,
            "warmup": order.warmup,
            **({} if order.sandbox_memory_bytes is None else {"sandbox_memory_bytes": order.sandbox_memory_bytes}),
            **more,
        }
        status, answer = self._call("POST", self._load_path, {"parameters": parameters}, order.timeout_s)
        if status == 409:
            raise RefusedError(
                "target_epoch_stale",
                f"{self} has seen epoch {answer.get('epoch', '?')}, the order has {order.epoch}",
                "another officer gave a newer order; look at the place again",
            )
        return status, answer

    def _require_extension(self, timeout_s: float) -> None:
        status, answer = self._call("GET", "/v2", None, timeout_s)
        if status >= 500:
            self._accept(status, answer)
        extensions = answer.get("extensions") if status < 300 else None
        if not isinstance(extensions, list) or _STANDBY_EXTENSION not in extensions:
            raise self._unsupported()

    def _unsupported(self) -> DependencyError:
        return DependencyError(
            "standby_unsupported",
            f"{self} cannot hold a second checkpoint loaded",
            "serve it with `rearguard serve`, keep a warm version on the server's side, or set `standby: false`",
        )

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> tuple[int, dict[str, Any]]:
        status, raw = self._exchange(method, path, body, timeout_s)
        return status, self._parse(status, raw)

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        # A timeout of the socket begins anew with every byte; this one does not.
        cut = _Cut(timeout_s)
        try:
            connection.connect()
            cut.watch(connection.sock)
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"content-type": "application/json", "connection": "close"})
            response = connection.getresponse()
            raw = response.read(_MAX_ANSWER_BYTES)
            if cut.done:
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            if cut.done or isinstance(error, TimeoutError):
                raise TransientTargetError(
                    "target_timeout",
                    f"{self} did not answer within {timeout_s} s",
                    "look whether the server is busy, or a firewall drops packets on the way",
                ) from error
            why = str(error) or type(error).__name__
            raise TransientTargetError(
                "target_unreachable", f"{self} does not answer: {why}", self._start_hint()
            ) from error
        finally:
            cut.cancel()
            connection.close()
        return response.status, raw

    def _start_hint(self) -> str:
        """What to do when nobody listens; the port is said where it is not the one that `serve` takes by itself."""
        port = "" if self._port == 8080 else f" --port {self._port}"
        return f"start it: `rearguard serve --name {self._model}{port}`, or fix target.url"

    def _parse(self, status: int, raw: bytes) -> dict[str, Any]:
        answer = self._read_json(status, raw)
        if not isinstance(answer, dict):
            raise DependencyError("target_bad_answer", f"{self} answered {status} without a JSON object")
        return answer

    def _read_json(self, status: int, raw: bytes) -> Any:
        try:
            return json.loads(raw) if raw else {}
        except ValueError as error:
            if status >= 400:  # a proxy's error page: the status says enough
                return {"error": raw[:200].decode("utf-8", "replace")}
            raise DependencyError("target_bad_answer", f"{self} answered {status} without JSON") from error

    def _accept(self, status: int, answer: dict[str, Any]) -> None:
        if status < 300:
            return
        message = f"{self} answered {status}: {str(answer.get('error', ''))[:500]}"
        if status >= 500:
            raise TransientTargetError("target_failed", message, "the next try may succeed")
        hint = "another server answers on this port, or fix target.model" if status == 404 else ""
        raise DependencyError("target_refused", message, hint)

    def _digest(self, text: object) -> Digest:
        if not isinstance(text, str) or not _DIGEST.fullmatch(text):
            raise DependencyError("target_bad_answer", f"{self} names the digest {str(text)[:80]!r}")
        return Digest(text)


def build(place: Place, options: dict[str, object]) -> OipTarget:
    """The target of `place`; `ConfigError` (`unknown_option`, `missing_option`, `bad_option`) names the option."""
    for name in options:
        if name not in ("url", "model", "timeout_s"):
            raise _refuse("unknown_option", place, name, options[name])
    for name in ("url", "model"):
        if name not in options:
            raise _refuse("missing_option", place, name, "")
    url, model, timeout_s = options["url"], options["model"], options.get("timeout_s", 5)
    if not isinstance(model, str) or not model:
        raise _refuse("bad_option", place, "model", model)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < 86_400:
        raise _refuse("bad_option", place, "timeout_s", timeout_s)
    host, port = _split(place, url)
    return OipTarget(host=host, port=port, model=model, timeout_s=float(timeout_s))


def _split(place: Place, url: object) -> tuple[str, int]:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refuse("bad_option", place, "url", url) from None
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme != "http" or not host or extra:
        raise _refuse("bad_option", place, "url", url)
    return host, port or 80


def _refuse(code: str, place: Place, name: str, value: object) -> ConfigError:
    words = {"unknown_option": "is not known", "missing_option": "is missing", "bad_option": "is not accepted"}
    return ConfigError(
        code,
        f"{place}: the option {name!r} of the target 'oip' {words[code]}",
        f"accepted: {_ACCEPTED}",
        key=name,
        value=str(value),
        accepted=_ACCEPTED,
    )
