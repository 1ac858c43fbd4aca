"""The target `command` keeps the port's promises with real commands, and ends those that hang."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rearguard.adapters.targets.command import CommandTarget, build
from rearguard.errors import ConfigError, DependencyError, RefusedError, TransientTargetError
from rearguard.model.service import Digest, Place
from rearguard.ports import Activation
from rearguard.testing.conformance import TargetConformance

PLACE = Place(service="credit", env="prod")

# A small serving system of an operator: its memory is a folder.
SCRIPT = """
import json, os, pathlib, sys
memory = pathlib.Path(sys.argv[2])
file = memory / "active.json"
seen = json.loads(file.read_text()) if file.exists() else {"epoch": 0, "digest": ""}
if sys.argv[1] == "activate":
    epoch = int(os.environ["REARGUARD_EPOCH"])
    if epoch < seen["epoch"]:
        sys.exit(3)
    told = {k[10:].lower(): v for k, v in os.environ.items() if k.startswith("REARGUARD_")}
    (memory / "new").write_text(json.dumps({**told, "epoch": epoch}))
    (memory / "new").replace(file)
elif sys.argv[1] == "active":
    print(seen["digest"])
else:
    request = json.load(sys.stdin)
    outputs = [{"name": "y", "shape": [1], "datatype": "FP64", "data": [0.5]}]
    print(json.dumps({"id": request["id"], "parameters": {"digest": seen["digest"]}, "outputs": outputs}))
"""


def python(code: str, *arguments: str) -> list[str]:
    # -I -S: without site-packages an interpreter starts in 10 ms
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def commands(memory: Path) -> dict[str, object]:
    return {name: python(SCRIPT, name, str(memory)) for name in ("activate", "active", "probe")}


def target_with(**changes: object) -> CommandTarget:
    nothing = python("")
    return build(PLACE, {"activate": nothing, "active": nothing, "probe": nothing, **changes})


def order(digit: str = "a", timeout_s: float = 10.0) -> Activation:
    return Activation(
        digest=Digest("sha256:" + digit * 64),
        version=f"v{digit}",
        format="onnx",
        path="/models/credit",
        trusted_types=(),
        epoch=7,
        key="run_1:activate",
        timeout_s=timeout_s,
    )


class TestCommandTarget(TargetConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> CommandTarget:
        return build(PLACE, commands(tmp_path))

    @pytest.fixture
    def orders(self) -> tuple[Activation, Activation]:
        return order("a"), order("b")

    @pytest.fixture
    def golden(self) -> dict[str, Any]:
        return {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}

    @pytest.fixture
    def dead_target(self) -> CommandTarget:
        dead = python("import sys; sys.exit('connection refused')")
        return target_with(activate=dead, active=dead, probe=dead)


def test_activate_gets_the_order_in_its_environment(tmp_path: Path) -> None:
    show = (
        "import os, pathlib, sys\n"
        "told = {k: v for k, v in sorted(os.environ.items()) if k.startswith('REARGUARD_')}\n"
        "pathlib.Path(sys.argv[1]).write_text(repr(told))\n"
    )
    target_with(activate=python(show, str(tmp_path / "seen"))).activate(order())
    assert (tmp_path / "seen").read_text() == repr(
        {
            "REARGUARD_DIGEST": "sha256:" + "a" * 64,
            "REARGUARD_ENV": "prod",
            "REARGUARD_EPOCH": "7",
            "REARGUARD_FORMAT": "onnx",
            "REARGUARD_KEY": "run_1:activate",
            "REARGUARD_PATH": "/models/credit",
            "REARGUARD_SERVICE": "credit",
            "REARGUARD_VERSION": "va",
        }
    )


def test_no_output_of_active_means_that_nothing_is_served() -> None:
    assert target_with().active() is None


def test_an_active_that_prints_something_else_is_refused() -> None:
    with pytest.raises(DependencyError) as refused:
        target_with(active=python("print('v3')")).active()
    assert refused.value.code == "target_bad_answer"
    assert not isinstance(refused.value, TransientTargetError)


def test_exit_code_3_of_activate_is_a_stale_epoch() -> None:
    with pytest.raises(RefusedError) as refused:
        target_with(activate=python("raise SystemExit(3)")).activate(order())
    assert refused.value.code == "target_epoch_stale"


def test_a_failure_brings_the_end_of_stderr() -> None:
    with pytest.raises(TransientTargetError) as failed:
        target_with(activate=python("import sys; sys.exit('x' * 5000 + ' no route')")).activate(order())
    assert failed.value.message.endswith("x no route")
    assert len(failed.value.message) < 600


def test_a_response_without_a_digest_is_an_answer() -> None:
    answer = target_with(probe=python("print('{\"outputs\": []}')")).probe({"inputs": []}, 10.0)
    assert answer.digest is None
    assert answer.response == {"outputs": []}


def test_a_probe_that_prints_no_json_is_refused() -> None:
    with pytest.raises(DependencyError) as refused:
        target_with(probe=python("print('ok')")).probe({"inputs": []}, 10.0)
    assert refused.value.code == "target_bad_answer"


def test_a_hanging_command_is_killed_with_the_processes_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    hang = (
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(TransientTargetError) as failed:
        target_with(activate=python(hang, str(note))).activate(order(timeout_s=1.0))
    assert failed.value.code == "target_timeout"
    deadline = time.monotonic() + 5
    while any(alive(int(pid)) for pid in note.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [pid for pid in note.read_text().split() if alive(int(pid))] == []


LEAVE_BEHIND = (
    "import subprocess, sys; "
    "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)']); "
    "open(sys.argv[1], 'w').write(str(child.pid))"
)


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[Path]:
    """Where a command writes the id of the process that it leaves in the background; ended with the test."""
    yield tmp_path / "pid"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_process_that_a_command_leaves_in_the_background_keeps_nobody_waiting(left_behind: Path) -> None:
    """It has inherited the standard output, as with `nohup srv &`."""
    target_with(activate=python(LEAVE_BEHIND, str(left_behind))).activate(order(timeout_s=5.0))


def test_a_process_that_a_command_leaves_in_the_background_lives_on(left_behind: Path) -> None:
    with contextlib.suppress(TransientTargetError):
        target_with(activate=python(LEAVE_BEHIND, str(left_behind))).activate(order(timeout_s=5.0))
    handle = os.pidfd_open(int(left_behind.read_text()))
    try:
        assert select.select([handle], [], [], 0.3)[0] == []  # readable once it has ended
    finally:
        os.close(handle)


def alive(pid: int) -> bool:
    """False also for a process that is dead and only waits for init to take note."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_a_command_is_never_given_to_a_shell(tmp_path: Path) -> None:
    marker = tmp_path / "made by a shell"
    echo = "import sys; sys.exit(sys.argv[1] != sys.argv[2] + sys.argv[3])"
    target_with(activate=python(echo, f"$(touch '{marker}')", "$(touch '", f"{marker}')")).activate(order())
    assert not marker.exists()


def test_a_program_that_is_not_there_is_no_transient_failure() -> None:
    with pytest.raises(DependencyError) as refused:
        target_with(active=["/nonexistent/program"]).active()
    assert refused.value.code == "command_not_runnable"
    assert not isinstance(refused.value, TransientTargetError)


def test_the_environment_of_the_officer_is_left_alone() -> None:
    before = dict(os.environ)
    target_with().activate(order())
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("changes", "code", "key"),
    [
        ({"colour": "red"}, "unknown_option", "colour"),
        ({"activate": "systemctl restart"}, "bad_option", "activate"),
        ({"activate": []}, "bad_option", "activate"),
        ({"active": ["x", 1]}, "bad_option", "active"),
        ({"timeout_s": -1}, "bad_option", "timeout_s"),
    ],
)
def test_a_wrong_option_is_named(changes: dict[str, object], code: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        target_with(**changes)
    assert (refused.value.code, refused.value.key) == (code, key)


def test_a_missing_command_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        build(PLACE, {"activate": ["x"], "active": ["x"]})
    assert (refused.value.code, refused.value.key) == ("missing_option", "probe")
