"""`checkpoint add` and `verify` with each kind of proof, as a person and as a program meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest_cli import SERVICE, write_model
from safetensors.numpy import save_file


def rearguard(*words: str | Path, state: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *map(str, words), "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    save_file({"w": np.ones(3, dtype="<f4")}, tmp_path / "weights" / "model.safetensors")
    return tmp_path / "weights"


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)["error"]
    return found


def test_weights_need_no_golden_file(fresh: Path, weights: Path) -> None:
    done = rearguard("checkpoint", "add", weights, "--service", SERVICE, "--version", "v1", state=fresh)
    assert done.returncode == 0, done.stderr
    assert "loads agree to the last bit" in done.stdout
    verified = rearguard("checkpoint", "verify", "--json", state=fresh)
    assert [(row["ok"], row["reproducible"]) for row in json.loads(verified.stdout)] == [(True, "bitwise")]


def test_a_model_that_answers_needs_one_and_the_hint_shows_it(fresh: Path, tmp_path: Path) -> None:
    model, _ = write_model(tmp_path / "v1", "v1")
    done = rearguard("checkpoint", "add", model, "--service", SERVICE, "--version", "v1", "--json", state=fresh)
    assert (done.returncode, error_of(done)["code"]) == (64, "golden_required")
    assert error_of(done)["hint"].startswith("--golden FILE: one request a line")


def test_the_registry_export_of_weights_says_state_and_no_golden_set(fresh: Path, weights: Path) -> None:
    import jsonschema
    import yaml

    rearguard("checkpoint", "add", weights, "--service", SERVICE, "--version", "v1", state=fresh)
    document = yaml.safe_load((fresh / "checkpoint_registry.yaml").read_text())
    schema = Path(__file__).resolve().parents[2] / "docs" / "reference" / "checkpoint-registry.schema.json"
    jsonschema.validate(document, json.loads(schema.read_text()))
    (entry,) = document["checkpoints"]
    assert (entry["golden_sha256"], entry["reproducible"], len(entry["state_sha256"])) == (None, "bitwise", 64)


def test_weights_are_handed_over_and_their_state_is_compared(fresh: Path, weights: Path, tmp_path: Path) -> None:
    """An import that claims another state is registered, and fails its proof."""
    from conftest_cli import write_settings

    from rearguard.database import open_database

    rearguard("checkpoint", "add", weights, "--service", SERVICE, "--version", "v1", state=fresh)
    export = fresh / "checkpoint_registry.yaml"
    honest = export.read_text()
    state = next(line.split('"')[1] for line in honest.splitlines() if "state_sha256" in line)
    for name, text, code in (("honest", honest, 0), ("false", honest.replace(state, "0" * 64), 65)):
        other = write_settings(tmp_path / name)
        open_database(other).close()
        (tmp_path / f"{name}.yaml").write_text(text)
        done = rearguard(
            "registry", "import", tmp_path / f"{name}.yaml", "--blobs", fresh, "--yes", "--json", state=other
        )
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)["verified"][0]["code"] == ("state_differs" if code else "")
