"""The second copy beside a living officer: kept in step by itself, and never between a breach and its end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from stage import Server, Stage, Watcher, wait_until
from test_daemon import ask, in_office, start

from rearguard.model.run import RunState

SetStage = Callable[..., Stage]


def declare(stage: Stage, folder: Path) -> Path:
    """`folder` as the second copy."""
    folder.mkdir()
    settings = stage.state / "rearguard.yaml"
    text = settings.read_text(encoding="utf-8")
    assert text.count("checkpoints: {") == 1
    settings.write_text(text.replace("checkpoints: {", f"checkpoints: {{mirror: {folder}, "), encoding="utf-8")
    return folder


def metric(daemon: Watcher, name: str) -> float | None:
    """Value of a metric, its labels as written."""
    lines = ask(daemon, "/metrics")[1].decode("utf-8").splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name), None)


def test_an_officer_keeps_a_second_copy_by_itself(server: Server, set_stage: SetStage, tmp_path: Path) -> None:
    stage = set_stage(server)
    folder = declare(stage, tmp_path / "second")
    daemon = in_office(start(stage))
    wait_until(lambda: metric(daemon, "rearguard_mirror_behind") == 0, "everything is copied")
    assert metric(daemon, "rearguard_store_freeable_bytes") is not None
    assert daemon.end() == 0
    store = stage.state / "blobs" / "sha256"
    assert {p.name for p in (folder / "blobs" / "sha256").iterdir()} == {p.name for p in store.iterdir()}
    assert json.loads(stage.cli("checkpoint", "mirror", "--json").stdout)["behind"] == []


def test_a_second_copy_that_hangs_keeps_no_rollback_from_its_end(
    server: Server, set_stage: SetStage, tmp_path: Path
) -> None:
    """A pipe that nobody writes to, in place of its marker, hangs whoever opens it: as a disk that does not answer."""
    stage = set_stage(server)
    os.mkfifo(declare(stage, tmp_path / "second") / "rearguard-mirror.json")
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    stage.send_traffic()
    daemon = in_office(start(stage))
    assert stage.wait_for_end().state is RunState.SUCCEEDED
    assert ask(daemon, "/healthz")[0] == 200
    assert metric(daemon, "rearguard_mirror_behind") == 2
    assert daemon.end() == 0
