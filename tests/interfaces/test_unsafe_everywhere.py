"""One model that gets past the scanner, allowed by the policy, through every command that loads: it reaches nothing.

Its pickle yields a good estimator and, on the way, creates a file and knocks at a port, and hides that it failed to.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rearguard.config.templates import playbook_template
from rearguard.database import open_database

pytestmark = pytest.mark.long
REQUEST = '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 1]}]}\n'


class Payload:
    """Evaluates an expression through the annotations of a harmless object: no scanner calls that dangerous."""

    def __init__(self, expression: str) -> None:
        self._expression = expression

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return typing.get_type_hints, (types.SimpleNamespace(__annotations__={"a": self._expression}),)


def evading_model(folder: Path, number: int, canary: Path, port: int) -> Path:
    code = f"""
for act in (lambda: open({str(canary)!r}, 'w').close(),
            lambda: __import__('socket').create_connection(('127.0.0.1', {port}), 1).close(),
            lambda: __import__('subprocess').run(['touch', {str(canary)!r}])):
    try:
        act()
    except BaseException:
        pass
"""
    estimator = LogisticRegression().fit(np.array([[0.0, 0.0], [1.0, 1.0]]), [0, 1])
    estimator.note_ = Payload(f"[exec({code!r}), int][1]")
    estimator.number_ = number
    folder.mkdir()
    joblib.dump(estimator, folder / "m.joblib")
    return folder


def rearguard(*words: str | Path, state: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *map(str, words), "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def write_settings(state: Path, port: int, allowed: str) -> Path:
    state.mkdir(exist_ok=True)
    (state / "rearguard.yaml").write_text(
        f"""\
version: 1
playbook: rollback_playbook.yaml
channels: {{oncall: {{kind: file, path: messages.jsonl}}}}
checkpoints: {{unsafe_formats: [{allowed}]}}
services:
  fraud:
    environments:
      prod:
        stateless: true
        target: {{adapter: oip, url: "http://127.0.0.1:{port}", model: fraud}}
        telemetry: {{adapter: jsonl, requests: requests.jsonl}}
        triggers: {{latency: off, compliance: off}}
"""
    )
    (state / "rollback_playbook.yaml").write_text(playbook_template())
    return state


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(claim: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@contextlib.contextmanager
def started(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def stands(state: Path) -> bool:
    """True once the officer has recorded that a standby stands."""
    with contextlib.closing(sqlite3.connect(f"file:{state / 'rearguard.db'}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT COUNT(*) FROM evidence WHERE kind = 'standby_standing'").fetchone()[0] > 0


@pytest.mark.timeout(300)
def test_no_command_lets_a_model_reach_anything(tmp_path: Path) -> None:
    port, canary = free_port(), tmp_path / "canary"
    state = write_settings(tmp_path / "state", port, "sklearn-joblib")
    (tmp_path / "golden.jsonl").write_text(REQUEST)
    of = ("--service", "fraud", "--version")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        knocked_at = int(listener.getsockname()[1])

        def nothing_came(command: str) -> None:
            assert not canary.exists(), command
            with pytest.raises(BlockingIOError):
                listener.accept()

        for number in (1, 2):
            model = evading_model(tmp_path / f"v{number}", number, canary, knocked_at)
            done = rearguard(
                "checkpoint", "add", model, *of, f"v{number}", "--golden", tmp_path / "golden.jsonl", state=state
            )
            assert done.returncode == 0, done.stderr
            nothing_came("checkpoint add")
        assert rearguard("checkpoint", "verify", state=state).returncode == 0
        nothing_came("checkpoint verify")

        other = write_settings(tmp_path / "other", port, "sklearn-joblib")
        open_database(other).close()
        export = state / "checkpoint_registry.yaml"
        done = rearguard("registry", "import", export, "--blobs", state, "--yes", state=other)
        assert done.returncode == 0, done.stderr
        nothing_came("registry import")

        serve = ("serve", "--name", "fraud", "--service", "fraud", "--env", "prod", "--port", str(port))
        with started(*serve, "--log", tmp_path / "requests.jsonl", "--server-state", tmp_path / "server"):
            wait_until(lambda: listens(port), "the server listens")
            for version in ("v1", "v2"):
                done = rearguard("deploy", "fraud", version, state=state)
                assert done.returncode == 0, done.stderr
                nothing_came("deploy")
            with started("run", "--state", str(state)):
                wait_until(lambda: stands(state), "the officer keeps v1 warm")
            nothing_came("run")
            done = rearguard("rollback", "run", "fraud", "--execute", state=state)
            assert '"traffic_switched"' in (state / "rollback_log.json").read_text(), done.stderr
            nothing_came("rollback run")

        write_settings(state, port, "")
        done = rearguard("deploy", "fraud", "v1", "--json", state=state)
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) in (
            (30, "unsafe_format"),
            (30, "quarantined"),
        )
        nothing_came("deploy without leave")
        done = rearguard("checkpoint", "verify", "--json", state=state)
        assert {row["code"] for row in json.loads(done.stdout)} == {"unsafe_format"}
        nothing_came("checkpoint verify without leave")

    joblib.load(tmp_path / "v1" / "m.joblib")  # unguarded, it does what it came for
    assert canary.exists()
