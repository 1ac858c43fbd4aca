"""A stage for recovery tests: real models, a real model server, real clients and real watchers on loopback.

Training and proving the checkpoints costs seconds, so it is done once a session (`prepare`); each test works on a copy
of that state directory. A server may serve several tests: a copy begins with the highest epoch that it has seen.
Every process belongs to a `Processes`, which ends it by its id and then looks that nothing of its session is left.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from rearguard.checkpoints import registry
from rearguard.config.templates import playbook_template
from rearguard.database import sql
from rearguard.demo.models import train
from rearguard.edge import read_boot_id
from rearguard.engine import faults
from rearguard.engine.durable import step_history
from rearguard.evidence.log import read
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.evidence import Record
from rearguard.model.outcome import Outcome
from rearguard.model.run import TERMINAL, Run
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, rfc3339_ms
from rearguard.officer import automation, checkpoints, deployments, incidents, registration, rollbacks
from rearguard.officer.incidents import Breach
from rearguard.officer.office import Office, open_office

SERVICE, ENV = "digits", "stage"
PLACE = Place(service=SERVICE, env=ENV)

SETTINGS = """\
version: 1
playbook: rollback_playbook.yaml
objectives: {{rto: 10 min, rpo: 5 min}}
checkpoints: {{max_age: {max_age_s} s, max_load: {max_load_s} s}}
channels:
  oncall: {{kind: file, path: messages.jsonl}}
services:
  {service}:
    environments:
      {env}:
        stateless: true
        target: {{adapter: oip, url: "http://127.0.0.1:{port}", model: {service}}}
        telemetry: {{adapter: jsonl, requests: {log}, scores: scores.jsonl}}
        triggers:
          latency: {{target_p95_ms: 4000, margin_ms: 5}}
          errors: {{limit_percent: 1}}
          {compliance}
        rule: {{profile: literal, window: 2 s, step: 1 s, for_windows: 2, min_samples: 10}}
        no_data_after: {no_data_after_s} s
        recovery:
          window: {recovery_s} s
          min_samples: 10
          probe_every: 100 ms
          min_probes: {min_probes}
          deadline: {deadline_s} s
        brakes: {brakes}
"""


def wait_until(claim: Callable[[], Any], what: str, deadline_s: float = 20.0) -> Any:
    """The first true answer of `claim`; the test fails when there is none in time."""
    end = time.monotonic() + deadline_s
    while not (found := claim()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.02)
    return found


def _of_session(session: int) -> set[int]:
    """Living processes of a session; a zombie is dead and only waits for its parent to take note."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, of = stat.read_text().rsplit(")", 1)[1].split()[:4]
            if int(of) == session and state != "Z":
                found.add(int(stat.parent.name))
    return found


class Processes:
    """Every process that a test started; each leads a session of its own, so that its children are known too."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, arguments: list[str], *, out: Path, variables: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """`python ARGUMENTS`, standard output in `out`, standard error beside it."""
        with out.open("ab") as sink, out.with_suffix(".err").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=errors,
                env=os.environ | (variables or {}),
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def end_all(self) -> None:
        """End what still runs, newest first, and fail when something is left."""
        for process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(5)
        for process in self._started:
            wait_until(lambda p=process: not _of_session(p.pid), f"nothing of {process.args} is left", 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """State directories with proven checkpoints, to be copied, and what clients send."""

    states: dict[str, Path]
    """By the versions registered in it: `v2`, `v1,v2`, `v0,v1,v2`."""
    digests: dict[str, Digest]
    sources: dict[str, Path]
    """The trained files themselves, outside every state directory."""
    traffic: list[dict[str, Any]]


def prepare(folder: Path) -> Prepared:
    """Train three pipelines and prove them: v1 is right, v2 raises on some inputs, v0 is often wrong."""
    train("errors", folder / "errors")
    train("compliance", folder / "compliance")
    growing = folder / "state"
    _write_settings(growing, port=1, log=folder / "none.jsonl", policy=Policy())
    digests: dict[str, Digest] = {}
    for version, source in _sources(folder).items():
        with open_office(growing) as office:
            golden_file = source.with_suffix(".golden.jsonl")
            added = registration.add(office, source, service=SERVICE, version=version, golden_file=golden_file)
        digests[version] = added.digest
        shutil.copytree(growing, folder / ",".join(sorted(digests)), symlinks=True)
    (folder / "digests.json").write_text(json.dumps(digests), encoding="utf-8")
    return read_prepared(folder)


def read_prepared(folder: Path) -> Prepared:
    """What `prepare` wrote into a folder, perhaps in another process."""
    digests = {v: Digest(d) for v, d in json.loads((folder / "digests.json").read_text(encoding="utf-8")).items()}
    traffic = json.loads((folder / "errors" / "traffic.json").read_text(encoding="utf-8"))
    states = {name: folder / name for name in ("v2", "v1,v2", "v0,v1,v2")}
    return Prepared(states=states, digests=digests, sources=_sources(folder), traffic=traffic)


def _sources(folder: Path) -> dict[str, Path]:
    return {
        "v2": folder / "errors" / "bad",
        "v1": folder / "errors" / "good",
        "v0": folder / "compliance" / "bad",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a test wants otherwise than the rest."""

    max_age_s: int = 86_400
    max_load_s: int = 30
    compliance: str = "compliance: off"
    no_data_after_s: int = 10
    recovery_s: int = 2
    min_probes: int = 10
    deadline_s: int = 20
    brakes: str = "{}"
    """Section of the settings; `{cool_down: 0 s, max_rollbacks: 1000}` for many rollbacks of one stage."""


def _write_settings(state: Path, *, port: int, log: Path, policy: Policy) -> None:
    state.mkdir(exist_ok=True)
    text = SETTINGS.format(
        service=SERVICE,
        env=ENV,
        port=port,
        log=log,
        max_age_s=policy.max_age_s,
        max_load_s=policy.max_load_s,
        compliance=policy.compliance,
        no_data_after_s=policy.no_data_after_s,
        recovery_s=policy.recovery_s,
        min_probes=policy.min_probes,
        deadline_s=policy.deadline_s,
        brakes=policy.brakes,
    )
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    (state / "rearguard.yaml").write_text(text, encoding="utf-8")


def free_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """One embedded model server; its port stays its own over a restart."""

    def __init__(self, home: Path, *more: str) -> None:
        """`more` are further words of its command line; the last of an option counts."""
        home.mkdir()
        self.more = more
        self.home = home
        self.log = home / "requests.jsonl"
        self.port = free_port()
        self.processes = Processes()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["--name", SERVICE, "--service", SERVICE, "--env", ENV, "--port", str(self.port)]
        files = ["--log", str(self.log), "--state-dir", str(self.home / "state")]
        process = self.processes.start(
            ["-m", "rearguard.serving", *words, *files, "--standby", "2", *self.more], out=self.home / "server.log"
        )
        wait_until(self.listens, "the server listens")
        return process

    def listens(self) -> bool:
        """True when it takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """The whole server dies at once: front and workers."""
        for pid in _of_session(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(5)

    def restart(self) -> None:
        """Start it again on its port and state; it begins to load what it served."""
        self.process = self._start()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request; status and JSON answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def serves(self) -> dict[str, Any]:
        """Its own word for digest, version, epoch and readiness."""
        return dict(self.call("GET", f"/v2/models/{SERVICE}")[1]["parameters"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one client got for one request."""

    sent_ns: int
    got_ns: int
    status: int | None
    """None: no answer at all."""
    digest: str | None


class Clients:
    """Real HTTP clients on keep-alive connections; they remember every answer and write labelled samples."""

    def __init__(self, port: int, traffic: list[dict[str, Any]], scores: Path, *, count: int = 2) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._scores = os.open(scores, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._boot_id = read_boot_id()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(traffic[i::count],), daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No request is under way afterwards. A second call does nothing."""
        self._stop.set()
        for thread in self._threads:
            thread.join(15)
        if self._scores >= 0:
            os.close(self._scores)
            self._scores = -1

    def since(self, at_ns: int) -> list[Answer]:
        """Answers to requests sent after an instant of the monotonic clock."""
        return [a for a in list(self.answers) if a.sent_ns > at_ns]

    def _work(self, traffic: list[dict[str, Any]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        sent = 0
        while not self._stop.wait(0.02):
            sample = traffic[sent % len(traffic)]
            sent += 1
            sent_ns = time.monotonic_ns()
            status, body = self._ask(connection, sample["request"])
            digest = body.get("parameters", {}).get("digest")
            self.answers.append(Answer(sent_ns=sent_ns, got_ns=time.monotonic_ns(), status=status, digest=digest))
            if status == 200:
                label = next(t for t in body["outputs"] if t["name"] == "label")["data"][0]
                self._score(str(digest), 100 if label == sample["label"] else 0)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, request: Any) -> tuple[int | None, dict[str, Any]]:
        try:
            connection.request("POST", f"/v2/models/{SERVICE}/infer", json.dumps(request))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            return None, {}

    def _score(self, digest: str, score: int) -> None:
        line = {
            "ts": rfc3339_ms(time.time_ns()),
            "mono_ns": time.monotonic_ns(),
            "boot_id": self._boot_id,
            "service": SERVICE,
            "env": ENV,
            "digest": digest,
            "score": score,
        }
        os.write(self._scores, json.dumps(line).encode("utf-8") + b"\n")


@dataclass(slots=True)
class Watcher:
    """One `rearguard watch --json` process."""

    process: subprocess.Popen[bytes]
    out: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its events of one name so far."""
        lines = self.out.read_text(encoding="utf-8").splitlines(keepends=True)
        return [e for e in (json.loads(line) for line in lines if line.endswith("\n")) if e.get("event") == name]

    def end(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(15)


@dataclass(slots=True)
class Stage:
    """A fresh state directory in front of a server."""

    state: Path
    server: Server
    prepared: Prepared
    policy: Policy = field(default_factory=Policy)
    versions: str = "v1,v2"
    processes: Processes = field(default_factory=Processes)
    _clients: list[Clients] = field(default_factory=list)
    _watchers: int = 0

    def __post_init__(self) -> None:
        shutil.copytree(self.prepared.states[self.versions], self.state, symlinks=True)
        shutil.rmtree(self.state / "views")  # its links lead into the original; they are built again on demand
        _write_settings(self.state, port=self.server.port, log=self.server.log, policy=self.policy)
        seen = self.server.serves()["epoch"]
        with self.office() as office, office.database.transaction() as connection:
            connection.execute(
                sql("INSERT INTO places (service, env, epoch) VALUES (:s, :e, :epoch)"),
                {"s": SERVICE, "e": ENV, "epoch": seen},
            )
            for row in connection.execute(sql("SELECT digest FROM checkpoints")).all():
                checkpoint = registry.get(connection, row.digest)
                assert checkpoint is not None
                connection.execute(  # the copies are other files than those that were proven
                    sql("UPDATE checkpoints SET receipt = :receipt WHERE digest = :digest"),
                    {"receipt": office.store.receipt(checkpoint.files), "digest": row.digest},
                )

    @contextlib.contextmanager
    def office(self, *, write: bool = True) -> Iterator[Office]:
        """The state directory, opened in this process."""
        with open_office(self.state, write=write) as office:
            yield office

    def digest(self, version: str) -> Digest:
        """Digest of a version."""
        return self.prepared.digests[version]

    def deploy(self, version: str) -> None:
        """As `rearguard deploy`."""
        with self.office() as office:
            deployments.deploy(office, service=SERVICE, env=ENV, version=version, by="test")

    def arm(self) -> None:
        """As `rearguard arm`."""
        with self.office() as office:
            automation.set_armed(office, PLACE, armed=True, by="test")

    def send_traffic(self) -> Clients:
        """Start clients; they stop at the end of the test."""
        clients = Clients(self.server.port, self.prepared.traffic, self.state / "scores.jsonl")
        self._clients.append(clients)
        return clients

    def watch(self, fault: str = "") -> Watcher:
        """Start a watcher and return at once; with `fault` it kills itself there."""
        self._watchers += 1
        out = self.state / f"watch-{self._watchers}.jsonl"
        words = ["-m", "rearguard.interfaces.cli", "watch", "--json", "--state", str(self.state)]
        return Watcher(self.processes.start(words, out=out, variables={faults.VARIABLE: fault}), out)

    def watch_alive(self, fault: str = "") -> Watcher:
        """Start a watcher and wait until it judges."""
        watcher = self.watch(fault)
        wait_until(lambda: watcher.events("watch_started"), "the watcher is alive")
        return watcher

    def point_target_at(self, port: int) -> None:
        """Rewrite the settings: orders and probes go there from the next start on, telemetry stays."""
        _write_settings(self.state, port=port, log=self.server.log, policy=self.policy)

    def read_requests_from(self, log: Path) -> None:
        """Rewrite the settings: telemetry comes from another request log from the next start on."""
        _write_settings(self.state, port=self.server.port, log=log, policy=self.policy)

    def damage(self, version: str) -> None:
        """Change one byte of a checkpoint's stored model, as a bad disk does."""
        with self.office(write=False) as office:
            (file,) = checkpoints.find(office, service=SERVICE, version=version).files
        blob = self.state / "blobs" / "sha256" / file.sha256
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 1
        blob.chmod(0o644)
        blob.write_bytes(content)

    def cli(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """`rearguard WORDS --state STATE` to its end."""
        command = [sys.executable, "-m", "rearguard.interfaces.cli", *words, "--state", str(self.state)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)

    def force_breach(self) -> str:
        """Open an incident for what answers now, as a watcher that saw an error breach would; the id of its run."""
        with self.office() as office:
            now = office.clock.now()
            digest = rollbacks.active_digest(office, PLACE)
            assert digest is not None
            second = now.mono_ns // NS_PER_S
            judgement = Judgement(
                trigger=Trigger.ERRORS,
                digest=digest,
                outcome=Outcome.FAIL,
                reason="breach",
                window_start_s=second - 2,
                window_end_s=second,
                samples=100,
                exceedances=5,
                observed=Decimal("0.05"),
                limit=Decimal("0.01"),
                streak=2,
                first_bad_mono_ns=now.mono_ns - 2 * NS_PER_S,
            )
            t0 = now.plus(-2 * NS_PER_S)
            breach = Breach(
                place=PLACE, digest=digest, judgement=judgement, also=(), t0=t0, t1=now, telemetry=(), p95_ms=None
            )
            _, run_id = incidents.open_incident(office, breach)
            assert run_id is not None, "not armed"
            return run_id

    def records(self, kind: str | None = None) -> list[Record]:
        """The evidence so far."""
        with self.office(write=False) as office, office.database.reading() as connection:
            return [r for r in read(connection) if kind in (None, r.kind)]

    def kinds(self, run_id: str) -> Counter[str]:
        """How often each kind of record was written for a run."""
        return Counter(r.kind for r in self.records() if r.run_id == run_id)

    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        with self.office(write=False) as office:
            return rollbacks.list_runs(office)

    def done_steps(self, run_id: str) -> tuple[str, ...]:
        """What the engine noted as done, in order."""
        with self.office(write=False) as office:
            return tuple(step["function_name"] for step in step_history(office.database, run_id))

    def wait_for_end(self, deadline_s: float = 25.0) -> Run:
        """The only run, once it is closed."""

        def ended() -> Run | None:
            found = self.runs()
            if not found or found[-1].state not in TERMINAL or not self.records("rollback_closed"):
                return None
            return found[-1]

        run: Run = wait_until(ended, "the run ends", deadline_s)
        return run

    def open_run(self) -> str | None:
        """Who holds the place."""
        with self.office(write=False) as office, office.database.reading() as connection:
            found = connection.execute(
                sql("SELECT open_run_id FROM places WHERE service = :s AND env = :e"), {"s": SERVICE, "e": ENV}
            ).scalar()
            return str(found) if found else None

    def messages(self) -> list[dict[str, Any]]:
        """What people were told."""
        path = self.state / "messages.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def strike(self) -> None:
        """End everything of this stage."""
        for clients in self._clients:
            clients.stop()
        self.processes.end_all()
