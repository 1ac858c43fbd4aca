"""Titles of pages and `incident show` answer by themselves: which version, what was observed, what serves now."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest_cli import ENV, SERVICE, Lived
from conftest_ready import breach, rearguard

from rearguard.database import sql
from rearguard.model.run import RunState
from rearguard.officer import automation, rollbacks
from rearguard.officer.office import open_office


def titles(state: Path) -> list[str]:
    with open_office(state, write=False) as office, office.database.reading() as connection:
        return list(connection.execute(sql("SELECT title FROM outbox ORDER BY id")).scalars())


def test_a_rollback_is_told_with_both_versions_the_figures_and_its_time(ready: Path) -> None:
    with open_office(ready) as office:
        automation.set_armed(office, office.place(SERVICE, ENV).place, armed=False, by="ops")
        breach(office)
        assert rollbacks.run(office, service=SERVICE, env=ENV, to=None, by="ops").state is RunState.SUCCEEDED
    withheld, begun, ended = titles(ready)[-3:]
    assert withheld.startswith(
        "fraud/prod: v2, Error Rate 5.0 % (limit 1 %): not armed: no automatic rollback; by hand: rearguard rollback run"
    )
    assert begun == "fraud/prod: rolling back v2 → v1: Error Rate 5.0 % (limit 1 %)"
    assert re.fullmatch(r"fraud/prod: restored to v1 in \d+(\.\d)? s", ended)


def test_a_rollback_that_fails_says_what_still_serves(ready: Path) -> None:
    (ready / "down").touch()
    with open_office(ready) as office:
        done = rollbacks.run(office, service=SERVICE, env=ENV, to=None, by="ops")
    assert done.state is not RunState.SUCCEEDED
    assert re.fullmatch(
        rf"fraud/prod: rollback {done.state.value} \(\w+\): v2 (still serves|served last)", titles(ready)[-1]
    )


def test_a_request_for_approval_names_what_it_is_about(guarded: Path) -> None:
    with open_office(guarded) as office:
        assert breach(office) is not None
    pattern = r"fraud/prod: rollback v2 → v1 waits for approval until \S+Z: Error Rate 5\.0 % \(limit 1 %\)"
    assert re.fullmatch(pattern, titles(guarded)[-1])


def test_incident_show_says_what_was_observed_done_and_when_it_was_closed(lived: Lived) -> None:
    said = rearguard("incident", "show", lived.incident_id, "--state", lived.state).stdout
    assert re.search(r"^  answering v2 sha256:[0-9a-f]{64}$", said, re.MULTILINE)
    assert "  observed  Error Rate 5.0 % (limit 1 %), 200 samples\n" in said
    assert re.search(
        rf"^  rollback  {lived.run_id} by ops: succeeded \S+Z, to v1, RTO \S+ (s|min)$", said, re.MULTILINE
    )
    assert re.search(r"^  closed    \S+Z by rollback$", said, re.MULTILINE)


def test_incident_show_says_what_holds_its_rollback_back(ready: Path) -> None:
    rearguard("automation", "pause", "--reason", "audit", "--state", ready)
    with open_office(ready) as office:
        assert breach(office) is None
    found = json.loads(rearguard("incident", "show", "R-2", "--state", ready, "--json").stdout)
    assert (found["id"], found["version"], found["holds"], found["runs"], found["closed_at"]) == (
        "R-2",
        "v2",
        "automation is paused",
        [],
        None,
    )
    assert found["figures"] == {
        "observed": "0.05",
        "limit": "0.01",
        "samples": 200,
        "p95_ms": None,
        "p95_limit_ms": None,
    }
