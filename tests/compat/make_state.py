"""Makes the state directories of this folder: a rollback that was killed at a fault point under a given release.

    PYTHONPATH=TREE/src python tests/compat/make_state.py FOLDER

`TREE` is the source tree of the release that shall have written them. Into FOLDER comes one `killed-STEP-POINT.tar.xz` for
each of `POINTS`: the state directory as the process left it when SIGKILL ended it, with write-ahead log, engine rows,
open messages and the file in which the target keeps what it serves. Settings, playbook and views are left out: they hold
absolute paths, and `write_settings` writes them anew wherever an archive is unpacked.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from decimal import Decimal
from pathlib import Path

SERVICE, ENV = "fraud", "prod"
POINTS = ("select:after_record", "activate:after_effect", "window:after_effect")
"""Before traffic moves; after it has moved and before that is recorded; before the proof of it is recorded."""
LEFT_OUT = {"rearguard.yaml", "rollback_playbook.yaml", "target.py", "messages.jsonl", "views", "officer.lock"}
REQUEST = {"inputs": [{"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1, 1, 1, 1, 1, 1]}]}

TARGET = '''
"""activate, active and probe of a target that keeps its digest in a file, and a line for each order in another."""
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
digest = here / "serving"
if sys.argv[1] == "activate":
    digest.write_text(os.environ["REARGUARD_DIGEST"])
    with (here / "orders.jsonl").open("a") as orders:
        orders.write(json.dumps({name: os.environ["REARGUARD_" + name] for name in ("DIGEST", "KEY", "EPOCH")}) + "\\n")
elif sys.argv[1] == "active":
    print(digest.read_text() if digest.exists() else "")
else:
    data = [(n + 1) * x for n, x in enumerate(json.load(sys.stdin)["inputs"][0]["data"])]
    output = {"name": "Y", "shape": [3, 2], "datatype": "FP32", "data": data}
    print(json.dumps({"outputs": [output], "parameters": {"digest": digest.read_text()}}))
'''


def write_settings(state: Path) -> None:
    """Settings, playbook and target beside each other, as they have to be on this machine."""
    from rearguard.config.templates import playbook_template

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
        recovery: {{window: 1 s, min_samples: 10, probe_every: 100 ms, min_probes: 3, deadline: 120 s}}
""",
        encoding="utf-8",
    )
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")


def live(state: Path, models: Path) -> None:
    """Two proven checkpoints that served, and an open incident about the second."""
    import onnxruntime

    from rearguard.model.breach import Judgement, Trigger
    from rearguard.model.outcome import Outcome
    from rearguard.model.service import Place
    from rearguard.model.telemetry import SecondCounts
    from rearguard.model.time import NS_PER_S
    from rearguard.officer import deployments, incidents, registration
    from rearguard.officer.office import open_office

    bytes_of_model = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
    with open_office(state) as office:
        for version in ("v1", "v2"):
            folder = models / version
            folder.mkdir(parents=True)
            shutil.copy(bytes_of_model, folder / "model.onnx")
            (folder / "note.txt").write_text(version, encoding="utf-8")
            golden = folder.with_suffix(".golden.jsonl")
            golden.write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
            registration.add(office, folder, service=SERVICE, version=version, golden_file=golden)
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
        breach = incidents.Breach(
            place=Place(service=SERVICE, env=ENV),
            digest=deployed.digest,
            judgement=judgement,
            also=(),
            t0=now.plus(-60 * NS_PER_S),
            t1=now,
            telemetry=(counts,),
            p95_ms=None,
        )
        incidents.open_incident(office, breach)


def kill_a_rollback(state: Path, point: str) -> None:
    """Roll back in a process that kills itself at a fault point."""
    words = ["rollback", "run", SERVICE, "--env", ENV, "--by", "ops", "--execute", "--state", str(state)]
    environment = {**os.environ, "REARGUARD_FAULT": point}
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != -signal.SIGKILL:
        raise SystemExit(f"the process did not die at {point}: {done.returncode}\n{done.stdout}{done.stderr}")


def pack(state: Path, archive: Path) -> None:
    """All files of a state directory but those that hold paths or belong to a process."""

    def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(member.name).parts
        if set(parts) & LEFT_OUT or parts[-1].endswith("-shm") or "__pycache__" in parts:
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:xz", preset=9) as packed:
        packed.add(state, arcname="state", filter=without_owner)


def main() -> None:
    """Write the archives into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for point in POINTS:
        with tempfile.TemporaryDirectory() as work:
            state = Path(work) / "state"
            state.mkdir()
            write_settings(state)
            live(state, Path(work) / "models")
            kill_a_rollback(state, point)
            archive = folder / f"killed-{point.replace(':', '-').replace('_', '-')}.tar.xz"
            pack(state, archive)
            sys.stdout.write(f"{archive.name} {archive.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
