"""Figures for Prometheus: what is counted from evidence, and how far a trigger is from its limit."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from rearguard.database import Database, open_database
from rearguard.evidence.log import append
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.officer.metric_names import METRICS, RTO_BUCKETS_S
from rearguard.officer.metrics import Tally, distance_ratio

PLACE = Place(service="fraud", env="prod")
NOW = Instant(wall_ns=1_700_000_000_000_000_000, mono_ns=10**12, boot_id="b")


def judgement(trigger: Trigger, observed: str | None, limit: str | None) -> Judgement:
    return Judgement(
        trigger=trigger,
        digest=Digest("sha256:" + "0" * 64),
        outcome=Outcome.INCONCLUSIVE,
        reason="",
        window_start_s=0,
        window_end_s=60,
        samples=100,
        exceedances=0,
        observed=None if observed is None else Decimal(observed),
        limit=None if limit is None else Decimal(limit),
        streak=0,
        first_bad_mono_ns=None,
    )


def record(database: Database, kind: str, body: dict[str, object]) -> None:
    with database.transaction() as connection:
        append(connection, now=NOW, kind=kind, body=body, place=PLACE)  # type: ignore[arg-type]


def tallied(database: Database, tally: Tally) -> Tally:
    with database.reading() as connection:
        tally.catch_up(connection)
    return tally


@pytest.mark.parametrize(
    ("trigger", "observed", "limit", "expected"),
    [
        (Trigger.ERRORS, "0.005", "0.01", "0.5"),  # half of what is allowed: half of the room is left
        (Trigger.ERRORS, "0.03", "0.01", "-2"),
        (Trigger.LATENCY, "0.05", "0.05", "0"),
        (Trigger.COMPLIANCE, "99", "90", "0.1"),  # nine points above a limit of ninety
        (Trigger.COMPLIANCE, "81", "90", "-0.1"),
    ],
)
def test_the_distance_is_the_room_left_as_a_share_of_the_limit(
    trigger: Trigger, observed: str, limit: str, expected: str
) -> None:
    assert distance_ratio(judgement(trigger, observed, limit)) == Decimal(expected)


@pytest.mark.parametrize(("observed", "limit"), [(None, "0.01"), ("0.01", None), ("0.01", "0")])
def test_without_samples_or_with_nothing_to_be_a_share_of_there_is_no_distance(
    observed: str | None, limit: str | None
) -> None:
    assert distance_ratio(judgement(Trigger.ERRORS, observed, limit)) is None


def test_counters_survive_a_restart_because_they_come_from_evidence(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    record(database, "incident_opened", {"trigger": "errors"})
    record(database, "rollback_finished", {"state": "succeeded", "rto_achieved_ms": 45_000})
    record(database, "rollback_finished", {"state": "failed", "rto_achieved_ms": None})
    before = tallied(database, Tally())
    after_restart = tallied(database, Tally())
    database.close()
    for tally in (before, after_restart):
        assert tally.incidents == {("fraud", "prod", "errors"): 1}
        assert tally.runs == {("fraud", "prod", "succeeded"): 1, ("fraud", "prod", "failed"): 1}


def test_a_second_look_counts_only_what_is_new(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    tally = Tally()
    record(database, "rollback_withheld", {"reason": "observe"})
    tallied(database, tally)
    tallied(database, tally)
    assert tally.withheld == {("fraud", "prod", "observe"): 1}
    record(database, "rollback_withheld", {"reason": "observe"})
    record(database, "rollback_refused", {"reason": "no_verified_checkpoint"})
    tallied(database, tally)
    database.close()
    assert tally.withheld == {("fraud", "prod", "observe"): 2}
    assert tally.refused == {("fraud", "prod", "no_verified_checkpoint"): 1}


def test_recovery_times_fall_into_every_bucket_that_is_not_below_them(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    for rto_ms in (900, 45_000, 2_000_000):
        record(database, "rollback_finished", {"state": "succeeded", "rto_achieved_ms": rto_ms})
    figures = tallied(database, Tally()).rto_s["fraud", "prod"]
    database.close()
    # 0.9 s is in all of them, 45 s from 60 s on, 2,000 s only above the last bound (1,200 s).
    assert RTO_BUCKETS_S == (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200)
    assert figures[:11] == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]
    assert figures[11:] == [2045.9, 2000.0]


def test_names_follow_the_conventions_of_prometheus() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("rearguard_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not any(unit in metric.name for unit in ("_ms", "milli", "percent", "_minutes")), metric.name
