"""The secret of a webhook: accepted as Standard Webhooks says, and in no error."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from rearguard.config.channels import filled
from rearguard.config.settings import read_settings
from rearguard.config.templates import playbook_template
from rearguard.errors import ConfigError

GOOD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

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


def secret_of(tmp_path: Path, channel: str, environ: dict[str, str]) -> str:
    (tmp_path / "rollback_playbook.yaml").write_text(playbook_template().replace("oncall", "a"), encoding="utf-8")
    path = tmp_path / "rearguard.yaml"
    path.write_text(f"{SMALL}channels: {{a: {{{channel}}}}}\n", encoding="utf-8")
    return filled(read_settings(path).channels[0], environ).secret


def refused(tmp_path: Path, channel: str, environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        secret_of(tmp_path, channel, environ)
    return caught.value


def test_it_is_filled_in_from_the_environment(tmp_path: Path) -> None:
    assert secret_of(tmp_path, "kind: webhook, url: 'http://h.test/', secret: '${HOOK}'", {"HOOK": GOOD}) == GOOD


def test_it_may_be_left_out(tmp_path: Path) -> None:
    assert secret_of(tmp_path, "kind: webhook, url: 'http://h.test/'", {}) == ""


@pytest.mark.parametrize(
    "value",
    [
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_no base64!",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsec_",
    ],
    ids=["no prefix", "no base64", "23 bytes", "65 bytes", "empty"],
)
def test_what_is_no_key_of_24_to_64_bytes_is_refused_and_not_shown(tmp_path: Path, value: str) -> None:
    for channel, environ in (
        ("kind: webhook, url: 'http://h.test/', secret: '${HOOK}'", {"HOOK": value}),
        (f"kind: webhook, url: 'http://h.test/', secret: '{value}'", {}),
    ):
        error = refused(tmp_path, channel, environ)
        assert (error.code, error.key, error.line) == ("config_value", "channels.a.secret", 10)
        assert error.value == ""
        assert len(value) < 10 or value not in error.message + error.accepted + error.hint


@pytest.mark.parametrize("environ", [{}, {"HOOK": ""}])
def test_an_unset_or_empty_variable_is_refused(tmp_path: Path, environ: dict[str, str]) -> None:
    error = refused(tmp_path, "kind: webhook, url: 'http://h.test/', secret: '${HOOK}'", environ)
    assert error.code == "config_variable"
    assert "environment variable HOOK" in error.message


def test_only_a_webhook_has_one_and_the_refusal_does_not_show_it(tmp_path: Path) -> None:
    error = refused(tmp_path, f"kind: file, path: x, secret: {GOOD}", {})
    assert (error.code, error.key) == ("config_unknown_key", "channels.a.secret")
    assert GOOD[6:] not in error.message + error.value
