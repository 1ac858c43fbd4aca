"""`checkpoint push` and `pull` as a person calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_cli import SERVICE, Lived, write_settings


@pytest.fixture(autouse=True)
def program(require_part: Callable[[str, bool, str], None]) -> None:
    require_part("skopeo", shutil.which("skopeo") is not None, "apt-get install skopeo")


def rearguard(*words: object, state: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", "checkpoint", *map(str, words), "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_checkpoint_is_pushed_and_pulled_into_an_empty_state(copy: Lived, tmp_path: Path) -> None:
    away = write_settings(tmp_path / "away")
    reference = f"oci-archive:{tmp_path / 'v1.tar'}:v1"
    sent = rearguard("push", reference, "--service", SERVICE, "--version", "v1", "--json", state=copy.state)
    assert sent.returncode == 0, sent.stderr
    came = rearguard("pull", reference, "--service", SERVICE, "--json", state=away)
    assert came.returncode == 0, came.stderr
    pushed, pulled = json.loads(sent.stdout), json.loads(came.stdout)
    assert set(pushed) == {"service", "version", "digest", "manifest", "reference", "size_bytes"}
    assert (pulled["digest"], pulled["version"]) == (pushed["digest"], "v1")
    assert pulled["oci_manifest"] == pushed["manifest"]
    assert pulled["verified_at"] is not None


def test_push_prints_the_reference_and_the_digest_of_the_manifest(copy: Lived, tmp_path: Path) -> None:
    reference = f"dir:{tmp_path / 'out'}"
    done = rearguard("push", reference, "--service", SERVICE, "--version", "v1", state=copy.state)
    at, _, manifest = done.stdout.partition("  ")
    sent = json.loads(
        rearguard("push", reference, "--service", SERVICE, "--version", "v1", "--json", state=copy.state).stdout
    )
    assert (done.returncode, at, manifest) == (0, reference, f"{sent['manifest']}\n")


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (("push", "fraud:v1", "--service", SERVICE, "--version", "v1"), "reference_malformed", 64),
        (("push", "dir:/tmp/x", "--service", SERVICE, "--version", "v9"), "checkpoint_unknown", 64),
        (
            ("pull", "docker://registry.example.com/m:v1", "--service", SERVICE, "--plain-http"),
            "plain_http_refused",
            64,
        ),
        (("pull", "docker://127.0.0.1:1/m:v1", "--service", SERVICE, "--plain-http"), "registry_unavailable", 69),
        (("pull", "oci:/nonexistent:v1", "--service", SERVICE), "reference_unknown", 64),
    ],
)
def test_a_refusal_ends_with_its_code(copy: Lived, words: tuple[str, ...], code: str, status: int) -> None:
    done = rearguard(*words, "--json", state=copy.state)
    assert (json.loads(done.stdout)["error"]["code"], done.returncode) == (code, status)


def test_a_service_that_is_not_declared_is_not_pulled_for(copy: Lived) -> None:
    done = rearguard("pull", f"oci:{copy.state}:{SERVICE}/v1", "--service", "other", "--json", state=copy.state)
    assert (json.loads(done.stdout)["error"]["code"], done.returncode) == ("service_unknown", 64)
