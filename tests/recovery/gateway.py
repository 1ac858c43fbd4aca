"""A gateway between the officer and a real model server, which misbehaves when a test says so."""

from __future__ import annotations

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stage import Server


class Gateway:
    """Forwards every request to the server behind it, but for what a test asks."""

    def __init__(self, server: Server) -> None:
        self.refused = 0
        """Load orders that were answered with 503."""
        self.drip_after_load = False
        """After a load order was carried out, inferences are answered with one byte every two seconds."""
        self.breaks_inferences = False
        """Every inference is answered with 500."""
        self._to_refuse = 0
        self._loaded = False
        self._closed = threading.Event()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._forward(b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path.endswith("/load") and gateway._to_refuse > 0:
                    gateway._to_refuse -= 1
                    gateway.refused += 1
                    self._say(503, b'{"error": "upstream restarts"}')
                elif self.path.endswith("/infer") and gateway.breaks_inferences:
                    self._say(500, b'{"error": "upstream is broken"}')
                elif self.path.endswith("/infer") and gateway.drip_after_load and gateway._loaded:
                    self._drip()
                else:
                    self._forward(body)

            def _forward(self, body: bytes) -> None:
                behind = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                behind.request(self.command, self.path, body or None, {"content-type": "application/json"})
                answer = behind.getresponse()
                content = answer.read()
                behind.close()
                gateway._loaded = gateway._loaded or (self.path.endswith("/load") and answer.status < 300)
                self._say(answer.status, content)

            def _say(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _drip(self) -> None:
                self.send_response(200)
                self.send_header("content-length", "4096")
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not gateway._closed.wait(2):
                        self.wfile.write(b" ")
                        self.wfile.flush()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def refuse_loads(self, count: int) -> None:
        """The next load orders get a 503."""
        self._to_refuse = count

    def close(self) -> None:
        """Let go of the port."""
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)
