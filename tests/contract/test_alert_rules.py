"""The alerts that we give people, evaluated by Prometheus' own tool on series written by hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest

ALERTS = Path(__file__).parents[2] / "docs" / "how-to" / "prometheus-alerts.yaml"
PLACE = 'service="fraud",env="prod"'
RequirePart = Callable[[str, bool, str], None]


@pytest.fixture
def fires(tmp_path: Path, require_part: RequirePart) -> Callable[..., bool]:
    """Whether an alert is on after so many minutes of constant values."""
    require_part("promtool", which("promtool") is not None, "apt-get install prometheus")

    def evaluate(alert: str, minutes: int, **values: float) -> bool:
        series = [
            {"series": name if "{" in name else f"{name}{{{PLACE}}}", "values": f"{value}+0x{minutes + 1}"}
            for name, value in values.items()
        ]
        # Asked of ALERTS itself, so that neither labels nor annotations have to be repeated here.
        asked = {
            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
            "eval_time": f"{minutes}m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        test: dict[str, Any] = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
        file = tmp_path / "test.yaml"
        file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
        done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
        on = done.returncode == 0
        assert on or "got:" in done.stdout + done.stderr, done.stdout + done.stderr
        return on

    return evaluate


@pytest.mark.parametrize(("samples", "min_samples", "on"), [(30, 10, True), (30, 100, False), (100, 100, True)])
def test_a_breach_is_near_only_on_as_many_samples_as_the_rule_asks_for(
    fires: Callable[..., bool], samples: int, min_samples: int, on: bool
) -> None:
    values = {
        f'{name}{{{PLACE},trigger="errors"}}': value
        for name, value in (
            ("rearguard_trigger_distance_ratio", 0.1),
            ("rearguard_trigger_samples", samples),
            ("rearguard_trigger_min_samples", min_samples),
        )
    }
    assert fires("RearguardBreachNear", 5, **values) is on


@pytest.mark.parametrize(("versions", "on"), [(0, False), (1, False), (2, True)])
def test_a_place_that_served_one_version_only_is_not_told_that_it_has_no_way_back(
    fires: Callable[..., bool], versions: int, on: bool
) -> None:
    values = {"rearguard_rollback_targets": 0, "rearguard_versions_served": versions}
    assert fires("RearguardNoTarget", 40, **values) is on


@pytest.mark.parametrize(("minutes", "runs", "on"), [(8, 0, False), (12, 0, True), (12, 1, False)])
def test_an_incident_that_no_run_works_on_for_10_minutes_wakes_somebody(
    fires: Callable[..., bool], minutes: int, runs: int, on: bool
) -> None:
    values = {"rearguard_incidents_open": 1, "rearguard_runs_open": runs}
    assert fires("RearguardIncidentUnattended", minutes, **values) is on


def test_a_place_without_an_incident_wakes_nobody(fires: Callable[..., bool]) -> None:
    assert not fires("RearguardIncidentUnattended", 20, rearguard_incidents_open=0, rearguard_runs_open=0)
