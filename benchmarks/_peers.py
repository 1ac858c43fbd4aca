"""Real Prometheus and Alertmanager beside Rearguard, and the receiver that stamps what each of them tells.

A pair is started new for every measurement, on loopback, with data and settings in a folder of its own.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rearguard.demo.processes import Children
from rearguard.errors import DependencyError

ALERTS = {"errors": "ErrorRate", "latency": "P95Latency"}
_EXEC = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
_APT = "apt-get update && apt-get install -y --no-install-recommends prometheus prometheus-alertmanager"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """How one Prometheus and its Alertmanager are set."""

    name: str
    scrape_s: int
    evaluate_s: int
    window: str
    """Of `rate()`."""
    window_s: int
    group_wait_s: int
    group_interval_s: int

    def as_settings(self) -> dict[str, Any]:
        """For the answer."""
        return {
            "scrape_interval": f"{self.scrape_s}s",
            "evaluation_interval": f"{self.evaluate_s}s",
            "rate_window": self.window,
            "for": "0s",
            "group_wait": f"{self.group_wait_s}s",
            "group_interval": f"{self.group_interval_s}s",
        }


FAST = Pair(name="fast", scrape_s=1, evaluate_s=1, window="5s", window_s=5, group_wait_s=0, group_interval_s=1)
SLOW = Pair(name="slow", scrape_s=15, evaluate_s=15, window="1m", window_s=60, group_wait_s=30, group_interval_s=300)
PAIRS = (FAST, SLOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Where the two programs are, and which they are."""

    prometheus: str
    alertmanager: str

    def versions(self) -> dict[str, str]:
        """First line of `--version` of each."""
        return {"prometheus": _version(self.prometheus), "alertmanager": _version(self.alertmanager)}


def find_binaries() -> Binaries:
    """Raises `DependencyError` `peers_missing` with the command that installs them."""
    prometheus = shutil.which("prometheus")
    alertmanager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if prometheus is None or alertmanager is None:
        missing = " and ".join(n for n, p in (("prometheus", prometheus), ("alertmanager", alertmanager)) if p is None)
        raise DependencyError(
            "peers_missing",
            f"not on PATH: {missing}",
            f"{_APT}\nThe services that Debian registers are not used; stop them if they started: "
            "systemctl disable --now prometheus prometheus-alertmanager",
        )
    return Binaries(prometheus=prometheus, alertmanager=alertmanager)


def _version(binary: str) -> str:
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return (answer.stdout or answer.stderr).splitlines()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message as it came in."""

    sender: str
    mono_ns: int
    names: tuple[str, ...]
    """Names of the alerts that fire, or the message's key."""


class Receiver:
    """An HTTP receiver in this process; a request is stamped when its first line has been read."""

    def __init__(self) -> None:
        self._notices: list[Notice] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                at_ns = time.monotonic_ns()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver._note(self.path.strip("/"), at_ns, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _note(self, sender: str, at_ns: int, body: dict[str, Any]) -> None:
        if "alerts" in body:
            names = tuple(a["labels"]["alertname"] for a in body["alerts"] if a["status"] == "firing")
        else:
            names = (str(body["key"]),)
        self._notices.append(Notice(sender=sender, mono_ns=at_ns, names=names))

    def notices(self, sender: str, since_ns: int) -> list[Notice]:
        """What a sender told since an instant, in order."""
        return sorted(
            (n for n in tuple(self._notices) if n.sender == sender and n.mono_ns >= since_ns), key=lambda n: n.mono_ns
        )

    def first(self, sender: str, name: str, since_ns: int) -> int | None:
        """When a sender first told of `name` (an alert, or the end of a key) at or after an instant."""
        return next((n.mono_ns for n in self.notices(sender, since_ns) if any(x.endswith(name) for x in n.names)), None)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class RunningPair:
    """One Prometheus with its Alertmanager, from start to end."""

    def __init__(self, pair: Pair, binaries: Binaries, children: Children, folder: Path) -> None:
        self.pair = pair
        self._binaries = binaries
        self._children = children
        self._folder = folder
        self._web_port, self._alert_port = free_port(), free_port()

    def start(self, *, exporter_port: int, receiver_port: int, error_ratio: str, latency_limit_s: str) -> None:
        """Start both; JSON is YAML, so the settings are JSON."""
        self._folder.mkdir(parents=True)
        self._write("rules.json", _rules(self.pair, error_ratio, latency_limit_s))
        self._write("prometheus.json", self._prometheus(exporter_port))
        self._write("alertmanager.json", self._alertmanager(receiver_port))
        self._run(
            "alertmanager",
            self._binaries.alertmanager,
            f"--config.file={self._folder / 'alertmanager.json'}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{self._alert_port}",
            "--cluster.listen-address=",
            "--log.level=warn",
        )
        self._run(
            "prometheus",
            self._binaries.prometheus,
            f"--config.file={self._folder / 'prometheus.json'}",
            f"--storage.tsdb.path={self._folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self._web_port}",
            "--log.level=warn",
        )

    def why_not_ready(self) -> str:
        """Empty when the exporter is scraped, both rules were evaluated and the Alertmanager is known."""
        try:
            targets = self._ask("targets")["activeTargets"]
            rules = [r for g in self._ask("rules")["groups"] for r in g["rules"]]
            managers = self._ask("alertmanagers")["activeAlertmanagers"]
        except OSError as error:
            return f"{self.pair.name}: {error}"
        if [t["health"] for t in targets] != ["up"]:
            return f"{self.pair.name}: targets {[(t['health'], t['lastError']) for t in targets]}"
        if [r["health"] for r in rules] != ["ok", "ok"]:
            return f"{self.pair.name}: rules {[(r['health'], r.get('lastError')) for r in rules]}"
        return "" if managers else f"{self.pair.name}: no Alertmanager"

    def end(self) -> None:
        """End both and drop their data."""
        for part in ("prometheus", "alertmanager"):
            self._children.end(f"{part}-{self.pair.name}")
        shutil.rmtree(self._folder)

    def _run(self, part: str, *arguments: str) -> None:
        name = f"{part}-{self.pair.name}"
        self._children.start(name, ["-c", _EXEC, *arguments], out=self._folder / f"{part}.log")

    def _write(self, name: str, document: dict[str, Any]) -> None:
        (self._folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")

    def _ask(self, what: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._web_port}/api/v1/{what}", timeout=2) as answer:
            return json.load(answer)["data"]

    def _prometheus(self, exporter_port: int) -> dict[str, Any]:
        return {
            "global": {
                "scrape_interval": f"{self.pair.scrape_s}s",
                "scrape_timeout": f"{min(self.pair.scrape_s, 10)}s",
                "evaluation_interval": f"{self.pair.evaluate_s}s",
            },
            "rule_files": [str(self._folder / "rules.json")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{self._alert_port}"]}]}]},
            "scrape_configs": [
                {"job_name": "model", "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}]},
            ],
        }

    def _alertmanager(self, receiver_port: int) -> dict[str, Any]:
        url = f"http://127.0.0.1:{receiver_port}/{self.pair.name}"
        return {
            "route": {
                "receiver": "stamp",
                "group_by": ["alertname"],
                "group_wait": f"{self.pair.group_wait_s}s",
                "group_interval": f"{self.pair.group_interval_s}s",
                "repeat_interval": "4h",
            },
            "receivers": [{"name": "stamp", "webhook_configs": [{"url": url, "send_resolved": False}]}],
        }


def expressions(pair: Pair, error_ratio: str, latency_limit_s: str) -> dict[str, str]:
    """The alert rules: the same thresholds on the same lines that Rearguard judges."""
    window = pair.window
    return {
        "ErrorRate": f"sum(rate(model_request_failures_total[{window}])) / sum(rate(model_requests_total[{window}])) "
        f"> {error_ratio}",
        "P95Latency": "histogram_quantile(0.95, sum by (le) (rate(model_request_duration_seconds_bucket"
        f"[{window}]))) > {latency_limit_s}",
    }


def _rules(pair: Pair, error_ratio: str, latency_limit_s: str) -> dict[str, Any]:
    found = expressions(pair, error_ratio, latency_limit_s)
    rules = [{"alert": name, "expr": expression, "for": "0s"} for name, expression in found.items()]
    return {"groups": [{"name": "model", "rules": rules}]}


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
