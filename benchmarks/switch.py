"""What does a warm standby buy when traffic is switched under load?

Two embedded model servers stand side by side with the same real model (the demo's scikit-learn pipeline, registered under
two digests): one keeps a standby, the other none, so that every order there has to start and load a worker first. Four
clients on kept-alive connections send inferences all the time to the server that is being measured. Warm and cold
switches alternate, so that load on a shared machine hits both.

Counted from the moment the order is sent: until the server says that it is done, until the first answer of the new digest,
and until the last answer of the old one (from then on nobody is served by what is being rolled back). A failed request is
any that gets no answer or another status than 200. Goals: no failed request; the warm switch ahead of the cold one in every
pair.

    python benchmarks/switch.py [--pairs 9]
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _load
from _record import ROOT, record
from cli_start import spread
from rearguard.demo.models import train

QUESTION = "What does a warm standby buy when traffic is switched under load?"
FEWEST_PAIRS = 7
CLIENTS = 4
PAUSE_S = 0.005
SETTLE_S = 1.0
"""Traffic before each order and after it; late answers of the old digest would come within it."""
DIGESTS = ("sha256:" + "a" * 64, "sha256:" + "b" * 64)
MODEL = "digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one client got for one request."""

    got_ns: int
    status: int
    """0: no answer."""
    digest: str


class Server:
    """One embedded model server."""

    def __init__(self, home: Path, standby: int) -> None:
        home.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.epoch = 0
        words = ["--name", MODEL, "--service", MODEL, "--env", "bench", "--port", str(self.port)]
        files = ["--log", str(home / "requests.jsonl"), "--state-dir", str(home / "state")]
        with (home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rearguard.serving", *words, *files, "--standby", str(standby)], stderr=log
            )
        end_s = time.monotonic() + 30
        while time.monotonic() < end_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError(f"the server does not listen; see {home}")

    def load(self, digest: str, folder: Path, warmup: dict[str, Any]) -> bool:
        """Order a digest; whether the server says that it was warm."""
        self.epoch += 1
        parameters = {
            "digest": digest, "version": digest[7:9], "format": "sklearn-skops", "path": str(folder), "epoch": self.epoch,
            "key": f"order-{self.epoch}", "warmup": warmup,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", f"/v2/repository/models/{MODEL}/load", json.dumps({"parameters": parameters}))
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}: {answer}")
        return bool(answer["warm"])

    def end(self) -> None:
        """Stop it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def clients(port: int, request: bytes) -> Iterator[list[Answer]]:
    """Steady traffic, and what it got."""
    answers: list[Answer] = []
    stop = threading.Event()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while not stop.wait(PAUSE_S):
            status, digest = 0, ""
            try:
                connection.request("POST", f"/v2/models/{MODEL}/infer", request)
                response = connection.getresponse()
                status, body = response.status, json.loads(response.read())
                digest = body.get("parameters", {}).get("digest", "")
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
            answers.append(Answer(got_ns=time.monotonic_ns(), status=status, digest=digest))
        connection.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)


def switch(server: Server, to: str, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """One order under load; times in milliseconds since it was sent."""
    cpu = _load.stamp()
    with clients(server.port, json.dumps(request).encode()) as answers:
        time.sleep(SETTLE_S)
        sent_ns = time.monotonic_ns()
        warm = server.load(to, folder, request)
        done_ns = time.monotonic_ns()
        time.sleep(SETTLE_S)
    new = [a.got_ns for a in answers if a.digest == to and a.status == 200]
    old = [a.got_ns for a in answers if a.digest not in (to, "")]
    return {
        "warm": warm,
        "done_ms": round((done_ns - sent_ns) / 1e6, 2),
        "first_answer_of_new_ms": round((min(new) - sent_ns) / 1e6, 2),
        "last_answer_of_old_ms": round((max(old) - sent_ns) / 1e6, 2),
        "requests": len(answers),
        "failed": sum(a.status != 200 for a in answers),
        "others_share": _load.shares(cpu, _load.stamp())["others_share"],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one kind of switch."""
    names = ("done_ms", "first_answer_of_new_ms", "last_answer_of_old_ms")
    return {
        **{name: spread([row[name] for row in rows], 2) for name in names},
        "requests": sum(row["requests"] for row in rows),
        "failed": sum(row["failed"] for row in rows),
    }


def main() -> int:
    """Run the pairs and write the answer; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    pairs: int = parser.parse_args().pairs
    if pairs < 1:
        parser.error("--pairs: one at least")
    with tempfile.TemporaryDirectory(prefix="switch-") as name:
        folder = Path(name)
        train("errors", folder / "models")
        good = folder / "models" / "good"
        request = json.loads((folder / "models" / "traffic.json").read_text(encoding="utf-8"))[0]["request"]
        servers = {"warm": Server(folder / "warm", 1), "cold": Server(folder / "cold", 0)}
        rows: dict[str, list[dict[str, Any]]] = {"warm": [], "cold": []}
        try:
            for server in servers.values():
                for digest in reversed(DIGESTS):
                    server.load(digest, good, request)
            for number in range(pairs):
                to = DIGESTS[(number + 1) % 2]
                for kind in ("warm", "cold") if number % 2 == 0 else ("cold", "warm"):
                    row = switch(servers[kind], to, good, request)
                    rows[kind].append(row)
                    print(f"{number + 1:>2} {kind}: {row}", flush=True)
        finally:
            for server in servers.values():
                server.end()
    told = {kind: {row["warm"] for row in found} for kind, found in rows.items()}
    if told != {"warm": {True}, "cold": {False}}:
        raise RuntimeError(f"the servers did not do what is compared here: {told}")
    ahead = sum(
        warm["last_answer_of_old_ms"] < cold["last_answer_of_old_ms"]
        for warm, cold in zip(rows["warm"], rows["cold"], strict=True)
    )
    answer: dict[str, Any] = {
        "model": "scikit-learn pipeline (MinMaxScaler, SVC) of the demo, skops, one folder under two digests",
        "clients": CLIENTS,
        "pairs": pairs,
        "enough_pairs": pairs >= FEWEST_PAIRS,
        **{kind: summary(found) for kind, found in rows.items()},
        "pairs_in_which_warm_was_ahead": ahead,
        "goals": {
            "no_failed_request": all(row["failed"] == 0 for found in rows.values() for row in found),
            "warm_ahead_in_every_pair": ahead == pairs,
        },
        "rows": rows,
    }
    path = record("switch", QUESTION, answer)
    print(f"written: {path.relative_to(ROOT)}")
    return 0 if all(answer["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
