"""What `status` and `automation show` say of an incident that was tried and waits, and of the last rollback."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from conftest_cli import ENV, PLACE, SERVICE, Lived
from conftest_ready import breach, office_at, rearguard

from rearguard.checkpoints.registry import encode_instant
from rearguard.database import sql
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant, parse_rfc3339
from rearguard.officer import approvals, overview
from rearguard.officer.office import open_office


def refused(state: Path) -> Instant:
    """An automatic run of an open incident that nobody approved, refused 16 min before now; when it ended."""
    with office_at(state, -32 * 60) as office:
        run_id = breach(office)
    assert run_id is not None
    with office_at(state, -16 * 60) as office:
        assert approvals.expire(office) == (run_id,)
        return office.clock.now()


def brakes(state: Path, text: str) -> None:
    file = state / "rearguard.yaml"
    file.write_text(file.read_text(encoding="utf-8").rstrip() + f"\n        brakes: {text}\n", encoding="utf-8")


def spent(state: Path, *ages_s: int) -> None:
    """Automatic rollbacks that failed so many seconds ago."""
    with open_office(state) as office, office.database.transaction() as connection:
        now = office.clock.now()
        for n, age_s in enumerate(ages_s):
            at = encode_instant(now.plus(-age_s * NS_PER_S))
            connection.execute(
                sql(
                    "INSERT INTO runs (id, service, env, state, requested_by, requested_at, ended_at) "
                    "VALUES (:id, :s, :e, 'failed', 'auto', :at, :at)"
                ),
                {"id": f"run_{n}", "s": SERVICE, "e": ENV, "at": at},
            )


def place_of(state: Path) -> Any:
    (found,) = json.loads(rearguard("status", "--state", state, "--json").stdout)["places"]
    return found


def column(state: Path) -> str:
    (line,) = [x for x in rearguard("status", "--state", state).stdout.splitlines() if x.startswith(f"{PLACE}  ")]
    return re.split(r"  +", line)[1]


def test_a_refused_attempt_holds_the_next_one_of_its_incident_and_status_says_until_when(guarded: Path) -> None:
    brakes(guarded, "{cool_down: 30 min}")
    ended_at = refused(guarded)
    until = ended_at.plus(30 * 60 * NS_PER_S)
    place = place_of(guarded)
    assert place["held_by"] == "cool_down"
    assert abs(parse_rfc3339(place["held_until"]) - until.wall_ns) <= 2 * NS_PER_S
    assert re.fullmatch(r"cool-down until \S+Z", column(guarded))


def test_automation_show_says_that_the_attempt_was_not_approved_and_not_that_a_rollback_was_done(guarded: Path) -> None:
    brakes(guarded, "{cool_down: 30 min}")
    refused(guarded)
    said = rearguard("automation", "show", "--state", guarded).stdout
    assert re.search(r"waits until \S+Z after an attempt that was not approved$", said, re.MULTILINE)
    assert "cooling down after a rollback" not in said


def test_after_a_rollback_it_is_the_rollback_that_cools_down(ready: Path) -> None:
    spent(ready, 30)
    said = rearguard("automation", "show", "--state", ready).stdout
    assert re.search(r"fraud/prod: cooling down after a rollback until \S+Z$", said, re.MULTILINE)


def test_status_says_that_the_budget_is_spent_and_until_when(ready: Path) -> None:
    brakes(ready, "{cool_down: 1 min, max_rollbacks: 2, per: 1 h}")
    spent(ready, 600, 1200)
    assert re.fullmatch(r"budget spent until \S+Z", column(ready))


def test_without_an_open_incident_a_refused_attempt_holds_nothing(guarded: Path) -> None:
    brakes(guarded, "{cool_down: 30 min}")
    refused(guarded)
    rearguard("incident", "close", "R-2", "--by", "ana", "--state", guarded)
    assert column(guarded) == "armed"


def test_status_shows_the_last_rollback_for_a_day(lived: Lived) -> None:
    said = rearguard("status", "--state", lived.state).stdout.splitlines()[-1]
    pattern = rf"last rollback of fraud/prod: v2 → v1 succeeded \d+ (s|min) ago, RTO [\d.]+ (s|min): {lived.run_id}"
    assert re.fullmatch(pattern, said)
    with office_at(lived.state, 86_400 * 2) as office:
        (place,) = overview.overview(office).places
    assert place.last_rollback is None


def test_the_last_rollback_that_was_refused_says_why(guarded: Path) -> None:
    refused(guarded)
    said = rearguard("status", "--state", guarded).stdout.splitlines()[-1]
    assert re.match(r"last rollback of fraud/prod: v2 refused \(approval_expired\) 16 min ago: run_", said)


def test_the_age_of_a_step_is_that_of_the_step_and_not_of_the_run(ready: Path) -> None:
    with open_office(ready) as office:
        run_id = breach(office)
        now = office.clock.now()
        assert run_id is not None
        with office.database.transaction() as connection:
            connection.execute(
                sql("INSERT INTO attempts (run_id, step, tries, first_at, last_at) VALUES (:r, 'window', 1, :a, :a)"),
                {"r": run_id, "a": encode_instant(now.plus(-7 * NS_PER_S))},
            )
        assert overview._step_s(office, run_id, "window", (), now) == 7
        before = {"completed_at_epoch_ms": now.wall_ns // NS_PER_MS - 3_000}
        assert overview._step_s(office, run_id, "select", (before,), now) == 3
