"""The demo's story: a proven checkpoint serves, a bad one is deployed, and the officer is left to do its work.

Nothing here tells the officer what is wrong: it sees the request log and the labelled samples, as in production.
"""

from __future__ import annotations

import json
import math
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from rearguard.config.templates import playbook_template
from rearguard.database import officer_alive
from rearguard.demo.live import Gauge, LiveView
from rearguard.demo.processes import Children
from rearguard.edge import read_boot_id
from rearguard.errors import ConflictError, DependencyError
from rearguard.model.breach import Limits, Trigger
from rearguard.model.run import PARTS, TERMINAL
from rearguard.model.service import Digest
from rearguard.model.settings import STEP_NAMES
from rearguard.model.time import NS_PER_S
from rearguard.officer import automation, deployments, incidents, registration, reporting, rollbacks
from rearguard.officer.office import Office, open_office

SERVICE, ENV = "digits", "demo"
BREACHES = {"errors": Trigger.ERRORS, "latency": Trigger.LATENCY, "compliance": Trigger.COMPLIANCE}
HEALTHY_S = 8.0
WINDOW_S, FOR_WINDOWS, MIN_SAMPLES = 5, 3, 15
RECOVERY_WINDOW_S = 8
HEADROOM_MS = 120
"""The latency target is the healthy p95 and this: a shared machine hiccups, and the slow model is slower by far."""
RECOVERY_DEADLINE_S = 60
RESCUE_S = 300.0
"""How long a demo whose watcher died waits for a replacement."""
PATIENCE_S = 75.0
"""From the bad deployment to the end of its rollback, with a living officer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo is asked for."""

    breach: str
    state: Path | None
    quiet: bool
    """No live view: the caller wants the JSON object only."""
    picture: Path | None = None
    """Write the live view at the switch as SVG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What came of it."""

    summary: dict[str, Any]
    report: str
    ok: bool


def run_demo(options: DemoOptions) -> DemoResult:
    """Run the story once; every child process is ended on every way out.

    Raises `ConflictError` `demo_state_in_use`, `DependencyError` `demo_failed`.
    """
    state = _fresh_state(options.state)
    view = LiveView(f"{SERVICE}/{ENV}", time.monotonic, quiet=options.quiet, picture=options.picture)
    children = Children(state)
    try:
        return _Demo(options, state, view, children).play()
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"the demo's folder stays: {state}")
        raise
    finally:
        view.close()
        children.end_all()


def _fresh_state(wanted: Path | None) -> Path:
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="rearguard-demo-"))
    state = wanted.absolute()
    if state.exists() and any(state.iterdir()):
        raise ConflictError("demo_state_in_use", f"{state} is not empty", "name a new folder, or remove this one")
    state.mkdir(parents=True, exist_ok=True)
    return state


class _Demo:
    def __init__(self, options: DemoOptions, state: Path, view: LiveView, children: Children) -> None:
        self._options = options
        self._state = state
        self._view = view
        self._children = children
        self._port = _free_port()
        self._names: dict[str, str] = {}

    def play(self) -> DemoResult:
        """From training to the report."""
        self._train()
        self._start_server()
        self._write_settings(target_p95_ms=Decimal(1000))
        with open_office(self._state) as office:
            self._register(office)
            self._phase("deploying v1")
            deployments.deploy(office, service=SERVICE, env=ENV, version="v1", by="demo")
            self._view.say("v1 answers its golden predictions")
            self._start_clients()
            target_ms = self._measure_healthy(office)
        self._write_settings(target_p95_ms=target_ms)
        with open_office(self._state) as office:
            return self._break_and_restore(office)

    def _phase(self, phase: str) -> None:
        self._view.scene.phase = phase
        self._tick()

    def _tick(self) -> None:
        self._view.draw()

    def _train(self) -> None:
        self._phase("training two pipelines")
        self._children.start(
            "training",
            ["-m", "rearguard.demo.models", self._options.breach, str(self._state)],
            out=self._state / "training.log",
        )
        self._await(lambda: not self._children.alive("training"), 60, "training")
        if self._children.wait("training", 1) != 0:
            raise DependencyError("demo_failed", "training failed", f"see {self._state / 'training.log'}")
        self._view.say(f"two pipelines trained on real digits; the second is bad: {self._options.breach}")

    def _start_server(self) -> None:
        self._children.start(
            "server",
            [
                "-m", "rearguard.serving", "--name", SERVICE, "--service", SERVICE, "--env", ENV, "--port", str(self._port),
                "--log", str(self._state / "requests.jsonl"), "--state-dir", str(self._state / "server"),
            ],
            out=self._state / "server.log",
        )  # fmt: skip
        self._await(self._server_answers, 20, "the model server")
        self._view.say(f"model server listens on 127.0.0.1:{self._port}")

    def _server_answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=0.2).close()
        except OSError:
            return False
        return True

    def _write_settings(self, *, target_p95_ms: Decimal) -> None:
        text = _SETTINGS.format(
            service=SERVICE, env=ENV, port=self._port, target_p95_ms=target_p95_ms, window=WINDOW_S, for_windows=FOR_WINDOWS,
            min_samples=MIN_SAMPLES, recovery=RECOVERY_WINDOW_S, deadline=RECOVERY_DEADLINE_S,
        )  # fmt: skip
        (self._state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
        (self._state / "rearguard.yaml").write_text(text, encoding="utf-8")

    def _register(self, office: Office) -> None:
        for version, name in (("v1", "good"), ("v2", "bad")):
            self._phase(f"proving {version}")
            golden = self._state / f"{name}.golden.jsonl"
            found = registration.add(office, self._state / name, service=SERVICE, version=version, golden_file=golden)
            self._names[found.digest] = version
            self._view.say(
                f"{version} registered: {found.digest[7:19]}, cold load {found.load_ms} ms, golden predictions repeat"
            )

    def _start_clients(self) -> None:
        spec = {
            "host": "127.0.0.1", "port": self._port, "model": SERVICE, "service": SERVICE, "env": ENV, "clients": 4,
            "traffic": str(self._state / "traffic.json"), "scores": str(self._state / "scores.jsonl"),
            "tally": str(self._state / "clients.json"), "boot_id": read_boot_id(),
        }  # fmt: skip
        self._children.start(
            "clients", ["-m", "rearguard.demo.clients", json.dumps(spec)], out=self._state / "clients.log"
        )

    def _measure_healthy(self, office: Office) -> Decimal:
        self._phase("measuring healthy traffic")
        until = time.monotonic() + HEALTHY_S
        while time.monotonic() < until:
            time.sleep(0.25)
            self._look(office)
        place = office.settings.places[0].place
        counts = office.feed_of(place).counts
        now_s = office.clock.now().mono_ns // NS_PER_S
        newest = counts.newest_digest()
        p95 = counts.p95_ms(newest[0], now_s - int(HEALTHY_S) + 2, now_s) if newest else None
        if p95 is None:
            raise DependencyError("demo_failed", "no traffic reached the server", f"see {self._state / 'clients.log'}")
        target = Decimal(math.ceil(p95) + HEADROOM_MS)
        self._view.say(f"healthy p95 {p95:.1f} ms: latency target set to {target} ms, so the limit is {target + 5} ms")
        return target

    def _break_and_restore(self, office: Office) -> DemoResult:
        settings = office.settings.places[0]
        rule = settings.rule
        self._view.say(
            f"policy: literal rule, {rule.window_s} s window, {rule.for_windows} in a row, at least {rule.min_samples} samples"
        )
        automation.set_armed(office, settings.place, armed=True, by="demo")
        self._children.start("watcher", ["-m", "rearguard.interfaces.cli", "watch", "--json", "--state", str(self._state)],
                             out=self._state / "watch.jsonl")  # fmt: skip
        self._await(lambda: officer_alive(self._state), 20, "the watcher", office)
        self._view.say("watcher is alive and armed")
        self._phase("deploying v2, which is bad")
        deployed = deployments.deploy(office, service=SERVICE, env=ENV, version="v2", by="demo")
        baseline = f"{deployed.compliance_baseline:.2f}" if deployed.compliance_baseline is not None else "none"
        self._view.say(f"v2 answers all traffic; compliance baseline frozen at {baseline}")
        self._phase("v2 is live")
        self._await_rollback(office)
        self._phase("restored")
        time.sleep(1.5)  # the last answers under v1 come in
        self._look(office)
        self._children.end("clients")
        self._look(office)
        self._children.end("watcher")
        if officer_alive(self._state):
            # A replacement watcher lives on; that this server now ends is no breach.
            automation.set_armed(office, settings.place, armed=False, by="demo")
        office.publish(registry_changed=True)
        return self._conclude(office, deployed.digest)

    def _await_rollback(self, office: Office) -> None:
        deadline = time.monotonic() + PATIENCE_S
        rescue = False
        pictured = False
        shown: set[str] = set()
        while True:
            time.sleep(0.2)
            self._look(office)
            for incident in incidents.list_incidents(office):
                if incident.id not in shown:
                    shown.add(incident.id)
                    self._phase(f"{incident.id} {incident.trigger.label}")
                    self._view.say(f"{incident.id} opened by itself: {self._why(office, incident.id)}")
                    self._view.say(f"{incident.run_id} begins")
            found = rollbacks.list_runs(office)
            if found:
                self._show_steps(office, found[-1].id, shown)
                if "window" in {n for n, s in self._view.scene.steps if s == "now"} and not pictured:
                    pictured = True
                    self._view.take_picture()
            if found and found[-1].state in TERMINAL and self._closed(office, found[-1].id):
                self._view.say(f"{found[-1].id} {found[-1].state.value}")
                return
            if not officer_alive(self._state) and not rescue:
                rescue = True
                deadline = time.monotonic() + RESCUE_S
                self._view.say(f"the watcher died; start another: rearguard watch --state {self._state}")
            if rescue and officer_alive(self._state):
                rescue = False
                deadline = time.monotonic() + PATIENCE_S
                self._view.say("another watcher took over")
            if time.monotonic() > deadline:
                raise DependencyError("demo_failed", "no rollback ended in time", f"see {self._state / 'watch.jsonl'}")

    def _why(self, office: Office, incident_id: str) -> str:
        """The trigger with its figure and limit, as the evidence has them."""
        found = incidents.evidence_of(office, incident_id)
        label = Trigger(found["trigger"]).label
        return (
            f"{label}, observed {found['observed']} against {found['limit']} over {found['window']['samples']} samples"
        )

    def _closed(self, office: Office, run_id: str) -> bool:
        return any(r.kind == "rollback_closed" for r in rollbacks.show(office, run_id).records)

    def _show_steps(self, office: Office, run_id: str, shown: set[str]) -> None:
        done = {s.name for s in rollbacks.show(office, run_id).steps if s.state == "done"}
        steps, now_taken = [], False
        for name in STEP_NAMES:
            state = "done" if name in done else ("later" if now_taken else "now")
            now_taken = now_taken or state == "now"
            steps.append((name, state))
        fresh = [name for name, state in steps if state == "done" and name not in shown]
        shown.update(fresh)
        self._view.scene.steps = tuple(steps)
        if fresh:
            self._view.say(f"done: {', '.join(fresh)}")

    def _look(self, office: Office) -> None:
        """Bring the view up to date from the same log that the watcher reads."""
        scene = self._view.scene
        feed = office.feed_of(office.settings.places[0].place)
        now = office.clock.now()
        feed.catch_up(now)
        newest = feed.counts.newest_digest()
        if newest is not None:
            scene.serving = self._names.get(newest[0], newest[0][7:19])
            limits = feed.limits_of(newest[0])
            scene.gauges = _gauges(feed.counts, newest[0], limits, now.mono_ns // NS_PER_S)
        tally = self._tally()
        scene.requests, scene.failed = tally.get("requests", 0), tally.get("failed_requests", 0)
        self._tick()

    def _tally(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self._state / "clients.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def _await(self, done: Callable[[], bool], limit_s: float, what: str, office: Office | None = None) -> None:
        until = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > until:
                raise DependencyError("demo_failed", f"{what} took longer than {limit_s:.0f} s", f"see {self._state}")
            time.sleep(0.1)
            if office is not None:
                self._look(office)
            else:
                self._tick()

    def _conclude(self, office: Office, bad_digest: Digest) -> DemoResult:
        found = rollbacks.list_runs(office)[-1]
        story = rollbacks.show(office, found.id)
        body = next(r.body for r in story.records if r.kind == "rollback_finished")
        report = reporting.status_report(office)
        markdown = reporting.render(report, form="markdown")
        (self._state / "status_report.md").write_text(markdown, encoding="utf-8")
        tally = self._tally()
        parts = body["parts_ms"] or dict.fromkeys(PARTS)
        restored_ns = tally.get("last_answer_mono_ns", {}).get(bad_digest)
        summary = {
            "incident_id": body["incident_id"],
            "run_id": found.id,
            "trigger": Trigger(body["trigger"]).label if body["trigger"] else None,
            "from_version": body["from_version"],
            "to_version": body["to_version"],
            "requests": tally.get("requests"),
            "failed_requests": tally.get("failed_requests"),
            **{f"t{i}": (t["ts"] if t else None) for i, t in enumerate(body["t"])},
            **{f"{name}_ms": parts[name] for name in PARTS},
            "rto_achieved_ms": body["rto_achieved_ms"],
            "rto_objective_ms": body["rto_objective_ms"],
            "verdict": report.verdict.value,
            "state_dir": str(self._state),
            "run_state": found.state.value,
            "last_bad_answer_mono_ns": restored_ns,
            "first_failure_mono_ns": tally.get("first_failure_mono_ns"),
            "answers": {self._names.get(d, d): n for d, n in tally.get("answers", {}).items()},
        }
        expected = BREACHES[self._options.breach].label
        ok = found.state.value == "succeeded" and summary["trigger"] == expected
        return DemoResult(summary=summary, report=markdown, ok=ok)


def _gauges(counts: Any, digest: Digest, limits: Limits, now_s: int) -> tuple[Gauge, ...]:
    seconds = counts.seconds(digest, now_s - WINDOW_S, now_s)
    requests, failures = sum(s.requests for s in seconds), sum(s.failures for s in seconds)
    scores, score_sum = sum(s.scores for s in seconds), sum((s.score_sum for s in seconds), Decimal(0))
    gauges = []
    p95 = counts.p95_ms(digest, now_s - WINDOW_S, now_s)
    if limits.latency_limit_ms is not None and p95 is not None:
        share = float(p95 / limits.latency_limit_ms)
        gauges.append(Gauge(label="P95 Latency", observed=f"{p95:.1f} ms", limit=f"> {limits.latency_limit_ms} ms", share=share,
                            samples=requests))  # fmt: skip
    if limits.error_limit_ratio is not None and requests:
        ratio = Decimal(failures) / requests
        gauges.append(Gauge(label="Error Rate", observed=f"{ratio * 100:.2f} %", limit=f"> {limits.error_limit_ratio * 100:.0f} %",
                            share=float(ratio / limits.error_limit_ratio), samples=requests))  # fmt: skip
    if limits.compliance_drop_points is not None and scores:
        mean = score_sum / scores
        drop = limits.compliance_baseline - mean if limits.compliance_baseline is not None else None
        share = max(0.0, float(drop / limits.compliance_drop_points)) if drop is not None else 0.0
        limit = f"drop ≥ {limits.compliance_drop_points}" if drop is not None else "no baseline yet"
        gauges.append(Gauge(label="Compliance", observed=f"{mean:.1f}", limit=limit, share=share, samples=scores))
    return tuple(gauges)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_SETTINGS = """\
# Written by `rearguard demo`. The windows are short so that the demo ends soon; production values are longer.
version: 1
playbook: rollback_playbook.yaml
objectives: {{rto: 10 min, rpo: 5 min}}
channels:
  oncall: {{kind: file, path: messages.jsonl}}
services:
  {service}:
    environments:
      {env}:
        stateless: true
        target: {{adapter: oip, url: "http://127.0.0.1:{port}", model: {service}}}
        telemetry: {{adapter: jsonl, requests: requests.jsonl, scores: scores.jsonl}}
        triggers:
          latency: {{target_p95_ms: {target_p95_ms}, margin_ms: 5}}
          errors: {{limit_percent: 1}}
          compliance: {{drop_points: 2, baseline: measured, period: 10 min}}
        rule: {{profile: literal, window: {window} s, step: 1 s, for_windows: {for_windows}, min_samples: {min_samples}}}
        no_data_after: 10 s
        recovery: {{window: {recovery} s, min_samples: {min_samples}, probe_every: 500 ms, min_probes: 10, deadline: {deadline} s}}
"""
