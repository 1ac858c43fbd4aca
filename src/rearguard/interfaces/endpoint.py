"""`/healthz`, `/readyz` and `/metrics`: how the daemon is, for probes and for Prometheus.

GET and HEAD of these three paths and nothing else; nothing that it says is a secret. Built on the standard library: a
bounded number of connections, each of which is closed after `CONNECTION_S`, however slowly its client reads or writes.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rearguard.errors import DependencyError, UsageError
from rearguard.model.time import rfc3339

if TYPE_CHECKING:
    from rearguard.officer.daemon import Health
    from rearguard.officer.metrics import Figure
    from rearguard.officer.supervision import Component, Pulse

MAX_CONNECTIONS = 8
"""Chosen: a Prometheus or two, an orchestrator's probes and a person."""
CONNECTION_S = 10.0
"""From accept to close. Chosen: Prometheus's own default limit of a scrape."""
_READ_S = 5.0
_LIMIT_S = 10.0
_POLL_S = 0.25
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Sources:
    """Where the answers come from; each is called by the thread of a connection."""

    def __init__(
        self, health: Callable[[], Health], ready: Callable[[], Health], figures: Callable[[], tuple[Figure, ...]]
    ) -> None:
        self.health = health
        self.ready = ready
        self.figures = figures


class Endpoint:
    """One listening socket. `bind` may be tried again after it failed."""

    def __init__(self, host: str, port: int, sources: Sources, *, connection_s: float = CONNECTION_S) -> None:
        self._address = (host, port)
        self._connection_s = connection_s
        self._sources = sources
        self._server: _Server | None = None

    def bind(self) -> tuple[str, int]:
        """Listen; returns the address that was taken. Raises `DependencyError` `listen_failed`."""
        if self._server is None:
            try:
                self._server = _Server(self._address, self._sources, self._connection_s)
            except OSError as error:
                host, port = self._address
                raise DependencyError(
                    "listen_failed",
                    f"cannot listen on {host}:{port}: {error.strerror or error}",
                    "another process has the port: name another with --listen, or switch it off with `--listen off`",
                ) from error
        return self._server.server_name, self._server.server_port

    def component(self, stop: threading.Event) -> Component:
        """Its thread: binds if that was not done yet, answers, and beats whenever it could accept."""
        from rearguard.officer.supervision import Component

        def body(pulse: Pulse) -> None:
            self.bind()
            server, self._server = self._server, None
            assert server is not None
            try:
                server.timeout = _POLL_S
                while not stop.is_set():
                    server.handle_request()
                    server.hang_up_on_the_slow()
                    pulse.beat()
            finally:
                server.server_close()

        return Component(name="endpoint", body=body, limit_s=_LIMIT_S, vital=False)


def parse_address(text: str) -> tuple[str, int] | None:
    """`HOST:PORT` (IPv6 in brackets) as host and port; None for `off`. Raises `UsageError` `listen_address`."""
    if text == "off":
        return None
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
        plain = parts.netloc == text and "@" not in text
    except ValueError:
        host, port, plain = None, None, False
    if not plain or not host or port is None:
        raise UsageError("listen_address", f"{text!r} is no address to listen on", "write HOST:PORT, or off")
    return host, port


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16
    allow_reuse_port = False  # a second process on the port must be told, not given every other connection

    def __init__(self, address: tuple[str, int], sources: Sources, connection_s: float) -> None:
        self._connection_s = connection_s
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sources = sources
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._opened: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """As the library does, without asking a name server who we are."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, when there is one to spare."""
        if not self._free.acquire(blocking=False):
            request.setblocking(False)
            try:
                request.send(_BUSY)
            except OSError:
                pass  # the client is gone, or does not read
            finally:
                self.shutdown_request(request)
            return
        with self._lock:
            self._opened[request] = _monotonic_s()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)  # no thread could be begun
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._opened.pop(request, None)
        self._free.release()

    def hang_up_on_the_slow(self) -> None:
        """Close connections that are too old; their threads then end by an error."""
        end_s = _monotonic_s() - self._connection_s
        with self._lock:
            old = [request for request, opened_s in self._opened.items() if opened_s < end_s]
        for request in old:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has just ended by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ended in an error is the client's affair; nothing is printed."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _READ_S
    server_version = "rearguard"
    sys_version = ""

    def do_GET(self) -> None:
        """One of the three answers."""
        path = urlsplit(self.path).path
        sources = self.server.sources
        match path:
            case "/healthz":
                self._answer_health(sources.health())
            case "/readyz":
                self._answer_health(sources.ready())
            case "/metrics":
                try:
                    figures = sources.figures()
                except DependencyError as error:
                    self._answer_json(503, {"error": {"code": error.code, "message": error.message}})
                    return
                content, kind = render(figures, self.headers.get("Accept", ""))
                self._answer(200, content, kind)
            case _:
                self._answer_json(404, {"error": {"code": "not_found", "message": "/healthz, /readyz or /metrics"}})

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._answer_json(405, {"error": {"code": "method", "message": "GET or HEAD"}}, {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer_health(self, health: Health) -> None:
        self._answer_json(200 if health.ok else 503, health_document(health))

    def _answer_json(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode("utf-8") + b"\n"
        self._answer(status, content, "application/json", headers)

    def _answer(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape is no event."""


def health_document(health: Health) -> dict[str, Any]:
    """The body of `/healthz`: `status`, what failed and since when, every component, and the heartbeat's age."""
    document: dict[str, Any] = {"status": health.status}
    if health.reason:
        document["reason"] = health.reason
    failing = [
        {
            "component": component.name,
            "state": component.state,
            "since": rfc3339(component.since.wall_ns),
            "idle_s": component.idle_s,
            "detail": component.detail,
        }
        for component in health.components
        if not component.ok
    ]
    if failing and not health.ok:
        document["failing"] = failing
    document["components"] = {component.name: component.state for component in health.components}
    if health.heartbeat_age_s is not None:
        document["heartbeat_age_s"] = round(health.heartbeat_age_s, 3)
    return document


def render(figures: Iterable[Figure], accept: str) -> tuple[bytes, str]:
    """The figures in the form that the client asks for (Prometheus text, or OpenMetrics), and its content type."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(tuple(figures)))
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


class _Collected:
    """Figures as the client library's families."""

    def __init__(self, figures: tuple[Figure, ...]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Any]:
        """One family for each metric that has a value."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        from rearguard.officer.metric_names import COUNTER, HISTOGRAM, METRICS, RTO_BUCKETS_S

        for metric in METRICS:
            found: list[Any] = [figure for figure in self._figures if figure.metric is metric]
            if not found:
                continue
            if metric.kind == HISTOGRAM:
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                bounds = [*(f"{bound:.1f}" for bound in RTO_BUCKETS_S), "+Inf"]
                for figure in found:
                    histogram.add_metric(figure.labels, list(zip(bounds, figure.counts, strict=True)), figure.total)
                yield histogram
                continue
            kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            family = kind(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
            for figure in found:
                family.add_metric(figure.labels, float(figure.value))
            yield family


def _monotonic_s() -> float:
    return time.monotonic()  # noqa: TID251 - edge: the age of a socket, of which no rule asks
