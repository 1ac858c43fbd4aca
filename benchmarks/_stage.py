"""The stage of `breach_to_restored`: the demo's composition, a bad model deployed again and again, and who saw it when."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import _load
import _peers
from rearguard.database import officer_alive
from rearguard.demo import run as demo
from rearguard.demo.live import LiveView
from rearguard.demo.processes import Children
from rearguard.edge import read_boot_id
from rearguard.errors import DependencyError
from rearguard.model.incident import Incident, IncidentState
from rearguard.model.run import TERMINAL
from rearguard.model.service import Digest
from rearguard.officer import automation, checkpoints, deployments, incidents, rollbacks
from rearguard.officer.office import Office, open_office

HEALTHY_ARMED_S = 12.0
"""Longer than the rule's window and the fast pair's. The slow pair's minute is not waited for: it cannot fire here."""
HEALTHY_OBSERVED_S = float(_peers.SLOW.window_s + _peers.SLOW.scrape_s)
ARMED_PATIENCE_S = 75.0
OBSERVED_PATIENCE_S = 120.0
SETTLE_S = 3.0
"""After the good model was deployed by hand: late answers of the bad one are judged, too, while its incident is open."""
MESSAGES = {True: ":begun", False: ":observed"}
"""Ends of the keys of Rearguard's first message of an incident, armed or not."""
_FILE_CHANNEL = "{kind: file, path: messages.jsonl}"
_NO_BRAKES = "brakes: {cool_down: 0 s, max_rollbacks: 1000}"
BY = "benchmark"


class Stage(demo._Demo):
    """The demo's composition with one model that is bad in one way; many deployments instead of one.

    It leans on the demo's own steps on purpose: what is measured is what `rearguard demo` shows.
    """

    def __init__(
        self, breach: str, folder: Path, binaries: _peers.Binaries, seed: int, say: Callable[[str], None]
    ) -> None:
        self._folder = folder / "rearguard"
        self._folder.mkdir(parents=True)
        children = Children(self._folder)
        view = LiveView(f"{demo.SERVICE}/{demo.ENV}", time.monotonic, quiet=True)
        super().__init__(demo.DemoOptions(breach=breach, state=self._folder, quiet=True), self._folder, view, children)
        self.breach = breach
        self.policy: dict[str, Any] = {}
        self._binaries = binaries
        self._say = say
        self._random = random.Random(seed)
        self._receiver = _peers.Receiver()
        self._exporter_port = _peers.free_port()
        self._log = self._folder / "requests.jsonl"
        self._limit_ms = Decimal(0)
        self._tally_path = self._folder / "clients.json"

    def close(self) -> None:
        """End every process."""
        self._children.end_all()
        self._receiver.close()

    def repeat(self, repetitions: int) -> Iterator[dict[str, Any]]:
        """Set the stage once, then measure, one repetition after the other."""
        self._train()
        self._start_server()
        self._write_settings(target_p95_ms=Decimal(1000))
        with open_office(self._state) as office:
            self._register(office)
            deployments.deploy(office, service=demo.SERVICE, env=demo.ENV, version="v1", by=BY)
            self._start_clients()
            target_ms = self._measure_healthy(office)
            self._children.end("clients")
        self._write_settings(target_p95_ms=target_ms)
        with open_office(self._state) as office:
            self._describe(office, target_ms)
            self._start_exporter()
            self._start_watcher(office)
            for number in range(1, repetitions + 1):
                armed = self._phase_of(office, number, armed=True)
                observed = self._phase_of(office, number, armed=False)
                yield {"number": number, "armed": armed, "observed": observed}

    def _write_settings(self, *, target_p95_ms: Decimal) -> None:
        """The demo's settings, with messages sent to the receiver that the Alertmanagers tell, too."""
        super()._write_settings(target_p95_ms=target_p95_ms)
        path = self._state / "rearguard.yaml"
        text = path.read_text(encoding="utf-8")
        if _FILE_CHANNEL not in text:
            raise DependencyError("benchmark_outdated", "the demo's settings have changed", "adapt _FILE_CHANNEL")
        url = f"http://127.0.0.1:{self._receiver.port}/rearguard"
        text = text.replace(_FILE_CHANNEL, f'{{kind: webhook, url: "{url}"}}')
        # Each repetition rolls back within minutes of the one before, which the default cool-down would refuse.
        path.write_text(f"{text.rstrip()}\n        {_NO_BRAKES}\n", encoding="utf-8")

    def _start_clients(self) -> None:
        """The demo's clients from their first request on, with a tally of their own for each phase."""
        spec = {
            "host": "127.0.0.1", "port": self._port, "model": demo.SERVICE, "service": demo.SERVICE, "env": demo.ENV,
            "clients": 4, "traffic": str(self._state / "traffic.json"), "scores": str(self._state / "scores.jsonl"),
            "tally": str(self._tally_path), "boot_id": read_boot_id(),
        }  # fmt: skip
        self._children.start(
            "clients", ["-m", "rearguard.demo.clients", json.dumps(spec)], out=self._state / "clients.log"
        )

    def _describe(self, office: Office, target_ms: Decimal) -> None:
        settings = office.settings.places[0]
        rule, limits = settings.rule, office.feed_of(settings.place).limits_of(Digest(next(iter(self._names))))
        assert limits.latency_limit_ms is not None
        assert limits.error_limit_ratio is not None
        self._limit_ms, self._error_ratio = limits.latency_limit_ms, limits.error_limit_ratio
        self.policy = {
            "thresholds": {
                "error_ratio": f"> {self._error_ratio}",
                "p95_ms": f"> {self._limit_ms} (target {target_ms} from healthy traffic, margin 5)",
            },
            "rearguard": {
                "rule": "literal", "window_s": rule.window_s, "step_s": rule.step_s, "for_windows": rule.for_windows,
                "min_samples": rule.min_samples, "recovery_window_s": settings.recovery.window_s,
                "product_defaults": "window 60 s, step 60 s, two in a row, at least 100 samples",
            },
            **{p.name: {**p.as_settings(), "alerts": self._expressions(p)} for p in _peers.PAIRS},
        }  # fmt: skip

    def _expressions(self, pair: _peers.Pair) -> dict[str, str]:
        return _peers.expressions(pair, str(self._error_ratio), self._limit_s())

    def _limit_s(self) -> str:
        return repr(float(self._limit_ms) / 1000)

    def _start_exporter(self) -> None:
        exporter = Path(__file__).with_name("request_log_exporter.py")
        self._children.start(
            "exporter",
            [str(exporter), str(self._log), str(self._exporter_port), str(self._limit_ms)],
            out=self._state / "exporter.log",
        )

    def _start_watcher(self, office: Office) -> None:
        self._children.start(
            "watcher",
            ["-m", "rearguard.interfaces.cli", "watch", "--json", "--state", str(self._state)],
            out=self._state / "watch.jsonl",
        )
        self._await(lambda: officer_alive(self._state), 20, "the watcher", office)

    def _phase_of(self, office: Office, number: int, *, armed: bool) -> dict[str, Any]:
        """One deployment of the bad model, from healthy traffic to healthy traffic."""
        name = f"{number}-{'armed' if armed else 'observed'}"
        place = office.settings.places[0].place
        automation.set_armed(office, place, armed=armed, by=BY)
        self._tally_path = self._state / f"clients-{name}.json"
        self._start_clients()
        pairs = [
            _peers.RunningPair(p, self._binaries, self._children, self._state / f"peers-{name}" / p.name)
            for p in _peers.PAIRS
        ]
        for pair in pairs:
            pair.start(
                exporter_port=self._exporter_port,
                receiver_port=self._receiver.port,
                error_ratio=str(self._error_ratio),
                latency_limit_s=self._limit_s(),
            )
        began_ns = time.monotonic_ns()
        before = len(incidents.list_incidents(office))
        # The moment of the switch must not stand in step with the scrapes.
        healthy_s = (HEALTHY_ARMED_S if armed else HEALTHY_OBSERVED_S) + self._random.uniform(
            0, _peers.FAST.scrape_s if armed else _peers.SLOW.scrape_s
        )
        self._sleep(office, healthy_s, lambda: False)
        self._require_ready(pairs, only_fast=armed)
        cpu = _load.stamp()
        log_from = self._log.stat().st_size
        switched_ns = time.monotonic_ns()
        false_alarms = self._false_alarms(office, before, began_ns)
        deployed = deployments.deploy(office, service=demo.SERVICE, env=demo.ENV, version="v2", by=BY)
        wait = self._until_rolled_back if armed else self._until_told
        wait(office, switched_ns)
        cpu_shares = _load.shares(cpu, _load.stamp())
        opened = incidents.list_incidents(office)[before:]
        self._tidy(office, armed=armed)
        self._children.end("clients")
        for pair in pairs:
            pair.end()
        found = self._measure(deployed.digest, log_from, switched_ns, armed=armed)
        found |= self._rearguard(office, found.pop("first_bad_ns"), opened, armed=armed)
        found |= {"false_alarms_before": false_alarms, "cpu": cpu_shares}
        self._say(f"{self.breach} {name}: {_line(found)}")
        return found

    def _sleep(self, office: Office, limit_s: float, done: Callable[[], bool]) -> bool:
        """Wait, and look at the telemetry as the demo's view does, so that deploying finds it read."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if done():
                return True
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))
            self._look(office)
        return done()

    def _require_ready(self, pairs: list[_peers.RunningPair], *, only_fast: bool) -> None:
        """The slow pair may not have evaluated yet when an armed phase begins: it is not waited for there."""
        for pair in pairs:
            why = pair.why_not_ready()
            if why and not (only_fast and pair.pair is _peers.SLOW):
                raise DependencyError("peer_not_ready", why, f"see {self._state}")

    def _false_alarms(self, office: Office, before: int, began_ns: int) -> list[str]:
        """Who complained about healthy traffic; such an incident is closed, or it would swallow the real one."""
        found = [n.sender for n in self._receiver.notices("fast", began_ns) + self._receiver.notices("slow", began_ns)]
        for incident in incidents.list_incidents(office)[before:]:
            found.append(f"rearguard ({incident.trigger.label})")
            if incident.state is IncidentState.OPEN:
                incidents.close(office, incident.id, by=BY, false_positive=True)
        return found

    def _until_rolled_back(self, office: Office, switched_ns: int) -> None:
        begun = {r.id for r in rollbacks.list_runs(office) if r.state in TERMINAL}

        def closed() -> bool:
            new = [r for r in rollbacks.list_runs(office) if r.id not in begun]
            return bool(new) and new[-1].state in TERMINAL and self._closed(office, new[-1].id)

        self._sleep(office, ARMED_PATIENCE_S, closed)
        self._sleep(office, 1.5, lambda: False)

    def _until_told(self, office: Office, switched_ns: int) -> None:
        alert = _peers.ALERTS[self.breach]
        self._sleep(
            office,
            OBSERVED_PATIENCE_S,
            lambda: all(self._receiver.first(p.name, alert, switched_ns) is not None for p in _peers.PAIRS),
        )

    def _tidy(self, office: Office, *, armed: bool) -> None:
        """Back to v1 with nothing open and nothing quarantined."""
        place = office.settings.places[0].place
        automation.set_armed(office, place, armed=False, by=BY)
        serving = deployments.list_deployments(office, demo.SERVICE)
        if not any(d.state == "active" and d.version == "v1" for d in serving):
            deployments.deploy(office, service=demo.SERVICE, env=demo.ENV, version="v1", by=BY)
            self._sleep(office, SETTLE_S, lambda: False)
        for incident in incidents.list_incidents(office):
            if incident.state is IncidentState.OPEN:
                incidents.close(office, incident.id, by=BY, false_positive=False)
        if any(row.quarantined_at for row in checkpoints.list_checkpoints(office)):
            checkpoints.release(
                office, service=demo.SERVICE, version="v2", env=demo.ENV, reason="measured again", by=BY
            )

    def _measure(self, bad: str, log_from: int, switched_ns: int, *, armed: bool) -> dict[str, Any]:
        """What clients, request log and receiver saw of one deployment."""
        tally = json.loads(self._tally_path.read_text(encoding="utf-8"))
        with self._log.open("rb") as log:
            log.seek(log_from)
            lines = [json.loads(line) for line in log if line.endswith(b"\n")]
        lines = [x for x in lines if x["digest"] == bad and not x["probe"]]
        over = [x["mono_ns"] for x in lines if x["latency_ms"] is not None and x["latency_ms"] > self._limit_ms]
        failed = [x["mono_ns"] for x in lines if x["status"] == 0 or x["status"] >= 500]
        first_ns = tally["first_failure_mono_ns"] if self.breach == "errors" else min(over, default=None)
        if first_ns is None or first_ns < switched_ns:
            raise DependencyError(
                "no_clear_first_bad_answer", f"first bad answer {first_ns}, switch {switched_ns}", f"see {self._state}"
            )
        last_ns = max(tally["last_answer_mono_ns"].get(bad, 0), *(x["mono_ns"] for x in lines))
        alert = _peers.ALERTS[self.breach]
        told = {p.name: self._receiver.first(p.name, alert, first_ns) for p in _peers.PAIRS}
        message_ns = self._receiver.first("rearguard", MESSAGES[armed], first_ns)
        return {
            "first_bad_ns": first_ns,
            "told_before_it": [
                n.sender
                for p in _peers.PAIRS
                for n in self._receiver.notices(p.name, switched_ns)
                if n.mono_ns < first_ns
            ],
            "bad_answers": len(failed if self.breach == "errors" else over),
            "answers_of_the_bad_model": len(lines),
            "last_bad_model_answer_ms": _ms(first_ns, last_ns),
            "rearguard_message_ms": _ms(first_ns, message_ns),
            "fast_alert_ms": _ms(first_ns, told["fast"]),
            "slow_alert_ms": _ms(first_ns, told["slow"]),
        }

    def _rearguard(self, office: Office, first_ns: int, opened: tuple[Incident, ...], *, armed: bool) -> dict[str, Any]:
        """What the evidence says: the breach's instants and, armed, those of the recovery."""
        incident = next(
            (i for i in opened if i.trigger is demo.BREACHES[self.breach] and i.t1.mono_ns > first_ns), None
        )
        answer: dict[str, Any] = {
            "rearguard_recorded_ms": _ms(first_ns, incident.t1.mono_ns) if incident else None,
            "other_triggers": sorted({i.trigger.label for i in opened if i is not incident}),
        }
        if not armed:
            return answer
        body = None
        if incident is not None and incident.run_id is not None:
            story = rollbacks.show(office, incident.run_id)
            body = next((r.body for r in story.records if r.kind == "rollback_finished"), None)
        answer["run_state"] = body["state"] if body else None
        for index in (0, 6, 7):
            instant = body["t"][index] if body else None
            answer[f"t{index}_ms"] = _ms(first_ns, int(instant["mono_ns"])) if instant else None
        for name in ("rto_achieved_ms", "parts_ms"):
            answer[name] = body[name] if body else None
        return answer


def _ms(start_ns: int, end_ns: int | None) -> int | None:
    return None if end_ns is None else round((end_ns - start_ns) / 1e6)


def _line(found: dict[str, Any]) -> str:
    shown = ("last_bad_model_answer", "rearguard_recorded", "rearguard_message", "fast_alert", "slow_alert", "t6", "t7")
    words = [f"{name} {found[f'{name}_ms'] / 1000:.2f} s" for name in shown if found.get(f"{name}_ms") is not None]
    return ", ".join([*words, f"others {found['cpu']['others_share']:.0%} of the cores"])
