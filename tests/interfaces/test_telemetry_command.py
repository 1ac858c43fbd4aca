"""`rearguard telemetry`, and what a watch makes of a log that is older than the newest switch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, SERVICE, Lived

from rearguard.database import open_database, sql
from rearguard.edge import SystemClock, read_boot_id
from rearguard.interfaces.cli.telemetry import _spark
from rearguard.model.time import NS_PER_S, rfc3339, rfc3339_ms
from rearguard.officer import deployments, incidents
from rearguard.officer.office import open_office

COUNTED = (
    "INSERT INTO counts (service, env, digest, wall_s, mono_s, boot_id, requests, failures, timed, over_latency, scores, "
    "score_sum) VALUES (:service, :env, :digest, :wall_s, :wall_s, 'boot', :requests, :failures, :timed, :over, :scores, :sum)"
)


def count(state: Path, digest: str, wall_s: int, **figures: Any) -> None:
    """One saved second."""
    row = {"requests": 0, "failures": 0, "timed": 0, "over": 0, "scores": 0, "sum": "0"} | figures
    database = open_database(state)
    with database.transaction() as connection:
        connection.execute(sql(COUNTED), {"service": SERVICE, "env": ENV, "digest": digest, "wall_s": wall_s} | row)
    database.close()


def ask(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rearguard.interfaces.cli", "telemetry", SERVICE, "--state", str(state), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def digests(copy: Lived) -> dict[str, str]:
    with open_office(copy.state, write=False) as office:
        return {d.version: d.digest for d in deployments.list_deployments(office)}


def test_seconds_are_summed_by_minute_and_version(copy: Lived, digests: dict[str, str]) -> None:
    minute_s = SystemClock().now().wall_ns // NS_PER_S // 60 * 60 - 120
    count(copy.state, digests["v2"], minute_s, requests=100, failures=3, timed=90, over=9, scores=2, sum="99.5")
    count(copy.state, digests["v2"], minute_s + 59, requests=100, failures=2, timed=10, scores=2, sum="98")
    count(copy.state, digests["v1"], minute_s + 60, requests=8, timed=8)
    found = json.loads(ask(copy.state, "--json").stdout)
    assert [(m["at"], m["version"], m["requests"], m["failures"]) for m in found["minutes"]] == [
        (rfc3339(minute_s * NS_PER_S), "v2", 200, 5),
        (rfc3339((minute_s + 60) * NS_PER_S), "v1", 8, 0),
    ]
    first, second = found["minutes"]
    # 5 / 200; 9 / 100; (99.5 + 98) / 4.
    figures = [Decimal(first[name]) for name in ("error_ratio", "over_latency_ratio", "mean_score")]
    assert figures == [Decimal("0.025"), Decimal("0.09"), Decimal("49.375")]
    assert (Decimal(second["error_ratio"]), second["mean_score"]) == (0, None)


def test_what_is_older_than_asked_for_is_left_out(copy: Lived, digests: dict[str, str]) -> None:
    now_s = SystemClock().now().wall_ns // NS_PER_S
    count(copy.state, digests["v2"], now_s - 3 * 3600, requests=5)
    count(copy.state, digests["v2"], now_s - 60, requests=7)
    for last, requests in (("1h", [7]), ("4h", [5, 7])):
        found = json.loads(ask(copy.state, "--last", last, "--json").stdout)
        assert [m["requests"] for m in found["minutes"]] == requests


def test_a_person_gets_a_table_and_bars(copy: Lived, digests: dict[str, str]) -> None:
    minute_s = SystemClock().now().wall_ns // NS_PER_S // 60 * 60 - 120
    count(copy.state, digests["v2"], minute_s, requests=10)
    count(copy.state, digests["v2"], minute_s + 60, requests=10, failures=5)
    shown = ask(copy.state).stdout.splitlines()
    assert shown[0] == "v2"
    assert "  error ratio   ▁█  0 to 0.5" in shown
    assert shown[-2].split() == [rfc3339((minute_s + 60) * NS_PER_S)[:16] + "Z", "v2", "10", "5", "0.5", "-", "0", "-"]


def test_nothing_counted_is_said(copy: Lived) -> None:
    answer = ask(copy.state)
    assert answer.returncode == 0
    assert "nothing was counted in the last 1h" in answer.stdout
    assert "never (start it: rearguard watch)" in answer.stdout


@pytest.mark.parametrize("last", ["25h", "30s", "yesterday", ""])
def test_a_span_that_cannot_be_answered_is_a_usage_error(copy: Lived, last: str) -> None:
    answer = ask(copy.state, "--last", last, "--json")
    assert answer.returncode == 64
    assert json.loads(answer.stdout)["error"]["code"] == "span_invalid"


def test_bars_reach_from_the_lowest_to_the_highest_and_leave_a_gap_where_nothing_is_known() -> None:
    assert _spark([Decimal(0), None, Decimal(7), Decimal(3)]) == "▁ █▄"
    assert _spark([Decimal(5), Decimal(5)]) == "▁▁"
    assert _spark([None]) == ""
    assert _spark([Decimal(n % 2) for n in range(100)]) == "▁█" * 30


def test_f19_old_lines_of_a_version_that_was_rolled_back_open_neither_incident_nor_deployment(
    copy: Lived, digests: dict[str, str]
) -> None:
    """The log begins before the rollback and nobody saved a watch: no window of it may start another rollback."""
    settings = copy.state / "rearguard.yaml"
    rule = "rule: {profile: literal, window: 60 s, for_windows: 1, min_samples: 10}\n        recovery:"
    settings.write_text(settings.read_text(encoding="utf-8").replace("recovery:", rule), encoding="utf-8")
    with open_office(copy.state, write=False) as office:
        before = [i.id for i in incidents.list_incidents(office)], deployments.list_deployments(office)
        with office.database.reading() as connection:
            switched = connection.execute(
                sql("SELECT max(CAST(monotonic_ns AS INTEGER)) FROM evidence WHERE kind = 'traffic_switched'")
            ).scalar_one()
    offset_ns = time.time_ns() - time.monotonic_ns()
    with (copy.state / "requests.jsonl").open("w", encoding="utf-8") as file:
        for at_ns in range(switched - 70 * NS_PER_S, switched - 3 * NS_PER_S, NS_PER_S):
            line = {"ts": rfc3339_ms(offset_ns + at_ns), "mono_ns": at_ns, "boot_id": read_boot_id()}
            line |= {"service": SERVICE, "env": ENV, "digest": digests["v2"], "version": "v2", "status": 500}
            file.write(json.dumps(line | {"latency_ms": 1, "id": "", "probe": False}) + "\n")
    out = copy.state / "watch.out"
    with out.open("wb") as sink:
        watch = subprocess.Popen(
            [sys.executable, "-m", "rearguard.interfaces.cli", "watch", "--json", "--state", str(copy.state)],
            stdout=sink,
        )
    try:
        database = open_database(copy.state)
        end = time.monotonic() + 40
        judged = 0
        while not judged:
            assert time.monotonic() < end, "no window was judged"
            time.sleep(0.05)
            with database.reading() as connection:
                body = connection.execute(sql("SELECT body FROM watches")).scalar()
            judged = sum(r["last_end_s"] - r["start_s"] for r in json.loads(body)["rules"]) if body else 0
        database.close()
    finally:
        watch.terminate()
        watch.wait(20)
    with open_office(copy.state, write=False) as office:
        assert ([i.id for i in incidents.list_incidents(office)], deployments.list_deployments(office)) == before
