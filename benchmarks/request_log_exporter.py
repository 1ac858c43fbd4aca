"""A benchmark's part, not the product's: the model server's request log as Prometheus metrics.

Answers `GET /metrics` with what stands in the log since the exporter began: requests, failures (no answer, or 5xx) and a
classic latency histogram that has the limit among its bounds, so that "p95 over the limit" is the very statement that
Rearguard makes of the same lines. Golden probes are left out, as Rearguard leaves them out. The new lines are read
when they are asked for: the exporter itself adds no delay to a scrape.

    python benchmarks/request_log_exporter.py LOG PORT LIMIT_MS
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_BOUNDS_MS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)


class Metrics:
    """Counts of the lines written after the exporter began."""

    def __init__(self, log: Path, limit_ms: float) -> None:
        self._log = log.open("rb")
        self._log.seek(0, 2)
        self._rest = b""
        self._lock = threading.Lock()
        self._bounds_ms = sorted({*_BOUNDS_MS, limit_ms})
        self._within = [0] * len(self._bounds_ms)
        self._requests = self._failures = self._timed = 0
        self._sum_ms = 0.0

    def read_new(self) -> str:
        """Count what is new; return everything in the text format."""
        with self._lock:
            *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
            for line in lines:
                self._count(json.loads(line))
            return self._text()

    def _count(self, line: dict[str, object]) -> None:
        status, latency_ms = line["status"], line["latency_ms"]
        if line["probe"]:
            return
        self._requests += 1
        self._failures += isinstance(status, int) and (status == 0 or status >= 500)
        if isinstance(latency_ms, int | float):
            self._timed += 1
            self._sum_ms += latency_ms
            for index, bound_ms in enumerate(self._bounds_ms):
                self._within[index] += latency_ms <= bound_ms

    def _text(self) -> str:
        name = "model_request_duration_seconds"
        buckets = [
            f'{name}_bucket{{le="{bound_ms / 1000!r}"}} {count}\n'
            for bound_ms, count in zip(self._bounds_ms, self._within, strict=True)
        ]
        return "".join(
            [
                f"# TYPE model_requests_total counter\nmodel_requests_total {self._requests}\n",
                f"# TYPE model_request_failures_total counter\nmodel_request_failures_total {self._failures}\n",
                f"# TYPE {name} histogram\n",
                *buckets,
                f'{name}_bucket{{le="+Inf"}} {self._timed}\n',
                f"{name}_sum {self._sum_ms / 1000!r}\n{name}_count {self._timed}\n",
            ]
        )


def main() -> None:
    """Serve on 127.0.0.1 until killed."""
    metrics = Metrics(Path(sys.argv[1]), float(sys.argv[3]))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.read_new().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()


if __name__ == "__main__":
    main()
