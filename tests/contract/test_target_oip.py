"""The target `oip` keeps the port's promises against a real model server, and says what went wrong otherwise."""

from __future__ import annotations

import http.client
import http.server
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from rearguard.adapters.targets.oip import OipTarget, build
from rearguard.errors import ConfigError, DependencyError, RefusedError, TransientTargetError
from rearguard.model.service import Digest, Place
from rearguard.ports import Activation
from rearguard.testing.conformance import WarmTargetConformance

PLACE = Place(service="credit", env="prod")
SAMPLE = Path(onnxruntime.__file__).parent / "datasets" / "sigmoid.onnx"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def target_at(port: int) -> OipTarget:
    return build(PLACE, {"url": f"http://127.0.0.1:{port}", "model": "credit"})


def order(folder: Path, digit: str, **changes: Any) -> Activation:
    return Activation(
        **{
            "digest": Digest("sha256:" + digit * 64),
            "version": f"v{digit}",
            "format": "onnx",
            "path": str(folder),
            "trusted_types": (),
            "epoch": 1,
            "key": "k",
            "timeout_s": 30.0,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    shutil.copy(SAMPLE, path / "model.onnx")
    return path


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A model server of its own for this file."""
    home, number = tmp_path_factory.mktemp("server"), free_port()
    words = ["--name", "credit", "--service", "credit", "--env", "prod", "--port", str(number)]
    files = ["--log", str(home / "requests.jsonl"), "--state-dir", str(home / "state")]
    server = subprocess.Popen([sys.executable, "-m", "rearguard.serving", *words, *files], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", number, timeout=2)
            try:
                connection.request("GET", "/v2/health/live")
                connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.02)
            finally:
                connection.close()
        yield number
    finally:
        server.terminate()
        server.wait(10)


class TestOipTarget(WarmTargetConformance):
    @pytest.fixture
    def target(self, port: int) -> OipTarget:
        return target_at(port)

    @pytest.fixture
    def orders(self, folder: Path) -> tuple[Activation, Activation]:
        return order(folder, "a"), order(folder, "b")

    @pytest.fixture
    def golden(self) -> dict[str, Any]:
        return {"id": "", "inputs": [{"name": "x", "shape": [3, 4, 5], "datatype": "FP32", "data": [0] * 60}]}

    @pytest.fixture
    def dead_target(self) -> OipTarget:
        return target_at(free_port())

    def test_a_version_that_cannot_be_loaded_is_no_transient_failure(
        self, target: OipTarget, tmp_path: Path, orders: tuple[Activation, Activation]
    ) -> None:
        target.activate(self.issue(orders[0]))
        with pytest.raises(DependencyError) as refused:
            target.activate(self.issue(order(tmp_path, "c")))
        assert not isinstance(refused.value, TransientTargetError)
        assert refused.value.code == "target_refused"
        assert target.active() == orders[0].digest

    def test_a_standby_tells_its_memory(self, target: OipTarget, orders: tuple[Activation, Activation]) -> None:
        target.activate(self.issue(orders[0]))
        target.prepare(self.issue(orders[1]), None)
        (standby,) = target.standbys()
        assert standby.rss_bytes is not None
        assert standby.rss_bytes > 10 * 1024 * 1024  # less than an interpreter with a model can be

    def test_a_cold_switch_is_told_as_cold_and_its_repetition_too(
        self, target: OipTarget, orders: tuple[Activation, Activation], folder: Path
    ) -> None:
        target.activate(self.issue(orders[0]))
        cold = self.issue(order(folder, "e"))
        assert [told.warm for told in (target.activate(cold), target.activate(cold))] == [False, False]

    def test_a_standby_that_the_target_has_no_memory_for_is_refused_by_its_code(
        self, target: OipTarget, orders: tuple[Activation, Activation], folder: Path
    ) -> None:
        target.activate(self.issue(orders[0]))
        with pytest.raises(RefusedError) as refused:
            target.prepare(self.issue(order(folder, "d")), 2**50)
        assert refused.value.code == "standby_no_memory"

    def test_a_standby_that_cannot_be_loaded_is_no_transient_failure(
        self, target: OipTarget, orders: tuple[Activation, Activation], tmp_path: Path
    ) -> None:
        target.activate(self.issue(orders[0]))
        with pytest.raises(DependencyError) as refused:
            target.prepare(self.issue(order(tmp_path, "c")), None)
        assert refused.value.code == "target_refused"

    def test_a_request_that_the_model_refuses_is_no_transient_failure(
        self, target: OipTarget, orders: tuple[Activation, Activation]
    ) -> None:
        target.activate(self.issue(orders[0]))
        with pytest.raises(DependencyError) as refused:
            target.probe({"inputs": []}, 5.0)
        assert refused.value.code == "target_refused"


def test_nothing_is_active_before_the_first_load(tmp_path: Path) -> None:
    with answering(200, b'{"name": "credit", "parameters": {"digest": null}}') as number:
        assert target_at(number).active() is None


class answering:
    """A server on loopback that gives one fixed answer, as a foreign server might."""

    def __init__(self, status: int, body: bytes, delay: threading.Event | None = None) -> None:
        seen: list[tuple[str, bytes]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                seen.append((self.path, self.rfile.read(length)))
                if delay is not None:
                    delay.wait(10)
                    return
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.seen = seen
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_a_5xx_may_be_cured_by_the_next_try() -> None:
    with answering(503, b'{"error": "busy"}') as number, pytest.raises(TransientTargetError) as failed:
        target_at(number).probe({"inputs": []}, 2.0)
    assert failed.value.code == "target_failed"
    assert "busy" in failed.value.message


def test_a_server_that_accepts_and_never_answers_times_out() -> None:
    release = threading.Event()
    with answering(200, b"", release) as number:
        with pytest.raises(TransientTargetError) as failed:
            target_at(number).probe({"inputs": []}, 0.1)
        release.set()
    assert failed.value.code == "target_timeout"


def test_a_server_that_tells_no_digest_is_not_taken_for_an_empty_one() -> None:
    with answering(200, b'{"name": "credit"}') as number, pytest.raises(DependencyError) as refused:
        target_at(number).active()
    assert refused.value.code == "target_without_digest"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"error": "not found"}'),  # a server without the repository extension
        (200, b'[{"name": "credit", "version": "1", "state": "READY", "reason": ""}]'),  # Triton's index
    ],
)
def test_a_foreign_server_cannot_hold_a_standby(status: int, body: bytes) -> None:
    with answering(status, body) as number, pytest.raises(DependencyError) as refused:
        target_at(number).standbys()
    assert refused.value.code == "standby_unsupported"


def test_a_foreign_server_is_never_sent_a_load_that_it_would_take_for_an_order(folder: Path) -> None:
    server = answering(200, b'{"name": "triton", "extensions": ["model_repository"]}')
    with server as number, pytest.raises(DependencyError) as refused:
        target_at(number).prepare(order(folder, "a"), None)
    assert refused.value.code == "standby_unsupported"
    assert [path for path, _ in server.seen] == ["/v2"]


def test_a_foreign_server_is_never_sent_an_unload_that_would_mean_the_whole_model() -> None:
    server = answering(200, b'{"name": "triton", "extensions": ["model_repository"]}')
    with server as number, pytest.raises(DependencyError) as refused:
        target_at(number).unload(Digest("sha256:" + "a" * 64))
    assert refused.value.code == "standby_unsupported"
    assert [path for path, _ in server.seen] == ["/v2"]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"outputs": 1}',
        b'{"outputs": [], "id": "other"}',
        b'{"outputs": [], "parameters": {"digest": "x"}}',
    ],
)
def test_an_answer_that_is_no_v2_response_is_refused(body: bytes) -> None:
    with answering(200, body) as number, pytest.raises(DependencyError) as refused:
        target_at(number).probe({"inputs": []}, 2.0)
    assert refused.value.code == "target_bad_answer"


def test_a_probes_id_marks_it_for_telemetry() -> None:
    server = answering(200, b'{"outputs": []}')
    with server as number:
        target_at(number).probe({"id": "client", "inputs": []}, 2.0)
    ((path, body),) = server.seen
    assert path == "/v2/models/credit/infer"
    assert b'"id": "rearguard-probe-' in body


@pytest.mark.parametrize(
    ("options", "code", "key"),
    [
        ({"url": "http://h:1", "model": "m", "colour": "red"}, "unknown_option", "colour"),
        ({"model": "m"}, "missing_option", "url"),
        ({"url": "http://h:1"}, "missing_option", "model"),
        ({"url": "https://h:1", "model": "m"}, "bad_option", "url"),
        ({"url": "http://h:1/base", "model": "m"}, "bad_option", "url"),
        ({"url": "http://h:99999", "model": "m"}, "bad_option", "url"),
        ({"url": "h:1", "model": "m"}, "bad_option", "url"),
        ({"url": "http://h:1", "model": ""}, "bad_option", "model"),
        ({"url": "http://h:1", "model": "m", "timeout_s": 0}, "bad_option", "timeout_s"),
        ({"url": "http://h:1", "model": "m", "timeout_s": True}, "bad_option", "timeout_s"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], code: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(PLACE, options)
    assert (refused.value.code, refused.value.key) == (code, key)
