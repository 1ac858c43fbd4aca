"""What the engineer on call sees while a rollback is under way, and after it: real runs, real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE, Lived, write_model

from rearguard.edge import read_boot_id
from rearguard.engine.durable import step_history
from rearguard.model.time import rfc3339_ms
from rearguard.officer import checkpoints, deployments, registration
from rearguard.officer.office import open_office

STEPS = ["lock", "freeze", "select", "verify", "activate", "probe", "window", "record", "close"]
"""As the requirements order them."""
Start = Callable[..., "Process"]


class Process:
    """`rearguard WORDS` in a process of its own, with files for what it prints."""

    def __init__(self, folder: Path, *words: object) -> None:
        self.out, self.err = folder / f"{words[0]}.out", folder / f"{words[0]}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.handle = subprocess.Popen(
                [sys.executable, "-m", "rearguard.interfaces.cli", *map(str, words)], stdout=out, stderr=err
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of a watch that prints JSON."""
        lines = self.out.read_text(encoding="utf-8").splitlines(keepends=True)
        return [e for e in (json.loads(line) for line in lines if line.endswith("\n")) if e["event"] == name]

    def end(self) -> int:
        """SIGTERM; its exit code."""
        if self.handle.poll() is None:
            self.handle.terminate()
        return self.handle.wait(20)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start processes; they are ended with the test."""
    started: list[Process] = []

    def begin(*words: object) -> Process:
        started.append(Process(tmp_path, *words))
        return started[-1]

    yield begin
    for process in reversed(started):
        process.end()


def rearguard(*words: object) -> str:
    """Standard output of a command that ends by itself."""
    command = [sys.executable, "-m", "rearguard.interfaces.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def until(claim: Callable[[], Any], what: str) -> Any:
    """The first true answer."""
    end = time.monotonic() + 30
    while not (found := claim()):
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)
    return found


@pytest.fixture
def third(copy: Lived, tmp_path: Path) -> Lived:
    """v3 serves, v1 served before it, v2 is quarantined."""
    with open_office(copy.state) as office:
        model, golden = write_model(tmp_path / "v3", "v3")
        registration.add(office, model, service=SERVICE, version="v3", golden_file=golden)
        deployments.deploy(office, service=SERVICE, env=ENV, version="v3", by="ops")
    return copy


def told_steps(text: str) -> list[str]:
    """Steps in the order in which `rollback run` told them."""
    return re.findall(r"^run_\w+: (\w+) done \(\d+ ms\)$", text, re.MULTILINE)


def test_a_rollback_by_hand_without_an_officer_tells_each_step_and_status_shows_it(third: Lived, start: Start) -> None:
    run = start("rollback", "run", SERVICE, "--execute", "--state", third.state)
    pattern = r"v3 -> v1 .* run_\w+: window, \d+ s$"
    until(lambda: re.search(pattern, rearguard("status", "--state", third.state), re.MULTILINE), pattern)
    assert run.handle.wait(60) == 0
    assert told_steps(run.err.read_text()) == STEPS


def test_a_watched_rollback_is_seen_from_every_side(third: Lived, start: Start) -> None:
    watch = start("watch", "--json", "--state", third.state)
    until(lambda: watch.events("watch_started"), "the officer lives")
    run = start("rollback", "run", SERVICE, "--execute", "--state", third.state)

    def in_window() -> Any:
        (place,) = json.loads(rearguard("status", "--state", third.state, "--json"))["places"]
        return place if place["step"] == "window" else None

    place = until(in_window, "the window is under way")
    assert run.handle.wait(60) == 0
    finished = until(lambda: watch.events("run_finished"), "the end is told")
    assert watch.end() == 0

    assert (place["from_version"], place["to_version"]) == ("v3", "v1")
    assert 0 <= place["running_s"] < 30
    assert told_steps(run.err.read_text()) == STEPS
    assert [e["step"] for e in watch.events("step_done")] == STEPS
    (end,) = finished
    assert (end["run_id"], end["state"]) == (place["open_run"], "succeeded")
    records = json.loads(rearguard("runs", "show", end["run_id"], "--state", third.state, "--json"))["records"]
    (body,) = [r["body"] for r in records if r["kind"] == "rollback_finished"]
    assert end["rto_ms"] == body["rto_achieved_ms"] > 0


def test_a_place_without_a_target_has_no_proof_to_date(lived: Lived) -> None:
    line = rearguard("status", "--state", lived.state).splitlines()[2]
    assert re.split(r"  +", line) == [str(PLACE), "observe", "v1", "NONE", "-", "-", "-", "-"]


def test_a_closed_run_leaves_the_fields_of_a_run_empty(lived: Lived) -> None:
    (place,) = json.loads(rearguard("status", "--state", lived.state, "--json"))["places"]
    fields = ("open_run", "from_version", "to_version", "step", "running_s")
    assert [place[name] for name in fields] == [None] * 5


def test_runs_show_dates_each_step_that_stays_inside_as_the_engine_noted_it(lived: Lived) -> None:
    with open_office(lived.state, write=False) as office:
        noted = {n["function_name"]: n["started_at_epoch_ms"] for n in step_history(office.database, lived.run_id)}
    text = rearguard("runs", "show", lived.run_id, "--state", lived.state)
    shown = dict(re.findall(r"^(\w+) +done +\w+ +(\S+Z)  \d+ ms", text, re.MULTILINE))
    assert list(shown) == STEPS
    for step in ("lock", "freeze", "select", "record", "close"):
        assert shown[step] == rfc3339_ms(noted[f"{step}.effect"] * 1_000_000)


def test_runs_show_gives_attempts_and_key_of_a_step_that_touches_something_outside(lived: Lived) -> None:
    text = rearguard("runs", "show", lived.run_id, "--state", lived.state)
    (row,) = re.findall(r"^activate .* ms +(\S+) +(\S+) +(\S+)$", text, re.MULTILINE)
    assert row == ("1", f"{lived.run_id}:activate", "-")


def test_a_silent_target_that_fails_and_comes_back_is_told_once_each(copy: Lived, start: Start) -> None:
    settings = copy.state / "rearguard.yaml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(
        text.replace("        recovery:", "        no_data_after: 1 s\n        recovery:"), encoding="utf-8"
    )
    with open_office(copy.state) as office:
        v1 = checkpoints.find(office, service=SERVICE, version="v1").digest
    watch = start("watch", "--json", "--state", copy.state)
    until(lambda: watch.events("watch_started"), "the officer lives")
    request = {
        "ts": rfc3339_ms(time.time_ns()),
        "mono_ns": time.monotonic_ns(),
        "boot_id": read_boot_id(),
        "service": SERVICE,
        "env": ENV,
        "digest": v1,
        "version": "v1",
        "id": "1",
        "latency_ms": 1,
        "status": 200,
        "probe": False,
    }
    with (copy.state / "requests.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(request) + "\n")
    until(lambda: watch.events("digest_answers"), "traffic is seen")
    until(lambda: watch.events("telemetry_silent"), "silence")
    assert watch.events("target_unreachable") == []
    (copy.state / "down").touch()
    until(lambda: watch.events("target_unreachable"), "the outage is told")
    (copy.state / "down").unlink()
    until(lambda: watch.events("target_back"), "the return is told")
    assert watch.end() == 0
    assert [e["place"] for e in watch.events("target_unreachable")] == [str(PLACE)]
    assert [e["place"] for e in watch.events("target_back")] == [str(PLACE)]
