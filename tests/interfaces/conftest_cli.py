"""A state directory that has lived: two proven checkpoints, an incident, and a rollback that succeeded.

The model is a real one in ONNX; the target is three real commands, so that no server has to run. It is made once a
session; tests that write work on a copy.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import onnxruntime
import pytest

from rearguard.config.templates import playbook_template
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.service import Place
from rearguard.model.telemetry import SecondCounts
from rearguard.model.time import NS_PER_S
from rearguard.officer import deployments, incidents, registration, rollbacks
from rearguard.officer.incidents import Breach
from rearguard.officer.office import open_office

SERVICE, ENV = "fraud", "prod"
PLACE = Place(service=SERVICE, env=ENV)
MODEL = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
REQUEST = {"inputs": [{"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1, 1, 1, 1, 1, 1]}]}

TARGET = '''
"""activate, active and probe of a target that keeps its digest in a file; `down` beside it makes every command fail."""
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
if (here / "down").exists():
    sys.exit("down")
digest = here / "serving"
if sys.argv[1] == "activate":
    digest.write_text(os.environ["REARGUARD_DIGEST"])
elif sys.argv[1] == "active":
    print(digest.read_text() if digest.exists() else "")
else:
    data = [(n + 1) * x for n, x in enumerate(json.load(sys.stdin)["inputs"][0]["data"])]
    output = {"name": "Y", "shape": [3, 2], "datatype": "FP32", "data": data}
    print(json.dumps({"outputs": [output], "parameters": {"digest": digest.read_text()}}))
'''


@dataclass(frozen=True)
class Lived:
    """The state directory and what a test may want to name."""

    state: Path
    incident_id: str
    run_id: str


def write_settings(state: Path, *, deadline_s: int = 20) -> Path:
    """Settings, playbook and target beside each other; everything in it is relative to the folder."""
    state.mkdir(parents=True, exist_ok=True)
    (state / "target.py").write_text(TARGET, encoding="utf-8")
    words = {
        name: json.dumps([sys.executable, "-SE", str(state / "target.py"), name])
        for name in ("activate", "active", "probe")
    }
    (state / "rearguard.yaml").write_text(
        f"""\
version: 1
playbook: rollback_playbook.yaml
channels: {{oncall: {{kind: file, path: messages.jsonl}}}}
services:
  {SERVICE}:
    environments:
      {ENV}:
        stateless: true
        target: {{adapter: command, activate: {words["activate"]}, active: {words["active"]}, probe: {words["probe"]}}}
        telemetry: {{adapter: jsonl, requests: requests.jsonl}}
        triggers: {{latency: off, compliance: off}}
        recovery: {{window: 1 s, min_samples: 10, probe_every: 100 ms, min_probes: 3, deadline: {deadline_s} s}}
""",
        encoding="utf-8",
    )
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    return state


def write_model(folder: Path, note: str) -> tuple[Path, Path]:
    """A model folder of its own bytes, and a golden file."""
    folder.mkdir(parents=True)
    shutil.copy(MODEL, folder / "model.onnx")
    (folder / "note.txt").write_text(note, encoding="utf-8")
    golden = folder.with_suffix(".golden.jsonl")
    golden.write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    return folder, golden


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    """Read it, never change it."""
    folder = tmp_path_factory.mktemp("lived")
    state = write_settings(folder / "state")
    with open_office(state) as office:
        for version in ("v1", "v2"):
            model, golden = write_model(folder / version, version)
            registration.add(office, model, service=SERVICE, version=version, golden_file=golden)
            deployed = deployments.deploy(office, service=SERVICE, env=ENV, version=version, by="ops")
        now = office.clock.now()
        second = now.mono_ns // NS_PER_S
        judgement = Judgement(
            trigger=Trigger.ERRORS,
            digest=deployed.digest,
            outcome=Outcome.FAIL,
            reason="",
            window_start_s=second - 60,
            window_end_s=second,
            samples=200,
            exceedances=10,
            observed=Decimal("0.05"),
            limit=Decimal("0.01"),
            streak=2,
            first_bad_mono_ns=now.mono_ns - 60 * NS_PER_S,
        )
        counts = SecondCounts(
            second=second - 60, requests=200, failures=10, timed=200, over_latency=0, scores=0, score_sum=Decimal(0)
        )
        breach = Breach(
            place=PLACE,
            digest=deployed.digest,
            judgement=judgement,
            also=(),
            t0=now.plus(-60 * NS_PER_S),
            t1=now,
            telemetry=(counts,),
            p95_ms=None,
        )
        incident, _ = incidents.open_incident(office, breach)
        run = rollbacks.run(office, service=SERVICE, env=ENV, to=None, by="ops")
    return Lived(state=state, incident_id=incident.id, run_id=run.id)


@pytest.fixture
def copy(lived: Lived, tmp_path: Path) -> Lived:
    """A copy to change."""
    state = tmp_path / "state"
    shutil.copytree(lived.state, state, symlinks=True)
    write_settings(state)
    return Lived(state=state, incident_id=lived.incident_id, run_id=lived.run_id)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Settings, and nothing else yet."""
    return write_settings(tmp_path / "state")
