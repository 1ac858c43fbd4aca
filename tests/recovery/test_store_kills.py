"""A process that takes in, exports or imports is killed at each of its fault points: nothing is lost, a re-run completes.

The points come from `faults.POINTS`, so none is left out. Beside the checkpoint that is on its way another one is
registered, which must never suffer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import pytest

from rearguard.checkpoints import collection, faults, layout, registry
from rearguard.config.templates import playbook_template
from rearguard.officer import checkpoints, registration
from rearguard.officer import registry as registries
from rearguard.officer.office import Office, open_office
from rearguard.rules import oci

MODEL = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
REQUEST = {"inputs": [{"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1, 1, 1, 1, 1, 1]}]}
SETTINGS = """\
version: 1
playbook: rollback_playbook.yaml
channels: {oncall: {kind: file, path: messages.jsonl}}
services:
  fraud:
    environments:
      prod:
        stateless: true
        target: {adapter: command, activate: ["true"], active: ["true"], probe: ["true"]}
        telemetry: {adapter: jsonl, requests: requests.jsonl}
        triggers: {latency: off, compliance: off}
"""
RequirePart = Callable[[str, bool, str], None]
OPERATIONS = ("ingest", "layout", "pull", "import", "export")
"""`gc` and `mirror` have tests of their own."""
OFTEN = {
    "ingest:in_copy",
    "ingest:blob_kept",
    "ingest:registered",
    "layout:before_index",
    "pull:blobs_kept",
    "import:before_register",
    "export:before_write",
}
"""Killed at by every `make test`; at the others by `make test-long`."""
POINTS = [f"{name}:{point}" for name in OPERATIONS for point in faults.POINTS[name]]


@dataclass(frozen=True)
class Made:
    """What is copied for each kill."""

    state: Path
    """Holds v1, proven."""
    other: Path
    """Another state, that holds v1 and v2."""
    v2: Path
    golden: Path


def settle(state: Path) -> Path:
    state.mkdir(parents=True)
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    return state


def model(folder: Path, note: str) -> Path:
    folder.mkdir()
    shutil.copy(MODEL, folder / "model.onnx")
    (folder / "note.txt").write_text(note, encoding="utf-8")
    (folder / "weights.bin").write_bytes(note.encode() * 300_000)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("kills")
    golden = folder / "golden.jsonl"
    golden.write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    v1, v2 = model(folder / "v1", "v1"), model(folder / "v2", "v2")
    state = settle(folder / "state")
    with open_office(state) as office:
        registration.add(office, v1, service="fraud", version="v1", golden_file=golden)
    other = folder / "other"
    shutil.copytree(state, other, symlinks=True)
    with open_office(other) as office:
        registration.add(office, v2, service="fraud", version="v2", golden_file=golden)
    return Made(state=state, other=other, v2=v2, golden=golden)


@pytest.fixture
def state(made: Made, tmp_path: Path) -> Path:
    shutil.copytree(made.state, tmp_path / "state", symlinks=True)
    return tmp_path / "state"


def words(operation: str, made: Made) -> list[str]:
    if operation == "pull":
        return ["checkpoint", "pull", f"oci:{made.other}:fraud/v2", "--service", "fraud"]
    if operation == "import":
        return ["registry", "import", str(made.other / "checkpoint_registry.yaml"), "--blobs", str(made.other), "--yes"]
    return ["checkpoint", "add", str(made.v2), "--service", "fraud", "--version", "v2", "--golden", str(made.golden)]


def run(command: list[str], state: Path, fault: str = "") -> subprocess.CompletedProcess[str]:
    variables = os.environ | ({faults.VARIABLE: fault} if fault else {})
    return subprocess.run(
        [sys.executable, "-m", "rearguard.interfaces.cli", *command, "--state", str(state)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def left_behind(state: Path) -> Iterator[Path]:
    """Temporary files and folders of any kind."""
    yield from state.glob(".*")
    for folder in (state / "blobs" / "sha256", state / "views", state / "incoming"):
        yield from folder.glob(".*")


def assert_sound(office: Office) -> None:
    """Each blob is what its name says, and everything that a registered checkpoint needs is there."""
    blobs = {p.name: p for p in office.store.blobs.iterdir() if not p.name.startswith(".")}
    assert {name for name, p in blobs.items() if hashlib.sha256(p.read_bytes()).hexdigest() != name} == set()
    with office.database.reading() as connection:
        assert collection.referenced(connection) <= blobs.keys()
        registered = {c.version for c in registry.list_all(connection)}
    index = json.loads((office.state / "index.json").read_bytes())
    refs = {m["annotations"][oci.REF_KEY] for m in index["manifests"]}
    assert refs <= {f"fraud/{version}" for version in registered}
    assert checkpoints.check_bytes(office, checkpoints.find(office, service="fraud", version="v1")).size_bytes > 0


@pytest.mark.parametrize(
    "fault", [pytest.param(point, marks=() if point in OFTEN else pytest.mark.long) for point in POINTS]
)
def test_a_store_whose_writer_was_killed_is_sound_and_a_rerun_completes(
    made: Made, state: Path, fault: str, require_part: RequirePart
) -> None:
    operation = fault.partition(":")[0]
    if operation == "pull":
        require_part("skopeo", shutil.which("skopeo") is not None, "apt-get install skopeo")
    died = run(words(operation, made), state, fault)
    assert died.returncode == -signal.SIGKILL, f"{fault} was not reached: {died.stderr}"
    copy = state.with_name("looked-at")
    shutil.copytree(state, copy, symlinks=True)  # looking publishes, which the re-run has to do by itself
    with open_office(copy) as office:
        assert_sound(office)

    again = run(words(operation, made), state)
    assert again.returncode == 0 or "checkpoint_exists" in again.stderr
    assert list(left_behind(state)) == []
    with open_office(state, write=False) as office:
        registries.verify(office)
        found = [checkpoints.find(office, service="fraud", version=version) for version in ("v1", "v2")]
        assert all(c.verified_at is not None and not c.failure and c.oci_manifest for c in found)
        assert layout.check(office.database, office.store, found, office.clock.sleep) == ()
    with open_office(state) as office:
        assert_sound(office)


def test_a_rerun_does_not_copy_again_what_was_kept(made: Made, state: Path) -> None:
    before = {p.name for p in (state / "blobs" / "sha256").iterdir()}
    died = run(words("ingest", made), state, "ingest:blob_kept")
    assert died.returncode == -signal.SIGKILL
    kept = {p.name: p.stat().st_ino for p in (state / "blobs" / "sha256").iterdir() if p.name not in before}
    assert len(kept) == 1
    assert run(words("ingest", made), state).returncode == 0
    assert {name: (state / "blobs" / "sha256" / name).stat().st_ino for name in kept} == kept


def test_two_processes_take_the_same_in_at_once(made: Made, state: Path) -> None:
    """One registers it, the other is told so, or completes it: never half of each."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "rearguard.interfaces.cli", *words("ingest", made), "--state", str(state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [p.communicate(timeout=100)[1] for p in started]
    assert 0 in [p.returncode for p in started]
    assert all(p.returncode == 0 or "checkpoint_exists" in text for p, text in zip(started, said, strict=True))
    assert list(left_behind(state)) == []
    with open_office(state) as office:
        assert_sound(office)


def test_every_point_of_these_operations_is_killed_at() -> None:
    assert set(POINTS) >= OFTEN
    assert set(faults.POINTS) - set(OPERATIONS) == {"mirror", "gc"}


def carriers(folder: Path) -> set[int]:
    """Processes of skopeo that work below `folder`."""
    found = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = command.read_bytes().split(b"\0")
            if words[0].endswith(b"skopeo") and any(os.fsencode(folder) in word for word in words):
                found.add(int(command.parent.name))
    return found


def test_a_pull_that_is_killed_while_it_fetches_takes_skopeo_with_it(
    made: Made, state: Path, tmp_path: Path, require_part: RequirePart
) -> None:
    """What it fetches never comes, so it cannot have ended by itself."""
    require_part("skopeo", shutil.which("skopeo") is not None, "apt-get install skopeo")
    stuck = tmp_path / "stuck"
    shutil.copytree(made.other, stuck, symlinks=True)
    weights = stuck / "blobs" / "sha256" / hashlib.sha256((made.v2 / "weights.bin").read_bytes()).hexdigest()
    weights.unlink()
    os.mkfifo(weights)
    command = ["checkpoint", "pull", f"oci:{stuck}:fraud/v2", "--service", "fraud", "--state", str(state)]
    process = subprocess.Popen([sys.executable, "-m", "rearguard.interfaces.cli", *command], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not any((state / "incoming").glob(".claimed-*/layout/*")):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert len(carriers(state)) == 1
    process.kill()
    process.wait()
    while carriers(state):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert list(left_behind(state)) != []
    assert run(words("pull", made), state).returncode == 0
    assert list(left_behind(state)) == []
