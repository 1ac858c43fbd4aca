"""A rollback to weights that answer nothing: the target's word is t5, and only traffic can say that the service is healthy."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rearguard.config.templates import playbook_template
from rearguard.edge import SystemClock
from rearguard.evidence.log import read
from rearguard.model.run import Run, RunState
from rearguard.model.time import rfc3339
from rearguard.officer import deployments, registration, rollbacks
from rearguard.officer.office import Office, open_office

TARGET = '''
"""activate and active of a target that keeps its digest in a file; a probe would be a mistake and leaves a trace."""
import os, sys
from pathlib import Path
here = Path(__file__).parent
if sys.argv[1] == "activate":
    (here / "serving").write_text(os.environ["REARGUARD_DIGEST"])
elif sys.argv[1] == "active":
    print((here / "serving").read_text() if (here / "serving").exists() else "")
else:
    (here / "probed").touch()
'''
DEADLINE_S = 8


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    state = tmp_path / "state"
    state.mkdir()
    (state / "target.py").write_text(TARGET)
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
  fraud:
    environments:
      prod:
        stateless: true
        target: {{adapter: command, activate: {words["activate"]}, active: {words["active"]}, probe: {words["probe"]}}}
        telemetry: {{adapter: jsonl, requests: requests.jsonl}}
        triggers: {{latency: off, compliance: off}}
        recovery: {{window: 1 s, min_samples: 10, probe_every: 100 ms, min_probes: 3, deadline: {DEADLINE_S} s}}
"""
    )
    (state / "rollback_playbook.yaml").write_text(playbook_template())
    with open_office(state) as opened:
        for number, version in enumerate(("v1", "v2")):
            (tmp_path / version).mkdir()
            save_file({"w": np.full(3, number, dtype="<f4")}, tmp_path / version / "model.safetensors")
            registration.add(opened, tmp_path / version, service="fraud", version=version, golden_file=None)
            deployments.deploy(opened, service="fraud", env="prod", version=version, by="ops")
        yield opened


def traffic(office: Office, stop: threading.Event, status: int) -> None:
    """Fifty requests a second, answered by whatever the target serves."""
    clock, number = SystemClock(), 0
    with (office.state / "requests.jsonl").open("a", buffering=1) as log:
        while not stop.wait(0.02):
            now, number = clock.now(), number + 1
            line: dict[str, Any] = {
                "ts": rfc3339(now.wall_ns), "mono_ns": now.mono_ns, "boot_id": now.boot_id, "service": "fraud",
                "env": "prod", "digest": (office.state / "serving").read_text(), "version": "v", "status": status,
                "latency_ms": 1.0, "id": f"r-{number}", "probe": False,
            }  # fmt: skip
            log.write(json.dumps(line) + "\n")


def roll_back(office: Office, status: int | None) -> Run:
    """By hand, with traffic of this HTTP status beside it, or none."""
    stop = threading.Event()
    clients = threading.Thread(target=traffic, args=(office, stop, status or 0))
    if status is not None:
        clients.start()
    try:
        return rollbacks.run(office, service="fraud", env="prod", to=None, by="ops")
    finally:
        stop.set()
        if status is not None:
            clients.join()


def body_of(office: Office, kind: str) -> dict[str, Any]:
    with office.database.reading() as connection:
        return [record.body for record in read(connection) if record.kind == kind][-1]


def test_traffic_within_its_limits_proves_it(office: Office) -> None:
    run = roll_back(office, 200)
    assert run.state is RunState.SUCCEEDED
    assert body_of(office, "golden_answered")["golden_answered"] == 0
    assert body_of(office, "window_held")["judged_by"] == "traffic"


def test_without_traffic_nothing_is_proven(office: Office) -> None:
    """The target says that it serves the right digest, a hundred times; that says nothing of its answers."""
    run = roll_back(office, None)
    assert (run.state, run.reason) == (RunState.INCONCLUSIVE, "too_few_samples")


def test_traffic_beyond_its_limits_fails_it(office: Office) -> None:
    run = roll_back(office, 500)
    assert (run.state, run.reason) == (RunState.FAILED, "slo_still_breached")


def test_it_is_never_asked_a_request(office: Office) -> None:
    roll_back(office, 200)
    assert not (office.state / "probed").exists()
