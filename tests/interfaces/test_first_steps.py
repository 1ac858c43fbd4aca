"""What a newcomer gets wrong on the first day, and what the product answers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import pytest
import skops.io
from conftest_cli import ENV, PLACE, SERVICE, write_model, write_settings
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rearguard.edge import SystemClock
from rearguard.errors import RearguardError
from rearguard.interfaces.cli import main as cli_main
from rearguard.model.time import NS_PER_S
from rearguard.officer import registration, setup
from rearguard.officer.office import open_office

SAMPLES = Path(onnxruntime.__file__).parent / "datasets"
GOOD = {"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1, 1, 1, 1, 1, 1]}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`rearguard WORDS` in this process, in an empty folder: exit code, standard output, standard error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("REARGUARD_STATE", raising=False)
    monkeypatch.delenv("REARGUARD_CONFIG", raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli_main.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def refused(state: Path, model: Path, *tensors: dict[str, Any] | None) -> tuple[RearguardError, str]:
    """The error of `checkpoint add` with one golden request a tensor (None: an empty line), and the file's name."""
    golden = model.with_suffix(".jsonl")
    lines = ["" if t is None else json.dumps({"inputs": [t]}) for t in tensors]
    golden.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with open_office(state) as office, pytest.raises(RearguardError) as caught:
        registration.add(office, model, service=SERVICE, version="v1", golden_file=golden)
    return caught.value, str(golden)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    """A model that wants `X`, three rows of two FP32."""
    return write_model(tmp_path / "model", "first")[0]


# --- checkpoint add: which request, and what to do


def test_a_wrong_input_name_names_the_line_and_the_name_to_set(fresh: Path, onnx: Path) -> None:
    error, golden = refused(fresh, onnx, GOOD | {"name": "x"})
    assert (error.code, error.message, error.hint) == (
        "bad_tensor",
        f"{golden}:1: inputs ['x'], the model needs ['X']",
        'set "name": "X"',
    )


def test_a_refused_request_is_named_by_its_line_in_the_file(fresh: Path, onnx: Path) -> None:
    """Empty lines count as lines, as in an editor."""
    error, golden = refused(fresh, onnx, GOOD, None, GOOD | {"name": "x"})
    assert error.message.startswith(f"{golden}:3: ")


def test_a_wrong_datatype_is_told_by_its_name_in_the_protocol(fresh: Path, onnx: Path) -> None:
    error, golden = refused(fresh, onnx, GOOD | {"datatype": "FP64"})
    assert (error.message, error.hint) == (
        f"{golden}:1: input 'X' is float64, the model needs tensor(float)",
        'use "datatype": "FP32"',
    )


def test_a_zipmap_output_is_told_how_to_convert_without(fresh: Path, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "logreg_iris.onnx", tmp_path / "iris.onnx")
    error, _ = refused(fresh, tmp_path / "iris.onnx", GOOD)
    assert (error.code, error.hint) == ("unsupported_model", 'convert with options={id(model): {"zipmap": False}}')


def test_a_number_of_columns_that_does_not_fit_is_told_the_shape(fresh: Path, tmp_path: Path) -> None:
    skops.io.dump(LinearRegression().fit([[0.0, 1.0], [1.0, 0.0]], [0.0, 1.0]), tmp_path / "m.skops")
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [1, 2, 3]}
    error, golden = refused(fresh, tmp_path / "m.skops", tensor)
    assert (error.message, error.hint) == (f"{golden}:1: 3 columns, the model needs 2", 'set "shape": [rows, 2]')


def test_a_pipeline_over_a_dataframe_is_told_to_use_arrays(fresh: Path, tmp_path: Path) -> None:
    """Columns by name, as a fit on a DataFrame leaves them; scikit-learn then says the same as after such a fit."""
    columns = ColumnTransformer([("scale", StandardScaler(), [0, 1])])
    pipeline = make_pipeline(columns, LinearRegression()).fit(np.eye(2), [0.0, 1.0])
    columns.transformers_ = [("scale", columns.transformers_[0][1], ["a", "b"])]
    skops.io.dump(pipeline, tmp_path / "m.skops")
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}
    error, golden = refused(fresh, tmp_path / "m.skops", tensor)
    assert (error.code, error.message.startswith(f"{golden}:1: ")) == ("model_failed", True)
    assert "fit it on arrays" in error.hint


def test_a_model_that_is_not_there_is_told_where_it_was_looked_for(run: Run, fresh: Path) -> None:
    words = ("--service", SERVICE, "--version", "v1", "--golden", "g.jsonl", "--state", fresh)
    code, _, err = run("checkpoint", "add", "nope.onnx", *words)
    assert code == 64
    assert f"hint: name the model file, or the folder that holds it; the current folder is {Path.cwd()}\n" in err


def test_a_misspelt_service_is_answered_with_those_declared(run: Run, fresh: Path) -> None:
    words = ("--service", "fruad", "--version", "v1", "--golden", "g.jsonl", "--state", fresh)
    code, _, err = run("checkpoint", "add", "m.onnx", *words)
    assert code == 64
    assert f"declared: {SERVICE} [service_unknown]\nhint: --service {SERVICE}\n" in err


# --- doctor


class NotFound(BaseHTTPRequestHandler):
    """A web server that knows no model."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def checks(state: Path) -> dict[str, setup.Check]:
    with open_office(state) as office:
        return {check.name: check for check in setup.doctor(office)}


def oip(state: Path, port: int, telemetry: str = "", compliance: str = "off") -> Path:
    """Settings whose target speaks HTTP."""
    write_settings(state)
    path = state / "rearguard.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = {
        "target:": f'target: {{adapter: oip, url: "http://127.0.0.1:{port}", model: fraud-m}}',
        "telemetry:": f"telemetry: {{adapter: jsonl, requests: requests.jsonl{telemetry}}}",
        "triggers:": f"triggers: {{latency: off, compliance: {compliance}}}",
    }
    for number, line in enumerate(lines):
        key = line.split()[0] if line.split() else ""
        if key in changed:
            lines[number] = " " * 8 + changed[key]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return state


def test_doctor_tells_how_to_start_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as held:  # bound and not listening: a connection is refused, and nobody else gets the port
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        check = checks(oip(tmp_path / "state", port))[f"{PLACE} target"]
    assert check.outcome.value == "fail"
    assert check.hint == f"start it: `rearguard serve --name fraud-m --port {port}`, or fix target.url"


def test_deploy_tells_how_to_start_a_server_that_is_not_there(run: Run, tmp_path: Path, onnx: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        state = oip(tmp_path / "state", port)
        words = ("--service", SERVICE, "--version", "v1", "--golden", onnx.with_suffix(".golden.jsonl"))
        assert run("checkpoint", "add", onnx, *words, "--state", state)[0] == 0
        code, _, err = run("deploy", SERVICE, "v1", "--state", state)
    assert code == 69
    assert f"hint: start it: `rearguard serve --name fraud-m --port {port}`, or fix target.url\n" in err


def test_doctor_tells_a_server_that_does_not_know_the_model(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        check = checks(oip(tmp_path / "state", server.server_address[1]))[f"{PLACE} target"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (check.outcome.value, check.hint) == ("fail", "another server answers on this port, or fix target.model")


COMPLIANCE = "{drop_points: 2, baseline: measured, period: 10 min}"


def test_doctor_says_that_compliance_without_a_score_log_stays_inconclusive(tmp_path: Path) -> None:
    check = checks(oip(tmp_path / "state", 9, compliance=COMPLIANCE))[f"{PLACE} compliance"]
    assert check.outcome.value == "inconclusive"
    assert check.message == "compliance is on, no score log is named: it stays inconclusive"


@pytest.mark.parametrize(("telemetry", "compliance"), [("", "off"), (", scores: scores.jsonl", COMPLIANCE)])
def test_doctor_says_nothing_of_compliance_that_is_off_or_fed(tmp_path: Path, telemetry: str, compliance: str) -> None:
    found = checks(oip(tmp_path / "state", 9, telemetry=telemetry, compliance=compliance))
    assert f"{PLACE} compliance" not in found


def request_line(ahead_s: int, digest: str) -> str:
    now = SystemClock().now()
    line = {
        "ts": now.rfc3339_ms(),
        "mono_ns": now.mono_ns + ahead_s * NS_PER_S,
        "boot_id": now.boot_id,
        "service": SERVICE,
        "env": ENV,
        "digest": digest,
        "version": "v1",
        "status": 200,
        "latency_ms": 1.5,
        "id": "r1",
        "probe": False,
    }
    return json.dumps(line) + "\n"


def test_doctor_never_calls_an_observation_younger_than_now(fresh: Path) -> None:
    """30 s ahead is within what telemetry accepts."""
    (fresh / "requests.jsonl").write_text(request_line(30, "sha256:" + "0" * 64), encoding="utf-8")
    message = checks(fresh)[f"{PLACE} telemetry"].message
    assert message == "1 observations, newest 0 s old, 0 lines rejected"


def test_doctor_does_not_hold_answers_of_an_empty_server_against_the_log(fresh: Path) -> None:
    lines = request_line(0, "") + request_line(0, "sha256:" + "0" * 64)
    (fresh / "requests.jsonl").write_text(lines, encoding="utf-8")
    message = checks(fresh)[f"{PLACE} telemetry"].message
    assert (message.split(",")[0], message.split(", ")[-1]) == ("1 observations", "0 lines rejected")


# --- before anything is recorded


@pytest.mark.parametrize("words", [("report", "render"), ("status",)], ids=" ".join)
def test_a_report_of_nothing_says_what_begins_the_record(run: Run, fresh: Path, words: tuple[str, ...]) -> None:
    _, out, _ = run(*words, "--state", fresh, "--json")
    error = json.loads(out)["error"]
    assert error["code"] == "state_absent"
    assert error["hint"] == (
        "nothing is recorded yet: `rearguard checkpoint add` or `rearguard watch` creates it; "
        "or name the folder with --state"
    )


# --- words


def test_a_port_that_is_none_is_a_usage_error(run: Run) -> None:
    code, _, err = run("serve", "--name", "m", "--port", "80800")
    assert code == 64
    assert "80800 is not in the range" in err


@pytest.mark.parametrize(
    ("words", "meant"), [(("checkpiont",), "checkpoint"), (("doctr",), "doctor"), (("checkpoint", "ad"), "add")]
)
def test_a_misspelt_command_is_answered_with_the_nearest(run: Run, words: tuple[str, ...], meant: str) -> None:
    code, _, err = run(*words)
    assert (code, f"Did you mean {meant!r}?" in err) == (64, True)


def test_an_unknown_command_that_is_near_to_none_is_a_usage_error(run: Run) -> None:
    code, _, err = run("xyzzy")
    assert (code, "No such command 'xyzzy'" in err, "Did you mean" in err) == (64, True, False)


@pytest.mark.parametrize("words", [(), ("checkpoint",), ("report",)], ids=lambda words: " ".join(words) or "none")
def test_a_group_without_its_command_shows_its_help_and_no_error(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (64, "")
    assert err.startswith(f"Usage: {' '.join(('rearguard', *words))} ")
    assert "[usage]" not in err
    assert "hint:" not in err


STOPPED_DEMO = """
import sys
from pathlib import Path
from rearguard.demo import run
from rearguard.interfaces.cli.main import main
import os, signal, threading
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
main(["demo", "--json", "--state", sys.argv[1]])
"""


def test_a_demo_that_is_interrupted_says_where_its_folder_stays(tmp_path: Path) -> None:
    """Within its first second it is still training."""
    state = tmp_path / "demo"
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_DEMO, str(state)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr.strip().splitlines()) == (
        130,
        ["interrupted", f"the demo's folder stays: {state}"],
    )


def test_click_names_help_of_a_group_as_we_catch_it() -> None:
    """The class is click's since 8.2; without it a group would be an error again."""
    assert issubclass(click.exceptions.NoArgsIsHelpError, click.UsageError)
