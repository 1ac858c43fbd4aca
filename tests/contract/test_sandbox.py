"""The sandbox keeps what it promises: each thing that code inside could try is denied by the kernel, or nothing is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

RequirePart = Callable[[str, bool, str], None]

PROGRAM = """
import ctypes, json, os, resource, socket, subprocess, sys, threading
from pathlib import Path
from rearguard.loaders import sandbox
folder, outside = Path(sys.argv[1]), sys.argv[2]
parent = os.getppid()
sandbox.enter([folder], sandbox.SandboxLimits(memory_bytes=2 << 30, cpu_s=20))
kernel = ctypes.CDLL(None, use_errno=True)
model = str(folder / "model")
def call(number, *arguments):
    if kernel.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "denied")
tries = {
    "write outside": lambda: open(outside + "/new", "w"),
    "write beside the model": lambda: open(str(folder / "new"), "w"),
    "write the model": lambda: open(model, "r+"),
    "read outside": lambda: open(outside + "/secret").read(),
    "list outside": lambda: os.listdir(outside),
    "make a folder": lambda: os.mkdir(outside + "/folder"),
    "remove": lambda: os.unlink(model),
    "rename": lambda: os.rename(model, model + "2"),
    "link": lambda: os.link(model, model + "2"),
    "symlink": lambda: os.symlink("a", model + "2"),
    "truncate": lambda: os.truncate(model, 0),
    "change the mode": lambda: os.chmod(model, 0o777),
    "change the times": lambda: os.utime(model),
    "an anonymous file": lambda: os.write(os.memfd_create("x"), b"x"),
    "a tcp socket": lambda: socket.socket(),
    "a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "fork": lambda: os.fork(),
    "a program": lambda: subprocess.Popen(["/bin/true"]),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "signal the parent": lambda: os.kill(parent, 0),
    "signal everybody": lambda: os.kill(-1, 0),
    "limits of the parent": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
    "environment of the parent": lambda: open(f"/proc/{parent}/environ", "rb").read(),
    "memory of the parent": lambda: open(f"/proc/{parent}/mem", "rb"),
    "a namespace": lambda: call(272 if os.uname().machine == "x86_64" else 97, 0x10000000),
    "outlive the parent": lambda: call(157 if os.uname().machine == "x86_64" else 167, 1, 0, 0, 0, 0),
    "io_uring": lambda: call(425, 1, 0),
    "more memory": lambda: bytearray(3 << 30),
    "more rights": lambda: os.setuid(0) if os.getuid() else (_ for _ in ()).throw(PermissionError()),
}
denied = {}
for name, act in tries.items():
    try:
        act()
        denied[name] = False
    except (OSError, MemoryError):
        denied[name] = True
allowed = {}
for name, act in {
    "read the model": lambda: open(model).read(),
    "a thread": lambda: threading.Thread(target=lambda: None).start(),
    "import": lambda: __import__("decimal"),
    "signal itself": lambda: os.kill(os.getpid(), 0),
}.items():
    try:
        act()
        allowed[name] = True
    except Exception as error:
        allowed[name] = repr(error)
print(json.dumps({"denied": denied, "allowed": allowed}))
"""


@pytest.fixture(scope="module", params=["as it is", "as nobody"])
def said(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What one process inside tried, and how each try ended."""
    with tempfile.TemporaryDirectory() as folder:  # not pytest's own, which nobody else may enter
        yield _try_all(Path(folder), request.param)


def _try_all(base: Path, who: str) -> dict[str, Any]:
    model, outside = base / "model", base / "outside"
    for folder in (model, outside):
        folder.mkdir()
    (model / "model").write_text("numbers")
    (outside / "secret").write_text("secret")
    command, source = [sys.executable], Path(__file__).resolve().parents[2] / "src"
    if who == "as nobody":
        python = shutil.which("python3", path="/usr/bin")
        if os.geteuid() != 0 or python is None or shutil.which("setpriv") is None:
            pytest.skip("only root can become nobody, and the system needs a Python that nobody may read")
        # Everything below is given to nobody, so that what is denied is not denied by its owner.
        shutil.copytree(source / "rearguard", base / "code" / "rearguard")
        for path in (base, *base.rglob("*")):
            os.chown(path, 65534, 65534)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python]
        source = base / "code"
    program = f"import sys; sys.path.insert(0, {str(source)!r})\n{PROGRAM}"
    ended = subprocess.run(
        [*command, "-c", program, str(model), str(outside)], capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def test_everything_that_reaches_outside_is_denied(said: dict[str, Any]) -> None:
    assert {name for name, denied in said["denied"].items() if not denied} == set()
    assert len(said["denied"]) == 30


def test_what_a_load_needs_is_allowed(said: dict[str, Any]) -> None:
    assert set(said["allowed"].values()) == {True}


class Slow:
    """Loading it takes longer than the test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (60,)


STARTER = """
import sys
from pathlib import Path
from rearguard.checkpoints.load_probe import cold_load
from rearguard.edge import SystemClock
from rearguard.model.checkpoint import CheckpointPolicy
policy = CheckpointPolicy(unsafe_formats=("sklearn-joblib",))
cold_load(folder=Path(sys.argv[1]), format="sklearn-joblib", requests=[], policy=policy, clock=SystemClock())
"""


def test_a_load_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    joblib.dump(Slow(), tmp_path / "m.joblib")
    with subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stderr=subprocess.PIPE) as starter:
        named = f"rearguard.loaders.probe\0{starter.pid}\0".encode()
        wait_for(lambda: any("Seccomp:\t2" in status for status in loading(named)))  # it is inside the sandbox
        starter.kill()
        starter.wait()
        wait_for(lambda: not loading(named))


def loading(named: bytes) -> list[str]:
    """`/proc/PID/status` of each process with this in its command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if named in (folder / "cmdline").read_bytes():
                found.append((folder / "status").read_text())
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_where_there_is_no_isolation_nothing_is_loaded(tmp_path: Path, require_part: RequirePart) -> None:
    """In a place that allows no more user namespaces, as many containers are."""
    able = subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True).returncode == 0
    require_part("a user namespace", able, "run the tests where `unshare --user` is allowed")
    joblib.dump(LogisticRegression().fit(np.eye(2), [0, 1]), tmp_path / "m.joblib")
    order = {
        "path": str(tmp_path),
        "format": "sklearn-joblib",
        "requests": [],
        "sandbox": {"memory_bytes": 4 << 30, "cpu_s": 60},
    }
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    probe = [sys.executable, "-P", "-m", "rearguard.loaders.probe"]
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", *probe],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(ended.stdout)["code"] == "sandbox_unavailable", ended.stderr
