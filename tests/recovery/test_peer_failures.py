"""What users of other rollback tools suffered (F1 to F19), each tried on real processes, and what we do instead.

A docstring names the peers' failure. F1 to F4 and F16 are about values: `tests/unit/test_peer_failures_values.py`. The
table of all, with the guard of each, stands in `docs/explanation/reliability.md`; `make see-red` removes every guard
in turn and requires that its test fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from stage import ENV, PLACE, SERVICE, Policy, Server, Stage, wait_until

from rearguard.checkpoints import golden
from rearguard.edge import read_boot_id
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.run import RunState
from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, rfc3339_ms
from rearguard.officer import checkpoints, incidents
from rearguard.officer.incidents import Breach

SetStage = Callable[..., Stage]
pytestmark = pytest.mark.timeout(300)  # a shared machine is slow at times
PATIENCE_S = 60.0
"""For what takes two seconds on an idle machine."""


def bad_version_serves(stage: Stage) -> None:
    """v1 served here, v2 does now, and a breach would be acted on."""
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()


def breach(stage: Stage, trigger: Trigger) -> Breach:
    """What a watcher that saw v2 over the limit of a trigger hands in."""
    with stage.office(write=False) as office:
        now = office.clock.now()
    second = now.mono_ns // NS_PER_S
    judgement = Judgement(
        trigger=trigger,
        digest=stage.digest("v2"),
        outcome=Outcome.FAIL,
        reason="breach",
        window_start_s=second - 2,
        window_end_s=second,
        samples=100,
        exceedances=10,
        observed=Decimal("0.1"),
        limit=Decimal("0.05"),
        streak=2,
        first_bad_mono_ns=now.mono_ns - 2 * NS_PER_S,
    )
    return Breach(
        place=PLACE,
        digest=stage.digest("v2"),
        judgement=judgement,
        also=(),
        t0=now.plus(-2 * NS_PER_S),
        t1=now,
        telemetry=(),
        p95_ms=None,
    )


def told(stage: Stage, code: str) -> list[dict[str, Any]]:
    """Messages to people that name a code."""
    return [m for m in stage.messages() if code in json.dumps(m)]


# --- F5 ---------------------------------------------------------------------------------------------------------------


def misnamed(changes: dict[str, Any], stage: Stage) -> bytes:
    """A request line of v2 that failed, with a name in it changed; a value of None drops the field."""
    line: dict[str, Any] = {
        "ts": rfc3339_ms(time.time_ns()),
        "mono_ns": time.monotonic_ns(),
        "boot_id": read_boot_id(),
        "service": SERVICE,
        "env": ENV,
        "digest": stage.digest("v2"),
        "version": "v2",
        "status": 500,
        "latency_ms": 9999,
        "id": "r",
        "probe": False,
    }
    line.update(changes)
    return json.dumps({name: value for name, value in line.items() if value is not None}).encode() + b"\n"


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        pytest.param({"latency_ms": None, "latency": 9999}, "lines_rejected", "field_missing: latency_ms", id="metric"),
        pytest.param({"service": "digit"}, "other_places_only", "none of digits/stage", id="service"),
        pytest.param({"env": "staging"}, "other_places_only", "none of digits/stage", id="environment"),
    ],
)
def test_f05_a_misnamed_metric_is_not_evaluated_and_said_so(
    server: Server, set_stage: SetStage, changes: dict[str, Any], reason: str, says: str
) -> None:
    """flagger#1581: with a wrong metric name no metric was evaluated, and the canary always passed."""
    stage = set_stage(server, policy=Policy(no_data_after_s=2))
    bad_version_serves(stage)
    log = stage.state / "foreign.jsonl"
    stage.read_requests_from(log)
    with log.open("ab") as lines:
        watcher = stage.watch_alive()

        def silent() -> bool:
            lines.write(misnamed(changes, stage) * 20)
            lines.flush()
            return bool(stage.records("telemetry_silent"))

        wait_until(silent, "it is noticed that nothing is evaluated", PATIENCE_S)
        assert watcher.end() == 0
        lines.write(misnamed(changes, stage))

    (record,) = stage.records("telemetry_silent")
    assert (record.body["outcome"], record.body["reason"]) == ("inconclusive", reason)
    assert stage.runs() == ()
    doctor = stage.cli("doctor", "--json")
    (check,) = [c for c in json.loads(doctor.stdout) if c["name"] == f"{PLACE} telemetry"]
    assert check["outcome"] == "inconclusive"
    assert "not evaluated" in check["message"]
    assert says in check["message"] + check["hint"]
    assert doctor.returncode in (10, 20)  # never 0


# --- F7 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["another_trigger", "by_hand"])
def test_f07_two_triggers_at_once_are_one_rollback(server: Server, set_stage: SetStage, second: str) -> None:
    """Flagger on two canaries of one target only logs "Bad things will happen!"."""
    stage = set_stage(server)
    bad_version_serves(stage)
    together = threading.Barrier(2)
    failures: list[BaseException] = []

    def report(found: Breach) -> None:
        try:
            with stage.office() as office:
                together.wait(PATIENCE_S)
                incidents.open_incident(office, found)
        except BaseException as error:
            failures.append(error)

    if second == "another_trigger":
        reporters = [
            threading.Thread(target=report, args=(breach(stage, t),)) for t in (Trigger.ERRORS, Trigger.LATENCY)
        ]
        for reporter in reporters:
            reporter.start()
        for reporter in reporters:
            reporter.join(PATIENCE_S)
        assert failures == []
        watcher = stage.watch()
        run = stage.wait_for_end(PATIENCE_S)
        assert (
            len(stage.runs()) == len(stage.records("incident_opened")) == len(stage.records("incident_attached")) == 1
        )
        assert run.state is RunState.SUCCEEDED
    else:
        automatic = stage.force_breach()
        with stage.office() as office, office.database.transaction() as connection:
            by_hand = office.ids.run_id()
            incidents.insert_run(
                connection,
                by_hand,
                PLACE,
                incident_id=None,
                from_digest=stage.digest("v2"),
                by="somebody",
                now=office.clock.now(),
            )
        watcher = stage.watch()
        wait_until(
            lambda: all(stage.kinds(i)["rollback_finished"] for i in (by_hand, automatic)), "both runs end", PATIENCE_S
        )
        assert Counter(run.state for run in stage.runs()) == {RunState.SUCCEEDED: 1, RunState.REFUSED: 1}
    wait_until(lambda: stage.open_run() is None, "the place is let go", PATIENCE_S)
    assert watcher.end() == 0

    assert len(stage.records("traffic_switched")) == 1
    assert server.serves()["digest"] == stage.digest("v1")


# --- F8 ---------------------------------------------------------------------------------------------------------------


def test_f08_a_trigger_during_a_manual_pause_is_recorded_and_told_and_acted_on_only_after_it(
    server: Server, set_stage: SetStage
) -> None:
    """flagger#1801: waiting for a person, 18 failed checks of 5 allowed, and nobody acted or was told."""
    stage = set_stage(server)
    stage.deploy("v1")
    stage.arm()
    assert stage.cli("automation", "pause", SERVICE, "--env", ENV, "--reason", "maintenance").returncode == 0
    stage.send_traffic()
    watcher = stage.watch_alive()
    stage.deploy("v2")
    before = server.serves()
    wait_until(lambda: told(stage, "automation_paused"), "people are told", PATIENCE_S)
    looks = time.monotonic_ns()
    wait_until(lambda: time.monotonic_ns() - looks > 3 * NS_PER_S, "three more windows are judged", PATIENCE_S)
    assert [r.body["reason"] for r in stage.records("rollback_withheld")] == ["automation_paused"]
    assert len(stage.records("incident_opened")) == 1
    assert (stage.runs(), server.serves()) == ((), before)

    assert stage.cli("automation", "resume", SERVICE, "--env", ENV).returncode == 0
    run = stage.wait_for_end(PATIENCE_S)
    assert watcher.end() == 0
    assert (run.state, server.serves()["digest"]) == (RunState.SUCCEEDED, stage.digest("v1"))


# --- F9 ---------------------------------------------------------------------------------------------------------------


def _missing(stage: Stage) -> None:
    with stage.office(write=False) as office:
        (file,) = checkpoints.find(office, service=SERVICE, version="v1").files
    (stage.state / "blobs" / "sha256" / file.sha256).unlink()


@contextlib.contextmanager
def load_probes_stand_still(watcher: int) -> Iterator[None]:
    """What the watcher starts to load a checkpoint stands still, as on a host that swaps; it is ended afterwards."""
    stopped: set[int] = set()
    over = threading.Event()

    def stop_them() -> None:
        while not over.wait(0.01):
            for found in _load_probes_of(watcher) - stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found, signal.SIGSTOP)
                    stopped.add(found)

    stopper = threading.Thread(target=stop_them)
    stopper.start()
    try:
        yield
    finally:
        over.set()
        stopper.join()
        for found in stopped & _load_probes_of(watcher):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found, signal.SIGKILL)


def _load_probes_of(parent: int) -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            of = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if of == parent and b"rearguard.loaders.probe" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("policy", "harm", "code"),
    [
        pytest.param(Policy(), _missing, "blob_missing", id="missing"),
        pytest.param(Policy(), lambda stage: stage.damage("v1"), "blob_altered", id="hash_mismatch"),
        pytest.param(Policy(max_age_s=2), lambda _stage: None, "", id="too_old"),
        pytest.param(Policy(max_age_s=2, max_load_s=1), lambda _stage: None, "load_too_slow", id="loads_too_slowly"),
    ],
)
def test_f09_no_checkpoint_becomes_the_target_without_proof(
    server: Server, set_stage: SetStage, policy: Policy, harm: Callable[[Stage], None], code: str
) -> None:
    """terraform-aws#48997: the configuration to go back to was deleted. argo#841: the stable version could not start."""
    stage = set_stage(server, policy=policy)
    bad_version_serves(stage)
    harm(stage)
    run_id = stage.force_breach()
    before = server.serves()
    watcher = stage.watch()
    with load_probes_stand_still(watcher.process.pid) if code == "load_too_slow" else contextlib.nullcontext():
        run = stage.wait_for_end(PATIENCE_S)
    assert watcher.end() == 0

    (proof,) = [r for r in stage.records("checkpoint_verified") if r.run_id == run_id]
    assert (proof.body["digest"], proof.body["ok"], proof.body["code"]) == (stage.digest("v1"), not code, code)
    if not code:  # its proof had expired, so it was given anew before traffic moved
        assert stage.records("target_selected")[0].body["candidates"][0]["stale"] is True
        assert proof.id < stage.records("traffic_switched")[0].id
        assert run.state is RunState.SUCCEEDED
        return
    assert (run.state, run.reason) == (RunState.REFUSED, "no_verified_checkpoint")
    assert stage.records("traffic_switched") == []
    assert server.serves() == before


# --- F11 --------------------------------------------------------------------------------------------------------------


def test_f11_with_no_target_at_all_the_run_is_refused_the_service_left_alone_and_people_are_told(
    server: Server, set_stage: SetStage
) -> None:
    """argo#1774, flagger#639: stuck, or scaled to nothing, because there was nothing good to go back to."""
    stage = set_stage(server, versions="v2")
    stage.deploy("v2")
    stage.arm()
    before = server.serves()
    stage.force_breach()
    watcher = stage.watch()
    run = stage.wait_for_end(PATIENCE_S)
    assert (run.state, run.reason, run.to_digest) == (RunState.REFUSED, "no_verified_checkpoint", None)
    wait_until(lambda: told(stage, "no_verified_checkpoint"), "people are told", PATIENCE_S)
    assert watcher.end() == 0

    assert stage.open_run() is None
    assert server.serves() == before


# --- F12 --------------------------------------------------------------------------------------------------------------


def test_f12_traffic_never_moves_before_the_target_has_answered(own_server: Server, set_stage: SetStage) -> None:
    """argo#3020, #3372: a fast rollback moved traffic to a set that was not up; "several incidents"."""
    stage = set_stage(own_server, versions="v0,v1,v2")
    stage.deploy("v1")
    stage.deploy("v0")
    stage.arm()
    unload = {"parameters": {"digest": stage.digest("v1")}}
    assert own_server.call("POST", f"/v2/repository/models/{SERVICE}/unload", unload)[0] == 200
    before = own_server.serves()
    clients = stage.send_traffic()
    wait_until(lambda: len(clients.answers) >= 20, "clients are answered", PATIENCE_S)

    too_narrow = {"inputs": [{"name": "pixels", "shape": [1, 3], "datatype": "FP64", "data": [0.0] * 3}]}
    order = {
        "digest": stage.digest("v1"),
        "version": "v1",
        "format": "sklearn-skops",
        "path": str(stage.prepared.sources["v1"]),
        "epoch": before["epoch"],
        "key": "a warm-up that fails",
        "warmup": too_narrow,
    }
    status, _ = own_server.call("POST", f"/v2/repository/models/{SERVICE}/load", {"parameters": order})
    assert status >= 400
    assert own_server.serves() == before

    stage.force_breach()
    watcher = stage.watch()
    run = stage.wait_for_end(PATIENCE_S)
    assert watcher.end() == 0
    clients.stop()

    assert run.state is RunState.SUCCEEDED
    assert {a.status for a in clients.answers} == {200}, "a request failed while a model was loaded"
    first_new_ns = min(a.got_ns for a in clients.answers if a.digest == stage.digest("v1"))
    assert {a.digest for a in clients.since(first_new_ns)} == {stage.digest("v1")}
    loading = [a for a in clients.answers if a.digest == stage.digest("v0") and a.sent_ns > run.requested_at.mono_ns]
    assert loading, "nobody was served while the target was loaded"


# --- F13 --------------------------------------------------------------------------------------------------------------


def test_f13_what_is_asked_for_when_nothing_is_in_progress_touches_nothing(server: Server, set_stage: SetStage) -> None:
    """argo#1292: `abort` with nothing in progress scaled the stable set to 0."""
    stage = set_stage(server)
    bad_version_serves(stage)
    run_id = stage.force_breach()
    watcher = stage.watch()
    assert stage.wait_for_end(PATIENCE_S).state is RunState.SUCCEEDED
    assert watcher.end() == 0
    clients = stage.send_traffic()
    before = (server.serves(), len(stage.records()), stage.runs())

    for words, code, says in (
        (("rollback", "run", SERVICE, "--to", "v1", "--execute"), 30, "already_served"),
        (("runs", "cancel", run_id), 75, "run_ended"),
        (("runs", "cancel", "run_nobody"), 64, "run_unknown"),
        (("automation", "resume", SERVICE, "--env", ENV), 30, "not paused"),
        (("arm", SERVICE), 0, "it was before"),
    ):
        answer = stage.cli(*words)
        assert (answer.returncode, says in answer.stdout + answer.stderr) == (code, True), (words, answer)
    assert (server.serves(), len(stage.records()), stage.runs()) == before
    wait_until(lambda: len(clients.answers) >= 20, "clients go on", PATIENCE_S)
    assert {(a.status, a.digest) for a in clients.answers} == {(200, stage.digest("v1"))}


# --- F15 --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class EmulatedTarget:
    """A small real HTTP server on loopback that speaks the Open Inference Protocol and lies.

    It answers every golden request of `new` rightly; what it lies about is which digest answers:
    `keeps_the_old` says yes to the order and goes on with `old`, `hangs_on_activation` never answers the order,
    `flaps` passes the first round of golden requests and then answers every other one with `old`.
    """

    lie: str
    old: Digest
    new: Digest
    answers: dict[str, Any]
    released: threading.Event = field(default_factory=threading.Event)
    asked: int = 0

    def load(self) -> tuple[int, Any]:
        if self.lie == "hangs_on_activation":
            self.released.wait()
        return 200, {"digest": self.new, "epoch": 1_000_000}

    def serving(self) -> Digest:
        flaps_to_new = self.asked <= len(self.answers) or self.asked % 2 == 0
        return self.new if self.lie == "flaps" and flaps_to_new else self.old

    def infer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked += 1
        outputs = self.answers[json.dumps(body["inputs"], sort_keys=True)]
        return 200, {"outputs": outputs, "parameters": {"digest": self.serving()}}

    def metadata(self) -> tuple[int, Any]:
        return 200, {"name": SERVICE, "parameters": {"digest": self.serving(), "version": "?"}}


@contextlib.contextmanager
def emulated(target: EmulatedTarget) -> Iterator[int]:
    """Serve it on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*target.metadata())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._answer(*(target.load() if self.path.endswith("/load") else target.infer(body)))

        def _answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            with contextlib.suppress(OSError):  # who hung up is not answered
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        http_server.daemon_threads = True
        http_server.block_on_close = False
        serving = threading.Thread(target=http_server.serve_forever)
        serving.start()
        try:
            yield http_server.server_address[1]
        finally:
            target.released.set()
            http_server.shutdown()
            serving.join()


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ("keeps_the_old", "wrong_digest_answers"),
        ("hangs_on_activation", "target_timeout"),
        ("flaps", "golden_probe_failed"),
    ],
)
def test_f15_a_target_that_says_yes_and_goes_on_with_the_old_digest_is_never_a_success(
    server: Server, set_stage: SetStage, lie: str, reason: str
) -> None:
    """argo#4393, terraform-aws#48997: reported as done, while the old version answered."""
    stage = set_stage(server, policy=Policy(deadline_s=5, recovery_s=1))
    bad_version_serves(stage)
    stage.force_breach()
    with stage.office(write=False) as office:
        known = golden.decode(
            office.store.get_bytes(checkpoints.find(office, service=SERVICE, version="v1").golden_sha256)
        )
    answers = {
        json.dumps(request["inputs"], sort_keys=True): answer
        for request, answer in zip(known.requests, known.answers, strict=True)
    }
    liar = EmulatedTarget(lie=lie, old=stage.digest("v2"), new=stage.digest("v1"), answers=answers)
    with emulated(liar) as port:
        stage.point_target_at(port)
        watcher = stage.watch()
        run = stage.wait_for_end(PATIENCE_S)
        assert (run.state, run.reason) == (RunState.FAILED, reason)
        wait_until(lambda: told(stage, reason), "people are told", PATIENCE_S)
        assert watcher.end() == 0
        status = json.loads(stage.cli("status", "--json").stdout)

    assert stage.open_run() is None
    assert stage.records("incident_closed") == []
    if lie != "flaps":  # what has never answered is not said to serve
        assert status["places"][0]["version"] != "v1"


# --- F17 --------------------------------------------------------------------------------------------------------------


def test_f17_an_officer_stopped_in_mid_run_leaves_the_service_serving_and_the_run_to_its_successor(
    server: Server, set_stage: SetStage
) -> None:
    """ray#34097, seldon PR#5726: a controller that was restarted in the middle deployed again, or lost count."""
    stage = set_stage(server, policy=Policy(recovery_s=3))
    bad_version_serves(stage)
    run_id = stage.force_breach()
    clients = stage.send_traffic()
    first = stage.watch()
    wait_until(lambda: stage.records("golden_answered"), "the run is in its window", PATIENCE_S)
    switched_ns = time.monotonic_ns()
    assert first.end() == 0
    assert stage.records("window_held") == []
    assert stage.open_run() == run_id
    second = stage.watch()
    run = stage.wait_for_end(PATIENCE_S)
    assert second.end() == 0

    assert (run.id, run.state) == (run_id, RunState.SUCCEEDED)
    assert set(stage.kinds(run_id).values()) == {1}
    assert {(a.status, a.digest) for a in clients.since(switched_ns)} == {(200, stage.digest("v1"))}
