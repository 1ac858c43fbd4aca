"""`rearguard registry export | diff | import | verify`, as a person and as a program meet them."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest_cli import SERVICE, Lived

from rearguard.checkpoints.registry_file import render

NAME = "checkpoint_registry.yaml"


def rearguard(*words: str | Path, state: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *map(str, words), "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def told(*words: str | Path, state: Path) -> Any:
    done = rearguard(*words, "--json", state=state)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def exported(lived: Lived) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((lived.state / NAME).read_bytes())
    return document


def test_the_export_of_a_state_that_has_lived_verifies(copy: Lived) -> None:
    assert told("registry", "verify", state=copy.state)["checkpoints"] == 2


def test_an_edited_export_ends_with_65_and_an_export_mends_it(copy: Lived) -> None:
    path = copy.state / NAME
    before = path.read_bytes()
    path.write_bytes(before.replace(b"validated: true", b"validated: false", 1))
    done = rearguard("registry", "verify", "--json", state=copy.state)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (65, "registry_altered")
    assert told("registry", "export", state=copy.state)["checkpoints"] == 2
    assert path.read_bytes() == before


def test_our_own_export_is_nothing_to_import(copy: Lived) -> None:
    done = rearguard("registry", "diff", copy.state / NAME, state=copy.state)
    assert done.returncode == 0
    assert "2 checkpoints as registered" in done.stdout
    assert "nothing to import" in done.stdout


def test_a_state_is_handed_over_with_all_its_checkpoints(lived: Lived, fresh: Path) -> None:
    """On a new host: the import begins the state."""
    words = ("registry", "import", lived.state / NAME, "--blobs", lived.state, "--yes", "--by", "ops")
    done = told(*words, state=fresh)
    assert (done["added"], done["quarantined"]) == (2, 1)
    assert {(v["version"], v["ok"]) for v in done["verified"]} == {("v1", True), ("v2", True)}
    assert told("registry", "diff", lived.state / NAME, state=fresh)["unchanged"] == 2


def test_the_diff_of_a_handed_over_state_says_what_would_be_added(lived: Lived, fresh: Path) -> None:
    rearguard("doctor", state=fresh)
    found = told("registry", "diff", lived.state / NAME, "--blobs", lived.state, state=fresh)
    assert [row["version"] for row in found["added"]] == ["v1", "v2"]
    assert (len(found["quarantined"]), found["proofs_ignored"], found["refusals"]) == (1, 2, [])


def test_the_diff_names_each_refusal_and_ends_as_the_import_would(lived: Lived, fresh: Path) -> None:
    rearguard("doctor", state=fresh)
    done = rearguard("registry", "diff", lived.state / NAME, "--json", state=fresh)
    assert done.returncode == 65
    assert [row["code"] for row in json.loads(done.stdout)["refusals"]] == ["blob_missing"] * 2
    done = rearguard("registry", "import", lived.state / NAME, "--yes", "--json", state=fresh)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (65, "blob_missing")


def test_without_a_terminal_nobody_is_asked_and_nothing_is_imported(lived: Lived, fresh: Path) -> None:
    rearguard("doctor", state=fresh)
    done = rearguard("registry", "import", lived.state / NAME, "--blobs", lived.state, state=fresh)
    assert done.returncode == 64
    assert "--yes" in done.stderr
    assert told("checkpoint", "list", state=fresh) == []


@pytest.mark.parametrize(("answer", "code", "count"), [("n", 130, 0), ("y", 0, 2)])
def test_on_a_terminal_the_diff_is_shown_and_a_person_is_asked(
    lived: Lived, fresh: Path, answer: str, code: int, count: int
) -> None:
    rearguard("doctor", state=fresh)
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    words = ["registry", "import", str(lived.state / NAME), "--blobs", str(lived.state), "--state", str(fresh)]
    done = subprocess.run(
        [sys.executable, "-m", "rearguard.interfaces.cli", *words],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=120,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code, done.stderr
    assert "+ fraud v1" in done.stdout
    assert len(told("checkpoint", "list", state=fresh)) == count


def test_a_quarantine_that_is_missing_is_said_to_stay(copy: Lived, tmp_path: Path) -> None:
    document = exported(copy)
    assert len(document["quarantine"]) == 1
    document["quarantine"] = []
    (tmp_path / "edited.yaml").write_bytes(render(document))
    done = rearguard("registry", "import", tmp_path / "edited.yaml", "--yes", state=copy.state)
    assert done.returncode == 0
    assert "stays quarantined" in done.stdout
    assert "checkpoint release" in done.stdout
    assert exported(copy)["quarantine"] != []


def test_a_file_that_is_no_registry_names_line_and_key(copy: Lived, tmp_path: Path) -> None:
    path = tmp_path / "edited.yaml"
    text = (copy.state / NAME).read_text(encoding="utf-8")
    path.write_text(text.replace(f"  service: {SERVICE}\n", f"  servise: {SERVICE}\n", 1), encoding="utf-8")
    done = rearguard("registry", "diff", path, "--json", state=copy.state)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (78, "config_unknown_key")
    assert f"{path}:5: checkpoints.1.servise" in error["message"]


def test_a_proof_that_fails_ends_with_65_and_is_recorded(fresh: Path, tmp_path: Path) -> None:
    """The bytes are what the file says, and no model."""
    rearguard("doctor", state=fresh)
    recorded = b'{"answers":[[{"name":"Y"}]],"requests":[{"inputs":[{}]}]}'
    blobs = {hashlib.sha256(content).hexdigest(): content for content in (b"no model", recorded)}
    for name, content in blobs.items():
        (tmp_path / name).write_bytes(content)
    model, golden = blobs
    entry = {
        "service": SERVICE,
        "version": "v9",
        "format": "onnx",
        "files": [{"path": "model.onnx", "sha256": model, "size_bytes": 8}],
        "golden_sha256": golden,
    }
    files = [{"path": "model.onnx", "sha256": model, "size": 8}]
    address = json.dumps({"files": files, "format": "onnx", "golden": golden}, separators=(",", ":")).encode()
    entry = {"digest": f"sha256:{hashlib.sha256(address).hexdigest()}", **entry}
    document = {"format": "rearguard/checkpoint-registry/1", "checkpoints": [entry]}
    (tmp_path / "handed.yaml").write_bytes(render(document))
    done = rearguard("registry", "import", tmp_path / "handed.yaml", "--blobs", tmp_path, "--yes", state=fresh)
    assert done.returncode == 65
    assert "FAILED" in done.stdout
    assert [row["state"] for row in told("checkpoint", "list", state=fresh)] == ["failed"]
