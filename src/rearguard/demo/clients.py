"""The demo's clients: real HTTP requests over keep-alive connections, judged by what came back.

Each answer with the true label known becomes a labelled sample (compliance). What the clients saw is counted here, so
that `failed_requests` is never the server's word about itself. Run as `python -m rearguard.demo.clients SPEC`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rearguard.evidence.files import replace_file
from rearguard.model.time import rfc3339_ms

THINK_S = 0.025
"""Pause of a client between two requests: four clients make about 100 requests a second."""


class Tally:
    """What all clients saw so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.requests = 0
        self.failed = 0
        self.answers: Counter[str] = Counter()
        self.first_answer_ns: dict[str, int] = {}
        self.last_answer_ns: dict[str, int] = {}
        self.first_failure_ns: int | None = None

    def note(self, *, failed: bool, digest: str | None) -> None:
        """One request came back, or did not."""
        now_ns = time.monotonic_ns()
        with self._lock:
            self.requests += 1
            if failed:
                self.failed += 1
                self.first_failure_ns = self.first_failure_ns or now_ns
            if digest:
                self.answers[digest] += 1
                self.first_answer_ns.setdefault(digest, now_ns)
                self.last_answer_ns[digest] = now_ns

    def write(self) -> None:
        """Replace the tally's file."""
        with self._lock:
            document = {
                "requests": self.requests,
                "failed_requests": self.failed,
                "answers": dict(self.answers),
                "first_answer_mono_ns": dict(self.first_answer_ns),
                "last_answer_mono_ns": dict(self.last_answer_ns),
                "first_failure_mono_ns": self.first_failure_ns,
            }
        replace_file(self._path, json.dumps(document).encode("utf-8"))


def run(spec: dict[str, Any]) -> None:
    """Send traffic until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    traffic = json.loads(Path(spec["traffic"]).read_text(encoding="utf-8"))
    tally = Tally(Path(spec["tally"]))
    scores = os.open(spec["scores"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    count = int(spec["clients"])
    threads = [
        threading.Thread(target=_client, args=(spec, traffic[index::count], tally, scores, stop), daemon=True)
        for index in range(count)
    ]
    for thread in threads:
        thread.start()
    while not stop.wait(0.5):
        tally.write()
    for thread in threads:
        thread.join(timeout=5)
    tally.write()


def _client(
    spec: dict[str, Any], traffic: list[dict[str, Any]], tally: Tally, scores: int, stop: threading.Event
) -> None:
    path = f"/v2/models/{spec['model']}/infer"
    connection = http.client.HTTPConnection(spec["host"], spec["port"], timeout=10)
    sent = 0
    while not stop.wait(THINK_S):
        sample = traffic[sent % len(traffic)]
        sent += 1
        try:
            connection.request("POST", path, json.dumps(sample["request"]), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            tally.note(failed=True, digest=None)
            connection.close()
            continue
        digest = body.get("parameters", {}).get("digest")
        tally.note(failed=answer.status != 200, digest=digest)
        if answer.status == 200:
            label = next(t for t in body["outputs"] if t["name"] == "label")["data"][0]
            _score(spec, scores, digest, 100 if label == sample["label"] else 0)


def _score(spec: dict[str, Any], scores: int, digest: str, score: int) -> None:
    line = {
        "ts": rfc3339_ms(time.time_ns()),
        "mono_ns": time.monotonic_ns(),
        "boot_id": spec["boot_id"],
        "service": spec["service"],
        "env": spec["env"],
        "digest": digest,
        "score": score,
    }
    os.write(scores, json.dumps(line).encode("utf-8") + b"\n")


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
