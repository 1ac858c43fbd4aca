"""Where the way back is lost, every command names the same thing to do, and it helps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest_cli import ENV, PLACE, SERVICE, Lived, write_settings
from conftest_ready import error_of, rearguard
from safetensors.numpy import save_file

from rearguard.officer import checkpoints, deployments, mirroring
from rearguard.officer.office import open_office


@pytest.fixture
def broken(copy: Lived, tmp_path: Path) -> Path:
    """v2 serves, v1 is its way back and has a second copy; a byte of v1 in the store is wrong."""
    (tmp_path / "second").mkdir()
    file = write_settings(copy.state) / "rearguard.yaml"
    settings = file.read_text(encoding="utf-8")
    file.write_text(f"{settings}checkpoints: {{mirror: {tmp_path / 'second'}}}\n", encoding="utf-8")
    with open_office(copy.state) as office:
        checkpoints.release(office, service=SERVICE, version="v2", env=ENV, reason="mended", by="ops")
        deployments.deploy(office, service=SERVICE, env=ENV, version="v2", by="ops")
        mirroring.bring_in_step(office)
        v1 = checkpoints.find(office, service=SERVICE, version="v1")
        blob = office.store.blobs / next(f.sha256 for f in v1.files if f.path == "note.txt")
    size = blob.stat().st_size
    blob.chmod(0o644)
    blob.write_bytes(b"?" * size)
    blob.chmod(0o444)
    return copy.state


def hints(state: Path) -> dict[str, str]:
    """What to do about the way back, as each command says it."""
    at = ("--state", state, "--json")
    doctor: list[dict[str, Any]] = json.loads(rearguard("doctor", *at).stdout)
    gate = json.loads(rearguard("gate", SERVICE, *at).stdout)
    return {
        "doctor": next(c["hint"] for c in doctor if c["name"] == f"{PLACE} rollback target"),
        "gate": next(c["hint"] for c in gate["checks"] if c["name"] == "way back"),
        "plan": json.loads(rearguard("rollback", "plan", SERVICE, *at).stdout)["remedy"],
        "run": json.loads(rearguard("rollback", "run", SERVICE, "--execute", *at).stdout)["error"]["hint"],
    }


def test_a_second_copy_that_holds_is_what_every_command_points_to(broken: Path) -> None:
    repair = f"rearguard checkpoint repair --service {SERVICE} --version v1"
    done = rearguard("checkpoint", "verify", "--state", broken)
    assert (done.returncode, f"hint: {repair}\n" in done.stderr) == (65, True)
    assert set(hints(broken).values()) == {repair}
    gate = json.loads(rearguard("gate", SERVICE, "--deploy", "v1", "--state", broken, "--json").stdout)
    assert [c["hint"] for c in gate["checks"] if c["name"] == "proof"] == [repair]
    assert f"next: {repair}\n" in rearguard("rollback", "plan", SERVICE, "--state", broken).stdout
    assert rearguard(*repair.split()[1:], "--state", broken).returncode == 0
    assert rearguard("rollback", "plan", SERVICE, "--state", broken).returncode == 0


def test_without_a_second_copy_nothing_points_to_the_repair(broken: Path) -> None:
    write_settings(broken)
    done = rearguard("checkpoint", "verify", "--state", broken)
    assert (done.returncode, "hint:" in done.stderr) == (65, False)
    (said,) = set(hints(broken).values())
    assert f"rearguard checkpoint add PATH --service {SERVICE} --version v1" in said


def test_after_a_rollback_by_hand_no_hint_leads_in_a_circle(copy: Lived) -> None:
    """v1 serves, v2 is quarantined, and there is no third one."""
    (said,) = set(hints(copy.state).values())
    assert said.startswith("deploy a further version, or")
    assert f"rearguard checkpoint release --service {SERVICE} --version v2 --env {ENV} --reason" in said


def test_weights_alone_are_refused_before_anything_at_a_target_that_answers(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    save_file({"w": np.ones(3, dtype="<f4")}, tmp_path / "weights" / "model.safetensors")
    at = ("--state", fresh, "--json")
    file = fresh / "rearguard.yaml"
    oip = "target: {adapter: oip, url: 'http://127.0.0.1:9', model: fraud}"
    file.write_text(re.sub(r"target: \{adapter.*\}", oip, file.read_text(encoding="utf-8")), encoding="utf-8")
    named = ("--service", SERVICE, "--version", "w1", "--state", fresh)
    assert "targets of the kind `command`" in rearguard("checkpoint", "add", tmp_path / "weights", *named).stdout
    deploy = rearguard("deploy", SERVICE, "w1", *at)
    assert error_of(deploy) == (30, "format_answers_nothing")
    assert "`command`" in json.loads(deploy.stdout)["error"]["hint"]
    assert json.loads(rearguard("deployment", "list", *at).stdout) == []
    plan = rearguard("rollback", "plan", SERVICE, "--to", "w1", *at)
    assert (plan.returncode, json.loads(plan.stdout)["refusals"]) == (30, ["format_answers_nothing"])
    run = rearguard("rollback", "run", SERVICE, "--to", "w1", "--execute", *at)
    assert error_of(run) == (30, "format_answers_nothing")
