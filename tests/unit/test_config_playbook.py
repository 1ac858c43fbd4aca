"""`rollback_playbook.yaml` declares each step once and in the legal order, or is refused."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path

import pytest

from rearguard.config.playbook import PLAYBOOK_KEYS, read_playbook
from rearguard.config.settings import read_settings
from rearguard.config.templates import playbook_template, settings_template
from rearguard.errors import ConfigError
from rearguard.model.settings import Playbook, PlaybookStep

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "rollback-playbook-yaml.md"
LEGAL = ["lock", "freeze", "select", "verify", "activate", "probe", "window", "record", "close"]


def playbook(names: list[str], head: str = "version: 1\ncontacts: {ops_commander: oncall}\n") -> str:
    """A playbook whose step n stands in line n + 3."""
    return head + "steps:\n" + "".join(f"  - {{name: {name}, owner: ann, timeout: 2 min}}\n" for name in names)


def read(folder: Path, text: str, channels: list[str] | None = None) -> Playbook:
    path = folder / "rollback_playbook.yaml"
    path.write_text(text, encoding="utf-8")
    return read_playbook(path, channels=channels)


def refused(folder: Path, text: str, channels: list[str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, channels)
    return caught.value


def test_a_playbook_reads_into_its_steps_contacts_and_digest(tmp_path: Path) -> None:
    text = playbook(LEGAL)
    assert read(tmp_path, text) == Playbook(
        file=str(tmp_path / "rollback_playbook.yaml"),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        steps=tuple(PlaybookStep(name=name, owner="ann", timeout_s=120) for name in LEGAL),
        contacts={"ops_commander": "oncall"},
    )


def test_a_comment_changes_the_digest(tmp_path: Path) -> None:
    assert read(tmp_path, playbook(LEGAL)).sha256 != read(tmp_path, playbook(LEGAL) + "#\n").sha256


def test_contacts_may_be_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, playbook(LEGAL, "version: 1\n")).contacts == {}


SWAPPED = ["lock", "freeze", "verify", "select", *LEGAL[4:]]


@pytest.mark.parametrize(
    ("names", "code", "line", "key"),
    [
        ([*LEGAL[:4], "activte", *LEGAL[5:]], "config_step_unknown", 8, "steps.5.name"),
        ([*LEGAL, "lock"], "config_step_repeated", 13, "steps.10.name"),
        (LEGAL[:-1], "config_step_missing", 4, "steps"),
        (SWAPPED, "config_step_misplaced", 6, "steps.3.name"),
    ],
)
def test_a_step_that_is_unknown_repeated_missing_or_misplaced_is_refused(
    tmp_path: Path, names: list[str], code: str, line: int, key: str
) -> None:
    error = refused(tmp_path, playbook(names))
    assert (error.code, error.line, error.key) == (code, line, key)
    assert "lock, freeze, select, verify, activate, probe, window, record, close" in error.message


def test_a_misplaced_step_is_named_with_the_one_that_belongs_there(tmp_path: Path) -> None:
    error = refused(tmp_path, playbook(SWAPPED))
    assert error.value == "verify"
    assert error.accepted.startswith("select here")


def test_a_misspelt_step_is_told_the_closest_one(tmp_path: Path) -> None:
    assert "did you mean activate?" in refused(tmp_path, playbook([*LEGAL[:4], "activte", *LEGAL[5:]])).message


def test_missing_steps_are_named(tmp_path: Path) -> None:
    assert "record, close are missing" in refused(tmp_path, playbook(LEGAL[:-2])).message


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "key"),
    [
        ("version: 1", "version: 3", "config_value", 1, "version"),
        ("version: 1\n", "", "config_missing_key", 1, "version"),
        ("ops_commander", "ops_comander", "config_unknown_key", 2, "contacts.ops_comander"),
        ("oncall", "[oncall]", "config_value", 2, "contacts.ops_commander"),
        ("lock, owner: ann, ", "lock, ", "config_missing_key", 4, "steps.1.owner"),
        ("lock, owner: ann", "lock, owner: ''", "config_value", 4, "steps.1.owner"),
        ("lock, owner: ann, timeout: 2 min", "lock, owner: ann", "config_missing_key", 4, "steps.1.timeout"),
        ("lock, owner: ann, timeout: 2 min", "lock, owner: ann, timeout: 120", "config_value", 4, "steps.1.timeout"),
        ("{name: lock, owner", "{name: lock, retry: 1, owner", "config_unknown_key", 4, "steps.1.retry"),
        ("{name: lock, owner: ann, timeout: 2 min}", "lock", "config_value", 4, "steps.1"),
    ],
)
def test_what_is_not_accepted_is_refused_with_line_and_key(
    tmp_path: Path, old: str, new: str, code: str, line: int, key: str
) -> None:
    text = playbook(LEGAL)
    assert old in text
    error = refused(tmp_path, text.replace(old, new, 1))
    assert (error.code, error.line, error.key) == (code, line, key)


def test_a_playbook_without_steps_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, "version: 1\n").key == "steps"


def test_a_missing_playbook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_playbook(tmp_path / "none.yaml")
    assert caught.value.code == "config_missing"


def test_a_contact_must_be_a_channel_of_the_settings(tmp_path: Path) -> None:
    error = refused(tmp_path, playbook(LEGAL), channels=["on-call", "log"])
    assert (error.code, error.line, error.key) == ("config_conflict", 2, "contacts.ops_commander")
    assert error.accepted == "a channel that the settings declare (log, on-call) (did you mean on-call?)"


def test_both_templates_read_back_together(tmp_path: Path) -> None:
    (tmp_path / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    text = settings_template(
        service="digits",
        env="prod",
        url="http://127.0.0.1:8080",
        model="digits",
        requests_log="r.jsonl",
        scores_log="s.jsonl",
        target_p95_ms=Decimal(120),
    )
    (tmp_path / "rearguard.yaml").write_text(text, encoding="utf-8")
    settings = read_settings(tmp_path / "rearguard.yaml")
    declared = read_playbook(Path(settings.playbook_path), channels=[c.name for c in settings.channels])
    assert [step.name for step in declared.steps] == LEGAL
    assert set(declared.contacts) == {"ops_commander", "infra_guardian", "compliance_monitor"}


@pytest.mark.parametrize("key", [".".join(filter(None, (s, k))) for s in PLAYBOOK_KEYS for k in PLAYBOOK_KEYS[s]])
def test_each_accepted_key_is_in_the_reference(key: str) -> None:
    assert f"| `{key}` |" in REFERENCE.read_text(encoding="utf-8")


def test_the_reference_lists_the_steps_in_the_legal_order() -> None:
    rows = [line.split("|") for line in REFERENCE.read_text(encoding="utf-8").splitlines()]
    steps = [row[2].strip(" `") for row in rows if len(row) > 2 and row[1].strip().isdigit()]
    assert steps == LEGAL
