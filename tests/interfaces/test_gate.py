"""The gate on a real state directory, through the command line (R112), and a quarantine that nobody gets around."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE, Lived, write_model
from conftest_ready import Start, answered_by, breach, error_of, office_at, rearguard, records, start, until

from rearguard.database import OfficerLock
from rearguard.edge import SystemClock
from rearguard.model.outcome import Outcome
from rearguard.model.time import NS_PER_S
from rearguard.officer import automation, checkpoints, deployments, gate, registration
from rearguard.officer.office import open_office

__all__ = ["start"]


@pytest.fixture
def officer(ready: Path) -> Iterator[OfficerLock]:
    """Somebody who holds the office and shows progress."""
    lock = OfficerLock(ready)
    lock.acquire(SystemClock().now())
    with open_office(ready) as office:  # the fixture's own rollback was an officer of this process too
        office.database.take_office(office.clock.now())
    yield lock
    lock.release()


def ask(state: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the gate."""
    done = rearguard("gate", SERVICE, "--env", ENV, *words, "--state", state, "--json")
    return done.returncode, json.loads(done.stdout)


def against(answer: dict[str, Any]) -> dict[str, str]:
    """Code and outcome of every check that does not pass."""
    return {c["code"]: c["outcome"] for c in answer["checks"] if c["outcome"] != "pass"}


@pytest.mark.usefixtures("officer")
def test_a_place_with_nothing_against_it_is_ready(ready: Path) -> None:
    code, answer = ask(ready)
    assert (code, answer["outcome"], against(answer)) == (0, "pass", {})


@pytest.mark.usefixtures("officer")
def test_a_version_with_a_fresh_proof_is_ready_and_the_version_before_it_is_the_way_back(ready: Path) -> None:
    code, answer = ask(ready, "--deploy", "v1")
    assert (code, against(answer)) == (0, {})
    (way_back,) = [c for c in answer["checks"] if c["name"] == "way back"]
    assert way_back["message"] == "v2 is proven and served here"


def test_without_an_officer_the_answer_is_partial(ready: Path) -> None:
    code, answer = ask(ready)
    assert (code, answer["outcome"], against(answer)) == (10, "inconclusive", {"officer_absent": "inconclusive"})


@pytest.mark.usefixtures("officer")
def test_a_place_that_is_not_armed_is_partial(ready: Path) -> None:
    with open_office(ready) as office:
        automation.set_armed(office, PLACE, armed=False, by="ops")
    code, answer = ask(ready)
    assert (code, against(answer)) == (10, {"observe": "inconclusive"})


@pytest.mark.usefixtures("officer")
def test_a_proof_of_16_minutes_is_renewed_first(ready: Path) -> None:
    """R14: 16 min old at the gate."""
    with office_at(ready, 16 * 60) as office:
        answer = gate.gate(office, service=SERVICE, env=ENV, deploy="v1")
    (check,) = [c for c in answer.checks if c.name == "proof"]
    assert (check.code, check.hint) == ("proof_stale", "rearguard checkpoint verify --service fraud --version v1")


@pytest.mark.usefixtures("officer")
def test_a_hung_officer_is_no_officer(ready: Path, officer: OfficerLock) -> None:
    """A lease is 15 s."""
    with office_at(ready, 16) as office:
        answer = gate.gate(office, service=SERVICE, env=ENV)
    assert [c.code for c in answer.checks if c.outcome is not Outcome.PASS] == ["officer_hung"]


@pytest.mark.usefixtures("officer")
def test_the_version_that_is_active_needs_no_deployment(ready: Path) -> None:
    code, answer = ask(ready, "--deploy", "v2")
    assert (code, against(answer)) == (10, {"active_already": "inconclusive"})


def test_a_quarantined_version_is_refused(lived: Lived) -> None:
    code, answer = ask(lived.state, "--deploy", "v2")
    assert (code, against(answer)["quarantined"]) == (30, "fail")


def test_a_place_without_a_way_back_is_refused(lived: Lived) -> None:
    """v1 serves, and v2 was rolled back."""
    code, answer = ask(lived.state)
    assert (code, against(answer)["no_verified_checkpoint"]) == (30, "fail")


def test_an_open_incident_refuses_a_deployment(ready: Path) -> None:
    with open_office(ready) as office:
        automation.set_armed(office, PLACE, armed=False, by="ops")
        assert breach(office) is None
    code, answer = ask(ready)
    assert (code, against(answer)["incident_open"]) == (30, "fail")


def test_a_run_that_waits_refuses_a_deployment(ready: Path) -> None:
    with open_office(ready) as office:
        run_id = breach(office)
    code, answer = ask(ready)
    assert (code, against(answer)["rollback_open"]) == (30, "fail")
    assert run_id in json.dumps(answer)


def test_the_first_version_of_a_place_has_no_way_back(fresh: Path, tmp_path: Path) -> None:
    model, golden = write_model(tmp_path / "v1", "v1")
    with open_office(fresh) as office:
        registration.add(office, model, service=SERVICE, version="v1", golden_file=golden)
    code, answer = ask(fresh, "--deploy", "v1")
    assert (code, against(answer)["no_way_back"]) == (30, "fail")


def test_a_version_that_nobody_registered_is_named_as_such(lived: Lived) -> None:
    done = rearguard("gate", SERVICE, "--env", ENV, "--deploy", "v9", "--state", lived.state, "--json")
    assert error_of(done) == (64, "checkpoint_unknown")


def test_people_get_a_table_and_what_to_do(lived: Lived) -> None:
    done = rearguard("gate", SERVICE, "--env", ENV, "--deploy", "v2", "--state", lived.state)
    assert done.returncode == 30
    assert "FAIL  quarantine  quarantined" in done.stdout
    assert done.stdout.splitlines()[-1] == "deploy v2 to fraud/prod: refused"
    assert "rearguard checkpoint release --service fraud --version v2 --env prod" in done.stderr


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs another user")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_the_gate_answers_whoever_may_only_read(ready: Path) -> None:
    """As user 65534, on files of root. The folders above must let it through."""
    for path in (ready, *ready.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    opened: list[tuple[Path, int]] = []
    for parent in ready.parents:
        mode = stat.S_IMODE(parent.stat().st_mode)
        if not mode & 0o001:
            opened.append((parent, mode))
            parent.chmod(mode | 0o011)
    try:
        another = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command = [*another, sys.executable, "-m", "rearguard.interfaces.cli"]
        words = ["gate", SERVICE, "--env", ENV, "--state", str(ready), "--json"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, cwd="/", check=False)
    finally:
        for parent, mode in opened:
            parent.chmod(mode)
    assert json.loads(done.stdout)["outcome"] == "inconclusive", done.stderr
    assert done.returncode == 10


# --- quarantine


@pytest.mark.parametrize("words", [("deploy",), ("deployment", "record")])
def test_a_quarantined_version_is_not_deployed(copy: Lived, words: tuple[str, ...]) -> None:
    done = rearguard(*words, SERVICE, "v2", "--env", ENV, "--state", copy.state, "--json")
    assert error_of(done) == (30, "quarantined")


def test_a_quarantined_version_is_no_target_until_it_is_released(copy: Lived) -> None:
    words = ("rollback", "plan", SERVICE, "--env", ENV, "--to", "v2", "--state", copy.state, "--json")
    before = json.loads(rearguard(*words).stdout)
    with open_office(copy.state) as office:
        checkpoints.release(office, service=SERVICE, version="v2", env=ENV, reason="fit again", by="ops")
    after = json.loads(rearguard(*words).stdout)
    assert ([r["reason"] for r in before["selection"]["rejected"] if r["version"] == "v2"], before["refusals"]) == (
        ["quarantined"],
        ["no_verified_checkpoint"],
    )
    assert [c["checkpoint"]["version"] for c in after["selection"]["candidates"]] == ["v2"]


def quarantined_digest(state: Path) -> str:
    with open_office(state, write=False) as office:
        return checkpoints.find(office, service=SERVICE, version="v2").digest


def test_f14_a_version_that_was_rolled_back_and_comes_back_around_us_is_paged(copy: Lived, start: Start) -> None:
    """A CI that knows nothing of the rollback deploys v2 again; the watcher sees it answer."""
    v2 = quarantined_digest(copy.state)
    before = records(copy.state, "traffic_switched")[-1]
    watch = start("watch", "--json", "--state", copy.state)
    until(lambda: watch.events("watch_started"), "the officer lives")
    # What answers within 5 s of a switch may still be in flight.
    until(lambda: SystemClock().now().mono_ns > int(before.monotonic_ns) + 5 * NS_PER_S, "nothing is in flight")
    answered_by(copy.state, v2)
    (record,) = until(lambda: records(copy.state, "quarantined_digest_answers"), "it is recorded")
    lines = copy.state / "messages.jsonl"

    def pages() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        return [m for m in found if m["key"].startswith(f"quarantine:{PLACE}:{v2}")]

    until(pages, "somebody is paged")
    assert watch.end() == 0
    assert record.body == {"digest": v2, "version": "v2", "rolled_back_by": copy.run_id}
    assert len(pages()) == 1


def test_a_version_that_comes_back_is_paged_once_per_appearance(copy: Lived) -> None:
    v2 = quarantined_digest(copy.state)
    with office_at(copy.state, 60) as office:
        v1 = checkpoints.find(office, service=SERVICE, version="v1").digest
        settings = office.place(SERVICE, ENV)

        def answers(digest: Any, before: Any) -> None:
            deployments.note_answering(office, settings, digest, before, office.clock.now())

        answers(v2, v1)
        answers(v2, v1)  # a watcher that was started again sees it again
        once = len(records(copy.state, "quarantined_digest_answers"))
        answers(v1, v2)
        answers(v2, v1)
    assert (once, len(records(copy.state, "quarantined_digest_answers"))) == (1, 2)


def test_what_comes_back_is_not_rolled_back_for_that_alone(copy: Lived) -> None:
    v2 = quarantined_digest(copy.state)
    with office_at(copy.state, 60) as office:
        automation.set_armed(office, PLACE, armed=True, by="ops")
        before = len(records(copy.state, "rollback_started"))
        settings = office.place(SERVICE, ENV)
        deployments.note_answering(office, settings, v2, None, office.clock.now())  # type: ignore[arg-type]
        with office.database.reading() as connection:
            open_runs = connection.exec_driver_sql("SELECT 1 FROM runs WHERE state = 'requested'").all()
    assert (open_runs, len(records(copy.state, "rollback_started"))) == ([], before)
