"""`checkpoint verify`: what it says of bytes, rate and codes, and that `--quick` never makes a proof."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import SERVICE, Lived

from rearguard.interfaces.cli import main as cli_main
from rearguard.interfaces.cli.checkpoint import _bytes_s
from rearguard.model.checkpoint import Checkpoint
from rearguard.officer import checkpoints
from rearguard.officer.office import Office, open_office

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`rearguard WORDS` in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli_main.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def verify(run: Run, lived: Lived, *words: str) -> tuple[int, list[dict[str, Any]]]:
    code, out, _ = run("checkpoint", "verify", *words, "--state", lived.state, "--json")
    return code, json.loads(out)


def note_blob(lived: Lived, version: str) -> Path:
    """The file that no other version shares."""
    with open_office(lived.state) as office:
        found = checkpoints.find(office, service=SERVICE, version=version)
        return office.store.blobs / next(f.sha256 for f in found.files if f.path == "note.txt")


def spoil(lived: Lived, version: str) -> bytes:
    blob = note_blob(lived, version)
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(b"?" * len(content))
    blob.chmod(0o444)
    return content


def standing(run: Run, lived: Lived) -> dict[str, tuple[str, str | None]]:
    _, out, _ = run("checkpoint", "list", "--state", lived.state, "--json")
    return {
        row["checkpoint"]["version"]: (row["checkpoint"]["failure"], row["checkpoint"]["verified_at"])
        for row in json.loads(out)
    }


def test_it_says_how_many_bytes_were_hashed_and_how(run: Run, copy: Lived) -> None:
    code, rows = verify(run, copy)
    assert code == 0
    assert [(r["version"], r["ok"], r["code"], r["proof"], r["quick"], r["hash_mode"]) for r in rows] == [
        (version, True, "", "full_hash", False, "buffered") for version in ("v1", "v2")
    ]
    with open_office(copy.state) as office:
        sizes = [row.checkpoint.size_bytes for row in checkpoints.list_checkpoints(office)]
    assert [r["size_bytes"] for r in rows] == sizes
    assert all(isinstance(r["load_ms"], int) and isinstance(r["hash_ms"], int) for r in rows)


def test_the_rate_is_bytes_over_seconds() -> None:
    assert _bytes_s(3_000_000, 2_000_000_000) == 1_500_000
    assert _bytes_s(3_000_000, 0) is None


def test_quick_loads_nothing_and_renews_no_proof(run: Run, copy: Lived) -> None:
    before = standing(run, copy)
    code, rows = verify(run, copy, "--quick")
    assert (code, [(r["ok"], r["quick"], r["load_ms"]) for r in rows]) == (0, [(True, True, None)] * 2)
    assert standing(run, copy) == before


def test_quick_takes_a_proof_away_and_never_gives_it_back(run: Run, copy: Lived) -> None:
    content = spoil(copy, "v1")
    code, rows = verify(run, copy, "--quick", "--service", SERVICE, "--version", "v1")
    assert (code, rows[0]["ok"], rows[0]["code"], rows[0]["proof"], rows[0]["hash_ms"]) == (
        65,
        False,
        "blob_altered",
        "",
        None,
    )
    assert standing(run, copy)["v1"] == ("blob_altered", None)
    assert "never" not in run("checkpoint", "list", "--state", copy.state)[1]  # it had been verified
    blob = note_blob(copy, "v1")
    blob.chmod(0o644)
    blob.write_bytes(content)
    blob.chmod(0o444)
    assert verify(run, copy, "--quick")[0] == 0
    assert standing(run, copy)["v1"] == ("blob_altered", None)
    assert verify(run, copy)[0] == 0
    assert standing(run, copy)["v1"][0] == ""


def test_one_that_fails_is_told_and_the_others_are_verified(run: Run, copy: Lived) -> None:
    spoil(copy, "v1")
    code, rows = verify(run, copy)
    assert (code, {r["version"]: r["code"] for r in rows}) == (65, {"v1": "blob_altered", "v2": ""})


def test_one_that_fails_of_something_unexpected_takes_no_row_away(
    run: Run, copy: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = checkpoints.prove

    def crash(office: Office, item: Checkpoint, *more: Any) -> Any:
        if item.version == "v1":
            raise AttributeError("nobody expected this")
        return prove(office, item, *more)

    monkeypatch.setattr(checkpoints, "prove", crash)
    code, rows = verify(run, copy)
    assert code == 70
    assert [(r["version"], r["ok"], r["code"]) for r in rows] == [("v1", False, "internal"), ("v2", True, "")]


def test_people_read_the_result_of_each(run: Run, copy: Lived) -> None:
    spoil(copy, "v1")
    code, out, _ = run("checkpoint", "verify", "--state", copy.state)
    assert code == 65
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["SERVICE", "VERSION", "RESULT"],
        [SERVICE, "v1", "FAILED"],
        [SERVICE, "v2", "verified"],
    ]
    assert "note.txt is not what was registered" in out


def test_an_altered_view_is_told_once(run: Run, copy: Lived) -> None:
    with open_office(copy.state) as office:
        found = checkpoints.find(office, service=SERVICE, version="v1")
        view = office.store.view(found.digest, found.files)
    (view / "extra.bin").write_bytes(b"x")
    words = ("--service", SERVICE, "--version", "v1")
    answers = [verify(run, copy, *words) for _ in range(2)]
    assert [(code, rows[0]["code"]) for code, rows in answers] == [(65, "view_altered"), (0, "")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
def test_a_device_in_place_of_a_blob_does_not_hold_it(run: Run, copy: Lived) -> None:
    blob = note_blob(copy, "v1")
    shutil.move(blob, copy.state / "aside")
    os.mknod(blob, 0o020444, os.makedev(1, 5))
    code, rows = verify(run, copy, "--service", SERVICE, "--version", "v1")
    assert (code, rows[0]["code"]) == (65, "blob_unsafe")
