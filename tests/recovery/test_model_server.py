"""The model server keeps answering, and keeps its word, while processes are switched, killed and started again.

Real servers on loopback with real models: digits pipelines trained here and saved as skops, and the ONNX samples that
onnxruntime ships. Only processes started here are ended, by their ids.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import skops.io
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

SAMPLES = Path(onnxruntime.__file__).parent / "datasets"
TENSOR = {"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1] * 6}
ONES = {"inputs": [TENSOR]}


def digest(digit: str) -> str:
    return "sha256:" + digit * 64


def wait_until(claim: Callable[[], bool], what: str, deadline_s: float = 15.0) -> None:
    end = time.monotonic() + deadline_s
    while not claim():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """False also for a process that is dead and only waits for init to take note."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def children(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if int(parent) == pid and state != "Z":
                found.add(int(stat.parent.name))
    return found


class Server:
    """One server process; its files live in `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home / "requests.jsonl"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["--name", "m", "--service", "credit", "--env", "prod", "--port", str(self.port)]
        files = ["--log", str(self.log), "--state-dir", str(self.home / "state")]
        with (self.home / "stderr.txt").open("ab") as errors:
            process = subprocess.Popen([sys.executable, "-m", "rearguard.serving", *words, *files], stderr=errors)
        wait_until(self._listens, "the server listens")
        return process

    def _listens(self) -> bool:
        try:
            return self.get("/v2/health/live")[0] == 200
        except OSError:
            return False

    def restart(self) -> None:
        self.process = self._start()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return self.call("GET", path)

    def infer(self, request: Any = ONES) -> tuple[int, dict[str, Any]]:
        return self.call("POST", "/v2/models/m/infer", request)

    def load(self, digit: str, folder: Path, epoch: int, **changes: Any) -> tuple[int, dict[str, Any]]:
        parameters = {
            "digest": digest(digit),
            "version": f"v{digit}",
            "format": "onnx",
            "path": str(folder),
            "trusted_types": [],
            "epoch": epoch,
            "key": f"key-{epoch}",
            **changes,
        }
        return self.call("POST", "/v2/repository/models/m/load", {"parameters": parameters})

    def active(self) -> tuple[str, int]:
        parameters = self.get("/v2/models/m")[1]["parameters"]
        return parameters["digest"], parameters["epoch"]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    if started.process.poll() is None:
        started.process.terminate()
        started.process.wait(10)


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX model that multiplies the six numbers of X by 1 to 6 (onnxruntime's sample `mul_1`)."""
    folder = tmp_path_factory.mktemp("times")
    shutil.copy(SAMPLES / "mul_1.onnx", folder / "model.onnx")
    return folder


@dataclass(frozen=True)
class Seen:
    sent_at: float
    status: int
    digest: str


def hammer(port: int, request: bytes, stop: threading.Event, seen: list[Seen], connections: list[int]) -> None:
    """One kept-alive client; a failed exchange counts as status 0."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    first = connection.sock
    while not stop.is_set():
        sent_at = time.monotonic()
        try:
            connection.request("POST", "/v2/models/m/infer", request)
            response = connection.getresponse()
            answer = json.loads(response.read())
            seen.append(Seen(sent_at, response.status, answer.get("parameters", {}).get("digest", "")))
        except (OSError, http.client.HTTPException):
            seen.append(Seen(sent_at, 0, ""))
        stop.wait(0.005)
    connections.append(int(connection.sock is first))
    connection.close()


def test_a_switch_under_load_fails_no_request_and_takes_effect_when_it_returns(server: Server, tmp_path: Path) -> None:
    images, digits = load_digits(return_X_y=True)
    for name, rows in (("old", slice(0, 900)), ("new", slice(900, None))):
        (tmp_path / name).mkdir()
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(images[rows], digits[rows])
        skops.io.dump(pipeline, tmp_path / name / "model.skops")
    sample = {"name": "x", "shape": [1, 64], "datatype": "FP64", "data": images[0].tolist()}
    golden = {"inputs": [sample]}
    skl = {"format": "sklearn-skops", "warmup": golden}
    assert server.load("a", tmp_path / "old", 1, **skl)[0] == 200
    stop = threading.Event()
    seen: list[Seen] = []
    kept: list[int] = []
    clients = [
        threading.Thread(target=hammer, args=(server.port, json.dumps(golden).encode(), stop, seen, kept))
        for _ in range(4)
    ]
    for client in clients:
        client.start()
    try:
        began_at = time.monotonic()
        status, cold = server.load("b", tmp_path / "new", 2, **skl)
        cold_at = time.monotonic()
        wait_until(lambda: sum(s.sent_at > cold_at for s in list(seen)) > 40, "traffic after the cold switch")
        back_began_at = time.monotonic()
        back_status, warm = server.load("a", tmp_path / "old", 3, **skl)
        warm_at = time.monotonic()
        wait_until(lambda: sum(s.sent_at > warm_at for s in list(seen)) > 40, "traffic after the warm switch")
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert (status, cold["warm"], back_status, warm["warm"]) == (200, False, 200, True)
    assert [s for s in seen if s.status != 200] == []
    assert kept == [1, 1, 1, 1]  # each client spoke on its first connection to the end
    # While the new version was loading the old one answered all traffic: more than a handful of requests.
    assert sum(began_at < s.sent_at < cold_at - 0.2 and s.digest == digest("a") for s in seen) > 20
    assert {s.digest for s in seen if cold_at <= s.sent_at < back_began_at} == {digest("b")}
    assert {s.digest for s in seen if s.sent_at >= warm_at} == {digest("a")}


def test_a_killed_worker_answers_503_and_is_restarted(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    (worker,) = children(server.process.pid)
    os.kill(worker, signal.SIGKILL)
    statuses: list[int] = []

    def recovered() -> bool:
        status, body = server.infer()
        statuses.append(status)
        assert status == 200 or body["error"]
        return status == 200 and 503 in statuses

    wait_until(recovered, "503 and then 200")
    assert set(statuses) == {200, 503}
    assert server.active() == (digest("a"), 1)
    assert children(server.process.pid) & {worker} == set()
    # A failure is charged to the digest that should have answered.
    assert {line["digest"] for line in server.lines() if line["status"] == 503} == {digest("a")}


def test_a_killed_standby_is_told_and_the_active_one_never_stops(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    (standby,) = children(server.process.pid)
    server.load("b", times, 2)
    os.kill(standby, signal.SIGKILL)

    def told() -> bool:
        assert server.infer()[0] == 200
        entries = server.call("POST", "/v2/repository/index", {})[1]
        return [(e["state"], e["reason"]) for e in entries] == [("READY", ""), ("UNAVAILABLE", "the worker died")]

    wait_until(told, "the standby is down")


def test_a_warm_standby_survives_the_death_of_the_active_one(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    (first,) = children(server.process.pid)
    server.load("b", times, 2)
    (second,) = children(server.process.pid) - {first}
    os.kill(second, signal.SIGKILL)
    status, answer = server.load("a", times, 3)
    assert (status, answer["warm"]) == (200, True)
    assert server.infer()[1]["parameters"]["digest"] == digest("a")


def test_a_killed_front_leaves_no_worker_behind(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    server.load("b", times, 2)
    workers = children(server.process.pid)
    assert len(workers) == 2
    server.kill()
    wait_until(lambda: not any(alive(pid) for pid in workers), "the workers are gone", 5.0)


def test_a_restarted_server_knows_its_digest_and_its_epoch(server: Server, times: Path) -> None:
    server.load("a", times, 4)
    server.load("b", times, 5)
    server.kill()
    server.restart()
    wait_until(lambda: server.get("/v2/health/ready")[0] == 200, "ready again")
    assert server.active() == (digest("b"), 5)
    assert server.infer()[1]["parameters"]["digest"] == digest("b")
    assert server.load("a", times, 4, key="late")[0] == 409
    # The key of the last applied order is known as well, so a repeated order changes nothing.
    assert server.load("b", times, 5)[1] == {"digest": digest("b"), "epoch": 5, "warm": True}


def test_a_damaged_state_is_refused_not_forgotten(server: Server, times: Path) -> None:
    server.load("a", times, 4)
    server.kill()
    (server.home / "state" / "serving.json").write_text("{")
    words = ["--name", "m", "--service", "s", "--env", "e", "--port", str(server.port)]
    files = ["--log", str(server.log), "--state-dir", str(server.home / "state")]
    ended = subprocess.run(
        [sys.executable, "-m", "rearguard.serving", *words, *files], capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 65
    assert "serving_state_unreadable" in ended.stderr


def test_two_servers_do_not_share_a_state_folder(server: Server) -> None:
    words = ["--name", "m", "--service", "s", "--env", "e", "--port", "0"]
    files = ["--log", str(server.log), "--state-dir", str(server.home / "state")]
    ended = subprocess.run(
        [sys.executable, "-m", "rearguard.serving", *words, *files], capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 75
    assert "state_dir_locked" in ended.stderr


def test_a_stale_epoch_is_refused_and_names_the_highest(server: Server, times: Path) -> None:
    server.load("a", times, 7)
    status, answer = server.load("b", times, 6)
    assert (status, answer["epoch"]) == (409, 7)
    assert server.active() == (digest("a"), 7)


def test_a_failing_load_keeps_the_old_one_and_fences_older_orders(server: Server, times: Path, tmp_path: Path) -> None:
    server.load("a", times, 1)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"\x08\x07broken")
    status, answer = server.load("b", broken, 5)
    assert (status, answer["code"]) == (422, "model_unreadable")
    assert server.infer()[1]["parameters"]["digest"] == digest("a")
    assert server.load("c", times, 4)[0] == 409
    assert len(children(server.process.pid)) == 1


def test_a_warm_up_that_fails_keeps_the_old_one(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    status, _ = server.load("b", times, 2, warmup={"inputs": [{**TENSOR, "name": "Z"}]})
    assert status == 422
    assert server.active()[0] == digest("a")


def test_only_the_newest_standby_is_kept(server: Server, times: Path) -> None:
    for epoch, digit in enumerate("abc", 1):
        server.load(digit, times, epoch)
    assert server.get("/v2/models/m")[1]["versions"] == ["vc", "vb"]
    wait_until(lambda: len(children(server.process.pid)) == 2, "the oldest is gone")


def test_the_last_copy_that_answers_is_not_unloaded(server: Server, times: Path, tmp_path: Path) -> None:
    """The active one is dead and cannot be loaded again: what stands beside it is all that is left."""
    server.load("a", times, 1)
    (of_a,) = children(server.process.pid)
    gone = tmp_path / "gone"
    shutil.copytree(times, gone)
    server.load("b", gone, 2)
    (of_b,) = children(server.process.pid) - {of_a}
    shutil.rmtree(gone)
    os.kill(of_b, signal.SIGKILL)
    wait_until(lambda: server.infer()[0] == 503, "the active one is down")
    status, answer = server.call("POST", "/v2/repository/models/m/unload", {"parameters": {"version": "va"}})
    assert (status, answer["code"]) == (409, "last_healthy")
    assert alive(of_a)


def test_two_loads_at_once_are_applied_one_after_the_other(server: Server, times: Path) -> None:
    answers: list[int] = []

    def give(digit: str) -> None:
        answers.append(server.load(digit, times, 1, key=digit)[0])

    givers = [threading.Thread(target=give, args=(digit,)) for digit in "ab"]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join()
    assert answers == [200, 200]
    assert sorted(server.get("/v2/models/m")[1]["versions"]) == ["va", "vb"]


def test_the_protocols_paths_answer_in_its_words(server: Server, times: Path) -> None:
    assert server.get("/v2/models/m")[1]["parameters"]["digest"] is None
    assert server.get("/v2/health/ready") == (503, {"ready": False})
    assert server.infer()[0] == 503
    server.load("a", times, 1)
    server.load("b", times, 2)
    assert server.get("/v2")[1]["extensions"] == ["model_repository", "rearguard_standby"]
    assert server.get("/v2/models/m/ready")[0] == 200
    assert server.get("/v2/models/m/versions/va/ready")[0] == 200
    status, answer = server.call("POST", "/v2/models/m/versions/va/infer", {**ONES, "id": "q1"})
    # The sample multiplies by 1 to 6.
    assert (status, answer["id"], answer["model_version"]) == (200, "q1", "va")
    assert answer["parameters"] == {"digest": digest("a")}
    assert answer["outputs"] == [{"name": "Y", "shape": [3, 2], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]
    for method, path, expected in (
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/m/versions/vz", 404),
        ("POST", "/v2/models/m/versions/vz/infer", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("POST", "/v2/repository/models/m/unload", 409),
        ("POST", "/v2/repository/models/m/load", 400),
    ):
        status, answer = server.call(method, path, {})
        assert (status, bool(answer["error"])) == (expected, True), path
    assert server.call("POST", "/v2/repository/models/m/unload", {"parameters": {"version": "va"}})[0] == 200
    assert server.get("/v2/models/m")[1]["versions"] == ["vb"]


def test_a_wrong_tensor_is_400_and_carries_the_digest(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    status, answer = server.infer({"id": "q", "inputs": [{**TENSOR, "shape": [7]}]})
    assert (status, answer["id"], answer["parameters"]) == (400, "q", {"digest": digest("a")})


def test_a_failing_model_is_500_and_carries_the_digest(server: Server, tmp_path: Path) -> None:
    encoder = make_pipeline(OneHotEncoder(handle_unknown="error"), LogisticRegression())
    skops.io.dump(encoder.fit([["a"], ["b"]], [0, 1]), tmp_path / "model.skops")
    status, _ = server.load("a", tmp_path, 1, format="sklearn-skops")
    unseen = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": ["c"]}
    failed, answer = server.infer({"inputs": [unseen]})
    assert (status, failed, answer["parameters"]) == (200, 500, {"digest": digest("a")})
    assert "unknown categories" in answer["error"]


def test_the_request_log_has_one_line_a_request_in_its_order(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    before_ns = time.monotonic_ns()
    server.infer({**ONES, "id": "rearguard-probe-1-1"})
    server.infer({"inputs": []})
    after_ns = time.monotonic_ns()
    probe, mistake = server.lines()
    assert ",".join(probe) == "ts,mono_ns,boot_id,service,env,digest,version,status,latency_ms,id,probe"
    assert (probe["service"], probe["env"], probe["digest"], probe["version"]) == ("credit", "prod", digest("a"), "va")
    assert (probe["status"], probe["id"], probe["probe"]) == (200, "rearguard-probe-1-1", True)
    assert (mistake["status"], mistake["id"], mistake["probe"]) == (400, "", False)
    assert before_ns < probe["mono_ns"] < mistake["mono_ns"] < after_ns
    assert 0 < probe["latency_ms"] < (after_ns - before_ns) / 1e6
    assert probe["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_rotated_request_log_is_opened_anew(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    server.infer()
    server.log.rename(server.home / "requests.jsonl.1")

    def opened() -> bool:
        server.infer()
        return server.log.exists()

    wait_until(opened, "a new log", 3.0)


def test_a_log_that_cannot_be_written_breaks_no_answer(server: Server, times: Path) -> None:
    server.log.mkdir()
    server.load("a", times, 1)
    assert server.infer()[0] == 200
    assert server.get("/v2/health/live")[1] == {"live": True, "parameters": {"log_write_failures": 1}}


def test_a_kept_alive_client_never_waits_for_delayed_acknowledgements(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    began_at = time.monotonic()
    for _ in range(100):
        connection.request("POST", "/v2/models/m/infer", json.dumps(ONES))
        connection.getresponse().read()
    took_s = time.monotonic() - began_at
    connection.close()
    # With Nagle's algorithm on, 100 answers take 100 x 40 ms = 4 s; the goal is 200 a second.
    assert took_s < 2.0


def test_sigterm_answers_what_is_in_flight_and_exits_with_0(server: Server, times: Path) -> None:
    server.load("a", times, 1)
    (worker,) = children(server.process.pid)
    os.kill(worker, signal.SIGSTOP)  # the request below is in flight until the worker goes on
    statuses: list[int] = []
    client = threading.Thread(target=lambda: statuses.append(server.infer()[0]))
    client.start()
    time.sleep(0.2)
    server.process.terminate()
    time.sleep(0.2)
    os.kill(worker, signal.SIGCONT)
    client.join()
    assert server.process.wait(10) == 0
    assert statuses == [200]
    assert not alive(worker)
