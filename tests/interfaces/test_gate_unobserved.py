"""The gate at a place that nobody has watched yet: what was never observed is not said to be well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest_cli import ENV, SERVICE
from conftest_ready import rearguard

from rearguard.database import sql
from rearguard.officer.office import open_office


def check(state: Path, name: str) -> Any:
    checks = json.loads(rearguard("gate", SERVICE, "--env", ENV, "--state", state, "--json").stdout)["checks"]
    (found,) = [c for c in checks if c["name"] == name]
    return found


def create(state: Path) -> None:
    with open_office(state, create=True):
        pass


def test_a_place_where_nothing_was_observed_is_not_said_to_be_heard(fresh: Path) -> None:
    create(fresh)
    found = check(fresh, "telemetry")
    assert (found["outcome"], found["code"], found["message"]) == (
        "inconclusive",
        "nothing_observed",
        "nothing was observed yet",
    )


def test_one_counted_request_is_an_observation(fresh: Path) -> None:
    create(fresh)
    with open_office(fresh) as office, office.database.transaction() as connection:
        connection.execute(
            sql(
                "INSERT INTO counts (service, env, digest, wall_s, mono_s, boot_id, requests, failures, timed, "
                "over_latency, scores, score_sum) VALUES (:s, :e, 'sha256:1', 1, 1, 'boot', 1, 0, 1, 0, 0, '0')"
            ),
            {"s": SERVICE, "e": ENV},
        )
    assert check(fresh, "telemetry")["outcome"] == "pass"


def test_hints_name_the_daemon_and_the_first_checkpoint(fresh: Path) -> None:
    create(fresh)
    assert check(fresh, "officer")["hint"] == "start it: rearguard run"
    assert check(fresh, "way back")["hint"].startswith("rearguard checkpoint add PATH --service fraud")
