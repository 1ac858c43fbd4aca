"""`brakes` and `approval` of an environment: every key reaches its field, and the rest is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from rearguard.config.settings import read_settings
from rearguard.config.templates import settings_template
from rearguard.errors import ConfigError
from rearguard.model.settings import ApprovalPolicy, BrakePolicy, FreezeWindow, PlaceSettings
from rearguard.model.time import NS_PER_S

AT = "services.digits.environments.prod"
SMALL = """\
version: 1
services:
  digits:
    environments:
      prod:
        stateless: true
        target: {adapter: oip, url: "http://127.0.0.1:8080", model: digits}
        telemetry: {adapter: jsonl, requests: requests.jsonl}
        triggers: {latency: off}
"""
WEEKLY = '{weekly: "fri 16:00", for: 64 h, reason: weekend}'
ONCE = "{from: 2026-12-24T00:00:00Z, to: 2026-12-27T00:00:00Z, reason: year end}"


def read(folder: Path, extra: str = "") -> PlaceSettings:
    (folder / "rollback_playbook.yaml").touch()
    path = folder / "rearguard.yaml"
    path.write_text(SMALL + (f"        {extra}\n" if extra else ""), encoding="utf-8")
    return read_settings(path).places[0]


def refused(folder: Path, extra: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(folder, extra)
    return caught.value


def test_without_the_sections_the_documented_defaults_hold(tmp_path: Path) -> None:
    place = read(tmp_path)
    assert place.brakes == BrakePolicy(cool_down_s=1800, max_rollbacks=3, budget_period_s=86_400, freeze_windows=())
    assert place.approval == ApprovalPolicy(required=False, expires_s=900)


def test_the_template_says_the_defaults(tmp_path: Path) -> None:
    text = settings_template(
        service="digits",
        env="prod",
        url="http://127.0.0.1:8080",
        model="digits",
        requests_log="r.jsonl",
        scores_log=None,
        target_p95_ms=120,  # type: ignore[arg-type]  # an int formats like a Decimal
    )
    (tmp_path / "rollback_playbook.yaml").touch()
    (tmp_path / "rearguard.yaml").write_text(text, encoding="utf-8")
    place = read_settings(tmp_path / "rearguard.yaml").places[0]
    assert (place.brakes, place.approval) == (BrakePolicy(), ApprovalPolicy())


def test_the_windows_in_the_comments_of_the_template_are_accepted(tmp_path: Path) -> None:
    text = settings_template(
        service="digits",
        env="prod",
        url="http://127.0.0.1:8080",
        model="digits",
        requests_log="r.jsonl",
        scores_log=None,
        target_p95_ms=120,  # type: ignore[arg-type]  # an int formats like a Decimal
    )
    for line in ("freeze:", "  - {weekly", "  - {from"):
        assert f"          # {line}" in text
        text = text.replace(f"          # {line}", f"          {line}")
    (tmp_path / "rollback_playbook.yaml").touch()
    (tmp_path / "rearguard.yaml").write_text(text, encoding="utf-8")
    windows = read_settings(tmp_path / "rearguard.yaml").places[0].brakes.freeze_windows
    assert [(w.reason, w.deployments, w.rollbacks) for w in windows] == [
        ("weekend", True, False),
        ("year end", True, True),
    ]


def test_every_key_reaches_its_field(tmp_path: Path) -> None:
    freeze = f"[{WEEKLY[:-1]}, holds: deployments}}, {ONCE[:-1]}, holds: rollbacks}}]"
    place = read(
        tmp_path,
        f"brakes: {{cool_down: 90 s, max_rollbacks: 7, per: 2 d, freeze: {freeze}}}\n"
        "        approval: {required: true, expires: 5 min}",
    )
    assert place.brakes == BrakePolicy(
        cool_down_s=90,
        max_rollbacks=7,
        budget_period_s=172_800,
        freeze_windows=(
            FreezeWindow(
                reason="weekend",
                weekday=4,
                start_of_day_s=57_600,
                duration_s=230_400,
                deployments=True,
                rollbacks=False,
            ),
            FreezeWindow(
                reason="year end",
                start_wall_ns=1_798_070_400 * NS_PER_S,  # date -ud 2026-12-24 +%s
                duration_s=259_200,
                deployments=False,
                rollbacks=True,
            ),
        ),
    )
    assert place.approval == ApprovalPolicy(required=True, expires_s=300)


@pytest.mark.parametrize("window", [WEEKLY, ONCE])
@pytest.mark.parametrize(
    ("holds", "expected"),
    [("", (True, True)), (", holds: both", (True, True)), (", holds: deployments", (True, False)),
     (", holds: rollbacks", (False, True))],
)  # fmt: skip
def test_a_window_holds_deployments_and_rollbacks_as_written(
    tmp_path: Path, window: str, holds: str, expected: tuple[bool, bool]
) -> None:
    (found,) = read(tmp_path, f"brakes: {{freeze: [{window[:-1]}{holds}}}]}}").brakes.freeze_windows
    assert (found.deployments, found.rollbacks) == expected


def test_a_cool_down_of_nothing_is_accepted(tmp_path: Path) -> None:
    assert read(tmp_path, "brakes: {cool_down: 0 s}").brakes.cool_down_s == 0


def test_an_offset_is_taken_into_account(tmp_path: Path) -> None:
    text = ONCE.replace("2026-12-24T00:00:00Z", '"2026-12-24T01:00:00+01:00"')
    (window,) = read(tmp_path, f"brakes: {{freeze: [{text}]}}").brakes.freeze_windows
    assert window.start_wall_ns == 1_798_070_400 * NS_PER_S


@pytest.mark.parametrize(
    ("extra", "code", "key"),
    [
        ("brakes: {cooldown: 1 s}", "config_unknown_key", "brakes.cooldown"),
        ("brakes: {cool_down: 30}", "config_value", "brakes.cool_down"),
        ("brakes: {max_rollbacks: 0}", "config_value", "brakes.max_rollbacks"),
        ("brakes: {per: 0 s}", "config_value", "brakes.per"),
        ("brakes: off", "config_value", "brakes"),
        ("brakes: {freeze: {}}", "config_value", "brakes.freeze"),
        ("brakes: {freeze: [fri]}", "config_value", "brakes.freeze.1"),
        (f"brakes: {{freeze: [{WEEKLY}, {{reason: x}}]}}", "config_missing_key", "brakes.freeze.2.from"),
        (f"brakes: {{freeze: [{WEEKLY[:-1]}, from: x}}]}}", "config_unknown_key", "brakes.freeze.1.from"),
        (f"brakes: {{freeze: [{ONCE[:-1]}, for: 1 h}}]}}", "config_unknown_key", "brakes.freeze.1.for"),
        (f"brakes: {{freeze: [{WEEKLY.replace('fri', 'friday')}]}}", "config_value", "brakes.freeze.1.weekly"),
        (f"brakes: {{freeze: [{WEEKLY.replace('16', '24')}]}}", "config_value", "brakes.freeze.1.weekly"),
        (f"brakes: {{freeze: [{WEEKLY.replace('64 h', '7 d')}]}}", "config_value", "brakes.freeze.1.for"),
        (f"brakes: {{freeze: [{WEEKLY.replace(', reason: weekend', '')}]}}", "config_missing_key",
         "brakes.freeze.1.reason"),
        (f"brakes: {{freeze: [{WEEKLY[:-1]}, holds: all}}]}}", "config_value", "brakes.freeze.1.holds"),
        (f"brakes: {{freeze: [{ONCE.replace('12-27', '12-24')}]}}", "config_conflict", "brakes.freeze.1.to"),
        (f"brakes: {{freeze: [{ONCE.replace('12-27', '12-23')}]}}", "config_conflict", "brakes.freeze.1.to"),
        (f"brakes: {{freeze: [{ONCE.replace('2026-12-27', '2062-12-27')}]}}", "config_conflict",
         "brakes.freeze.1.to"),
        (f"brakes: {{freeze: [{ONCE.replace('12-27', '12-32')}]}}", "config_value", "brakes.freeze.1.to"),
        (f"brakes: {{freeze: [{ONCE.replace('T00:00:00Z, to', ', to')}]}}", "config_value", "brakes.freeze.1.from"),
        (f"brakes: {{freeze: [{ONCE.replace('00Z, to', '00, to')}]}}", "config_value", "brakes.freeze.1.from"),
        ("approval: {expires: 5 min}", "config_missing_key", "approval.required"),
        ("approval: {required: yes}", "config_value", "approval.required"),
        ("approval: {required: true, expires: 0 s}", "config_value", "approval.expires"),
        ("approval: true", "config_value", "approval"),
    ],
)  # fmt: skip
def test_what_is_not_accepted_is_refused_with_line_and_key(tmp_path: Path, extra: str, code: str, key: str) -> None:
    error = refused(tmp_path, extra)
    assert (error.code, error.line, error.key) == (code, 10, f"{AT}.{key}")


def test_a_bad_weekday_is_told_the_accepted_form(tmp_path: Path) -> None:
    error = refused(tmp_path, f"brakes: {{freeze: [{WEEKLY.replace('fri', 'freitag')}]}}")
    assert (error.value, error.accepted) == (
        "freitag 16:00",
        'a day of mon, tue, wed, thu, fri, sat, sun and a time in UTC, for example "fri 16:00"',
    )
