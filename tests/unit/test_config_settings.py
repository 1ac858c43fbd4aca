"""`rearguard.yaml` reads into settings exactly, or is refused in one sentence."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path

import pytest

from rearguard.config.reader import duration_of
from rearguard.config.settings import KEYS, read_settings
from rearguard.config.templates import playbook_template, settings_template
from rearguard.errors import ConfigError, UsageError
from rearguard.model.breach import LiteralPolicy
from rearguard.model.checkpoint import CheckpointPolicy, GoldenPolicy
from rearguard.model.service import Place
from rearguard.model.settings import (
    AdapterSettings,
    ChannelSettings,
    HeartbeatSettings,
    Objectives,
    PlaceSettings,
    RecoveryPolicy,
    Settings,
    TriggerSettings,
)

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "rearguard-yaml.md"
AT = "services.digits.environments.prod"
ON = f"{AT}.triggers"
LATENCY = "latency: {target_p95_ms: 120}"

SMALL = """\
version: 1
services:
  digits:
    environments:
      prod:
        stateless: true
        target: {adapter: oip, url: "http://127.0.0.1:8080", model: digits}
        telemetry: {adapter: jsonl, requests: logs/requests.jsonl, scores: /var/log/scores.jsonl}
        triggers:
          latency: {target_p95_ms: 120}
"""

FULL = """\
version: 1
playbook: books/rollback.yaml
objectives: {rto: 8 min, rpo: 1500 ms}
checkpoints:
  max_age: 10 h
  reverify_every: 90 min
  max_load: 20 s
  receipt_above_mib: 2
  golden: {rtol: 0.5, atol: 1e-3}
  trusted_types: [a.B, c.D]
channels:
  oncall: {kind: webhook, url: "https://example.test/${TOKEN}"}
  log: {kind: file, path: messages.jsonl}
  pager: {kind: command, argv: [/usr/bin/page, "--now"]}
services:
  digits:
    environments:
      prod:
        stateless: false
        target: {adapter: command, argv: [/bin/switch, prod], tries: 3, name: "3", live: true}
        telemetry: {adapter: jsonl, requests: /var/log/r.jsonl}
        triggers:
          latency: {target_p95_ms: 110.5, margin_ms: 0}
          errors: {limit_percent: 0.1}
          compliance: {drop_points: 1.1, baseline: 95.0, period: 2 h}
        rule: {profile: literal, window: 30 s, step: 10 s, for_windows: 3, min_samples: 50}
        no_data_after: 2 min
        recovery: {window: 20 s, min_samples: 7, probe_every: 250 ms, min_probes: 4, deadline: 5 min}
      staging:
        stateless: true
        target: {adapter: oip}
        telemetry: {adapter: jsonl}
        triggers: {latency: off, errors: off, compliance: off}
"""


def read(folder: Path, text: str) -> Settings:
    (folder / "rollback_playbook.yaml").touch()
    path = folder / "rearguard.yaml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path)


def refused(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return caught.value


def test_a_small_file_has_the_documented_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, SMALL)
    assert settings == Settings(
        file=str(tmp_path / "rearguard.yaml"),
        sha256=hashlib.sha256(SMALL.encode()).hexdigest(),
        places=(
            PlaceSettings(
                place=Place(service="digits", env="prod"),
                stateless=True,
                target=AdapterSettings(adapter="oip", options={"url": "http://127.0.0.1:8080", "model": "digits"}),
                telemetry=AdapterSettings(
                    adapter="jsonl",
                    options={"requests": str(tmp_path / "logs/requests.jsonl"), "scores": "/var/log/scores.jsonl"},
                ),
                triggers=TriggerSettings(
                    latency_target_p95_ms=Decimal(120),
                    latency_margin_ms=Decimal(5),
                    error_limit_percent=Decimal(1),
                    compliance_drop_points=Decimal(2),
                    compliance_baseline=None,
                ),
                rule=LiteralPolicy(window_s=60, step_s=60, for_windows=2, min_samples=100),
                baseline_s=3_600,
                no_data_after_s=120,
                recovery=RecoveryPolicy(
                    window_s=60, min_samples=100, probe_every_ms=500, min_probes=10, deadline_s=600
                ),
            ),
        ),
        checkpoints=CheckpointPolicy(
            max_age_s=86_400,
            reverify_every_s=43_200,
            max_load_s=30,
            receipt_above_bytes=268_435_456,
            golden=GoldenPolicy(rtol=1e-5, atol=1e-6),
            trusted_types=(),
        ),
        objectives=Objectives(rto_objective_ms=600_000, rpo_objective_ms=300_000),
        channels=(),
        playbook_path=str(tmp_path / "rollback_playbook.yaml"),
    )


def test_every_key_reaches_its_field(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books/rollback.yaml").touch()
    settings = read(tmp_path, FULL)
    assert settings.playbook_path == str(tmp_path / "books/rollback.yaml")
    assert settings.objectives == Objectives(rto_objective_ms=480_000, rpo_objective_ms=1_500)
    assert settings.checkpoints == CheckpointPolicy(
        max_age_s=36_000,
        reverify_every_s=5_400,
        max_load_s=20,
        receipt_above_bytes=2_097_152,
        golden=GoldenPolicy(rtol=0.5, atol=0.001),
        trusted_types=("a.B", "c.D"),
    )
    assert settings.channels == (
        ChannelSettings(name="oncall", kind="webhook", url="https://example.test/${TOKEN}"),
        ChannelSettings(name="log", kind="file", path=str(tmp_path / "messages.jsonl")),
        ChannelSettings(name="pager", kind="command", argv=("/usr/bin/page", "--now")),
    )
    prod = settings.find(Place(service="digits", env="prod"))
    assert prod == PlaceSettings(
        place=Place(service="digits", env="prod"),
        stateless=False,
        target=AdapterSettings(
            adapter="command",
            options={"argv": ["/bin/switch", "prod"], "tries": Decimal(3), "name": "3", "live": "true"},
        ),
        telemetry=AdapterSettings(adapter="jsonl", options={"requests": "/var/log/r.jsonl"}),
        triggers=TriggerSettings(
            latency_target_p95_ms=Decimal("110.5"),
            latency_margin_ms=Decimal(0),
            error_limit_percent=Decimal("0.1"),
            compliance_drop_points=Decimal("1.1"),
            compliance_baseline=Decimal("95.0"),
        ),
        rule=LiteralPolicy(window_s=30, step_s=10, for_windows=3, min_samples=50),
        baseline_s=7_200,
        no_data_after_s=120,
        recovery=RecoveryPolicy(window_s=20, min_samples=7, probe_every_ms=250, min_probes=4, deadline_s=300),
    )


def test_off_switches_a_trigger_off(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books/rollback.yaml").touch()
    staging = read(tmp_path, FULL).find(Place(service="digits", env="staging"))
    assert staging is not None
    triggers = staging.triggers
    assert (triggers.latency_target_p95_ms, triggers.error_limit_percent, triggers.compliance_drop_points) == (
        None,
        None,
        None,
    )


def test_a_number_keeps_the_digits_that_were_written(tmp_path: Path) -> None:
    settings = read(tmp_path, SMALL.replace("120}", "1.1000000000000001}"))
    assert str(settings.places[0].triggers.latency_target_p95_ms) == "1.1000000000000001"


def test_the_sentence_names_file_line_key_value_and_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rearguard.yaml").write_text(SMALL.replace("120}", "120ms}"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_settings(Path("rearguard.yaml"))
    error = caught.value
    assert error.message == (
        f'rearguard.yaml:10: {AT}.triggers.latency.target_p95_ms = "120ms" is not accepted; '
        "expected a number of milliseconds > 0, for example 120"
    )
    assert (error.code, error.file, error.line) == ("config_value", "rearguard.yaml", 10)
    assert (error.key, error.value) == (f"{ON}.latency.target_p95_ms", "120ms")
    assert error.accepted == "a number of milliseconds > 0, for example 120"


def test_a_relative_path_still_gives_an_absolute_playbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    assert read_settings(Path("rearguard.yaml")).playbook_path == str(tmp_path / "rollback_playbook.yaml")


def place_with(extra: str) -> str:
    """SMALL with one more line in its only environment: line 11."""
    return SMALL + f"        {extra}\n"


@pytest.mark.parametrize(
    ("text", "code", "line", "key"),
    [
        ("- a\n", "config_value", 1, ""),
        (SMALL.replace("version: 1", "version: 2"), "config_value", 1, "version"),
        (SMALL + "checkpoints: {reverify_every: 119 s}\n", "config_value", 11, "checkpoints.reverify_every"),
        (SMALL.replace("version: 1\n", ""), "config_missing_key", 1, "version"),
        ("version: 1\n", "config_missing_key", 1, "services"),
        ("version: 1\nservices: {}\n", "config_value", 2, "services"),
        ("version: 1\nservices:\n", "config_value", 2, "services"),
        ("version: 1\nservices: {a: {environments: {}}}\n", "config_value", 2, "services.a.environments"),
        (SMALL.replace("digits:\n", "Digits:\n"), "config_name", 3, "services.Digits"),
        (SMALL.replace("prod:", "-prod:"), "config_name", 5, "services.digits.environments.-prod"),
        (SMALL.replace("prod:", "p" * 64 + ":"), "config_name", 5, f"services.digits.environments.{'p' * 64}"),
        (SMALL.replace("        stateless: true\n", ""), "config_missing_key", 6, f"{AT}.stateless"),
        (SMALL.replace("stateless: true", "stateless: yes"), "config_value", 6, f"{AT}.stateless"),
        (SMALL.replace("stateless: true", "stateless: 'true'"), "config_value", 6, f"{AT}.stateless"),
        (SMALL.replace("adapter: oip, ", ""), "config_missing_key", 7, f"{AT}.target.adapter"),
        (SMALL.replace("adapter: oip", "adapter: "), "config_value", 7, f"{AT}.target.adapter"),
        (SMALL.replace("model: digits", "model: null"), "config_value", 7, f"{AT}.target.model"),
        (SMALL.replace("model: digits", "model: {a: b}"), "config_value", 7, f"{AT}.target.model"),
        (SMALL.replace("model: digits", "model: '${MODEL}'"), "config_variable", 7, f"{AT}.target.model"),
        (SMALL.replace("model: digits", 'model: "a\\nb"'), "config_value", 7, f"{AT}.target.model"),
        (SMALL.replace(LATENCY, "errors: off"), "config_missing_key", 10, f"{ON}.latency"),
        (SMALL.replace(LATENCY, "latency: on"), "config_value", 10, f"{ON}.latency"),
        (SMALL.replace(LATENCY, "latency: {}"), "config_missing_key", 10, f"{ON}.latency.target_p95_ms"),
        (SMALL.replace("120}", "0}"), "config_value", 10, f"{ON}.latency.target_p95_ms"),
        (SMALL.replace("120}", "'120'}"), "config_value", 10, f"{ON}.latency.target_p95_ms"),
        (SMALL.replace("120}", "0120}"), "config_value", 10, f"{ON}.latency.target_p95_ms"),
        (SMALL.replace("120}", ".inf}"), "config_value", 10, f"{ON}.latency.target_p95_ms"),
        (SMALL.replace("120}", "120, margin_ms: -1}"), "config_value", 10, f"{ON}.latency.margin_ms"),
        (SMALL + "          errors:\n", "config_value", 11, f"{ON}.errors"),
        (SMALL + "          errors: {limit_percent: 100.1}\n", "config_value", 11, f"{ON}.errors.limit_percent"),
        (SMALL + "          compliance: {drop_points: 0}\n", "config_value", 11, f"{ON}.compliance.drop_points"),
        (SMALL + "          compliance: {baseline: 1.9}\n", "config_value", 11, f"{ON}.compliance.baseline"),
        (SMALL + "          compliance: {baseline: mesured}\n", "config_value", 11, f"{ON}.compliance.baseline"),
        (place_with("rule: {profile: canary}"), "config_value", 11, f"{AT}.rule.profile"),
        (place_with("rule: {window: 60}"), "config_value", 11, f"{AT}.rule.window"),
        (place_with("rule: {window: 1500 ms}"), "config_value", 11, f"{AT}.rule.window"),
        (place_with("rule: {window: 0 s}"), "config_value", 11, f"{AT}.rule.window"),
        (place_with("rule: {window: 367 d}"), "config_value", 11, f"{AT}.rule.window"),
        (place_with("rule: {window: 30 s, step: 31 s}"), "config_conflict", 11, f"{AT}.rule.step"),
        (place_with("rule: {for_windows: 2.0}"), "config_value", 11, f"{AT}.rule.for_windows"),
        (place_with("rule: {min_samples: 0}"), "config_value", 11, f"{AT}.rule.min_samples"),
        (place_with("no_data_after: 120 sec"), "config_value", 11, f"{AT}.no_data_after"),
        (place_with("recovery: {window: 60 s, deadline: 59 s}"), "config_conflict", 11, f"{AT}.recovery.deadline"),
        (place_with("recovery: {window: 601 s}"), "config_conflict", 11, f"{AT}.recovery.window"),
        (SMALL + "objectives: {rto: 30 s}\n", "config_missing_key", 6, f"{AT}.recovery.window"),
        (SMALL + "objectives: {rto: 10}\n", "config_value", 11, "objectives.rto"),
        (SMALL + "checkpoints: {reverify_every: 24 h}\n", "config_conflict", 11, "checkpoints.reverify_every"),
        (
            SMALL + "checkpoints: {proof: full_hash, receipt_above_mib: 256}\n",
            "config_conflict",
            11,
            "checkpoints.receipt_above_mib",
        ),
        (SMALL + "checkpoints: {trusted_types: a.B}\n", "config_value", 11, "checkpoints.trusted_types"),
        (SMALL + "checkpoints: {golden: {rtol: 1.1}}\n", "config_value", 11, "checkpoints.golden.rtol"),
        (SMALL + "playbook: other.yaml\n", "config_missing", 11, "playbook"),
        (SMALL + f"playbook: {'x' * 4_000}\n", "config_missing", 11, "playbook"),
        (SMALL + "heartbeat: {kind: email}\n", "config_value", 11, "heartbeat.kind"),
        (SMALL + "heartbeat: {every: 60 s}\n", "config_missing_key", 11, "heartbeat.kind"),
        (SMALL + "heartbeat: {kind: file, path: x, url: y}\n", "config_unknown_key", 11, "heartbeat.url"),
        (SMALL + "heartbeat: {kind: file, path: x, every: 0 s}\n", "config_value", 11, "heartbeat.every"),
        (SMALL + "channels: {a: {kind: email}}\n", "config_value", 11, "channels.a.kind"),
        (SMALL + "channels: {a: {kind: file}}\n", "config_missing_key", 11, "channels.a.path"),
        (SMALL + "channels: {a: {kind: file, path: x, url: y}}\n", "config_unknown_key", 11, "channels.a.url"),
        (SMALL + "channels: {a: {kind: command, argv: []}}\n", "config_value", 11, "channels.a.argv"),
        (SMALL + "channels: {a: {kind: webhook, url: ftp://x}}\n", "config_value", 11, "channels.a.url"),
        (SMALL + "channels: {a: {kind: webhook, url: 'http://[x'}}\n", "config_value", 11, "channels.a.url"),
        (SMALL + "channels: {a: {kind: webhook, url: 'http://x/${'}}\n", "config_variable", 11, "channels.a.url"),
    ],
)  # fmt: skip
def test_what_is_not_accepted_is_refused_with_line_and_key(
    tmp_path: Path, text: str, code: str, line: int, key: str
) -> None:
    error = refused(tmp_path, text)
    assert (error.code, error.line, error.key) == (code, line, key)


def test_a_bare_duration_is_told_its_units(tmp_path: Path) -> None:
    error = refused(tmp_path, place_with("rule: {window: 60}"))
    assert (
        error.accepted == "a duration of 1 or more whole seconds, with its unit (ms, s, min, h or d), for example 60 s"
    )


def test_an_unknown_key_is_told_the_closest_one(tmp_path: Path) -> None:
    error = refused(tmp_path, place_with("rule: {widnow: 60 s}"))
    assert (error.code, error.key, error.value) == ("config_unknown_key", f"{AT}.rule.widnow", "60 s")
    assert "(did you mean window?)" in error.message


def test_an_unknown_profile_lists_the_accepted_ones(tmp_path: Path) -> None:
    assert refused(tmp_path, place_with("rule: {profile: canary}")).accepted == "literal"


def test_a_missing_default_playbook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rearguard.yaml"
    path.write_text(SMALL, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert (caught.value.code, caught.value.key) == ("config_missing", "playbook")


@pytest.mark.parametrize(("every", "expected_s"), [("", 60), (", every: 5 min", 300)])
def test_the_heartbeat_has_a_receiver_like_a_channel_and_a_pace(tmp_path: Path, every: str, expected_s: int) -> None:
    (tmp_path / "rollback_playbook.yaml").write_text(playbook_template())
    path = tmp_path / "rearguard.yaml"
    path.write_text(SMALL + f"heartbeat: {{kind: webhook, url: 'https://h.test/${{TOKEN}}'{every}}}\n")
    found = read_settings(path).heartbeat
    channel = ChannelSettings(name="heartbeat", kind="webhook", url="https://h.test/${TOKEN}")
    assert found == HeartbeatSettings(channel=channel, every_s=expected_s)


def test_without_the_section_there_is_no_heartbeat(tmp_path: Path) -> None:
    (tmp_path / "rollback_playbook.yaml").write_text(playbook_template())
    (tmp_path / "rearguard.yaml").write_text(SMALL)
    assert read_settings(tmp_path / "rearguard.yaml").heartbeat is None


def test_the_default_deadline_is_the_objective_rounded_up_to_seconds(tmp_path: Path) -> None:
    settings = read(tmp_path, SMALL + "objectives: {rto: 90500 ms}\n")
    assert settings.places[0].recovery.deadline_s == 91


def test_half_of_a_chosen_age_is_the_default_of_reverify_every(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL + "checkpoints: {max_age: 5 s}\n").checkpoints.reverify_every_s == 2


def test_a_chosen_window_is_the_default_of_step(tmp_path: Path) -> None:
    assert read(tmp_path, place_with("rule: {window: 5 s}")).places[0].rule.step_s == 5


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("500 ms", 500),
        ("60 s", 60_000),
        ("60s", 60_000),
        ("10 min", 600_000),
        ("1.5 h", 5_400_000),
        ("2 d", 172_800_000),
        ("0.001 s", 1),
        ("0.0001 s", None),
        ("60", None),
        ("60 S", None),
        ("60  s", None),
        (" 60 s", None),
        ("-1 s", None),
        ("1e3 s", None),
        ("٣ s", None),
        ("060 s", None),
        ("1 h 30 min", None),
    ],
)
def test_a_duration_is_a_number_and_its_unit(text: str, ms: int | None) -> None:
    assert duration_of(text) == ms


def template(**changes: object) -> str:
    values: dict[str, object] = {
        "service": "digits",
        "env": "prod",
        "url": "http://127.0.0.1:8080",
        "model": "digits",
        "requests_log": "/var/log/r.jsonl",
        "scores_log": "/var/log/s.jsonl",
        "target_p95_ms": Decimal(120),
        **changes,
    }
    return settings_template(**values)  # type: ignore[arg-type]  # a table of keyword arguments


def test_the_template_reads_back_with_the_defaults(tmp_path: Path) -> None:
    place = read(tmp_path, template()).places[0]
    small = read(tmp_path, SMALL).places[0]
    assert (place.triggers, place.rule, place.recovery, place.baseline_s, place.no_data_after_s) == (
        small.triggers,
        small.rule,
        small.recovery,
        small.baseline_s,
        small.no_data_after_s,
    )
    assert place.telemetry.options == {"requests": "/var/log/r.jsonl", "scores": "/var/log/s.jsonl"}


def test_the_template_without_scores_has_no_compliance_trigger(tmp_path: Path) -> None:
    place = read(tmp_path, template(scores_log=None)).places[0]
    assert place.triggers.compliance_drop_points is None
    assert "scores" not in place.telemetry.options


def test_both_templates_say_that_nothing_is_touched_until_armed() -> None:
    assert "rearguard arm digits --env prod" in template()
    for text in (template(), playbook_template()):
        assert "`observe` mode" in text


@pytest.mark.parametrize(
    "changes",
    [{"service": "Digits"}, {"env": ""}, {"model": "a\nb"}, {"url": ""}, {"requests_log": "${X}"},
     {"target_p95_ms": Decimal(0)}, {"target_p95_ms": Decimal("NaN")}, {"target_p95_ms": Decimal("1e40")}],
)  # fmt: skip
def test_what_cannot_stand_in_the_file_is_not_written(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        template(**changes)


def documented_keys() -> set[str]:
    """First cells of the reference's tables, with the common prefix of a place put back."""
    cells = {
        line.split("|")[1].strip().strip("`")
        for line in REFERENCE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    }
    return cells | {f"services.NAME.environments.NAME.{cell}" for cell in cells}


@pytest.mark.parametrize("key", [".".join(filter(None, (section, key))) for section in KEYS for key in KEYS[section]])
def test_each_accepted_key_is_in_the_reference(key: str) -> None:
    assert key in documented_keys()


def test_the_small_file_of_the_reference_reads(tmp_path: Path) -> None:
    text = REFERENCE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    assert [str(p.place) for p in read(tmp_path, text).places] == ["digits/prod"]
