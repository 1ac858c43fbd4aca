"""What the model server does with weights alone, and with a format that runs code when it is loaded."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from test_model_server import SAMPLES, Server, children, digest

from malicious import shapes


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.process.terminate()
    started.process.wait(10)


@pytest.fixture
def times(tmp_path: Path) -> Path:
    (tmp_path / "times").mkdir()
    shutil.copy(SAMPLES / "mul_1.onnx", tmp_path / "times" / "model.onnx")
    return tmp_path / "times"


def joblib_folder(folder: Path) -> Path:
    folder.mkdir()
    estimator = LogisticRegression().fit(np.array([[0.0, 0.0], [1.0, 1.0]]), [0, 1])
    joblib.dump(estimator, folder / "m.joblib")
    return folder


ROW = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 1]}]}


def test_weights_alone_are_refused_and_what_serves_stays(server: Server, times: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "m.safetensors").write_bytes(bytes.fromhex("0200000000000000") + b"{}")
    assert server.load("1", times, 1)[0] == 200
    status, answer = server.load("2", tmp_path / "weights", 2, format="safetensors")
    assert (status, answer["code"]) == (422, "format_answers_nothing")
    assert server.active()[0] == digest("1")


def test_a_format_that_runs_code_is_refused_without_an_order_for_the_sandbox(server: Server, tmp_path: Path) -> None:
    status, answer = server.load("1", joblib_folder(tmp_path / "j"), 1, format="sklearn-joblib")
    assert (status, answer["code"]) == (422, "unsafe_format")


def test_a_format_that_runs_code_serves_from_the_sandbox(server: Server, tmp_path: Path) -> None:
    order = {"format": "sklearn-joblib", "sandbox_memory_bytes": 4 << 30}
    assert server.load("1", joblib_folder(tmp_path / "j"), 1, **order)[0] == 200
    status, answer = server.infer(ROW)
    assert (status, answer["outputs"][0]["data"]) == (200, [1])
    for worker in children(server.process.pid):
        status_lines = Path(f"/proc/{worker}/status").read_text()
        assert "Seccomp:\t2" in status_lines
        assert os.readlink(f"/proc/{worker}/ns/net") != os.readlink("/proc/self/ns/net")


def test_a_payload_in_a_served_model_reaches_nothing(server: Server, tmp_path: Path) -> None:
    """Past the officer and its scanner, straight at the server: it runs, and nothing comes of it."""
    canaries = tmp_path / "canaries"
    canaries.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for epoch, shape in enumerate(shapes(canaries, listener.getsockname()[1])[6:10], 1):
            folder = tmp_path / shape.name
            folder.mkdir()
            (folder / "m.joblib").write_bytes(shape.content)
            status, _ = server.load("1", folder, epoch, format="sklearn-joblib", sandbox_memory_bytes=4 << 30)
            assert status == 422
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert list(canaries.iterdir()) == []
