"""A receiver's variables: left as written when the file is read, filled in when something is delivered."""

from __future__ import annotations

from pathlib import Path

import pytest

from rearguard.config.channels import filled, refuse_unfilled
from rearguard.config.settings import read_settings
from rearguard.config.templates import playbook_template
from rearguard.errors import ConfigError
from rearguard.model.settings import Settings

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
HOOK = "channels: {a: {kind: webhook, url: 'https://h.test/${TOKEN}'}}"


def read(folder: Path, *lines: str) -> Settings:
    (folder / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    path = folder / "rearguard.yaml"
    path.write_text(SMALL + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return read_settings(path)


def url_of(folder: Path, written: str) -> str:
    return read(folder, f"channels: {{a: {{kind: webhook, url: '{written}'}}}}").channels[0].url


def refusal_of(settings: Settings, environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        filled(settings.channels[0], environ)
    return caught.value


def test_reading_needs_no_variable_and_leaves_them_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "HOOK"):
        monkeypatch.delenv(name, raising=False)
    written = "channels: {a: {kind: webhook, url: 'https://h.test/${TOKEN}', secret: '${HOOK}'}}"
    (channel,) = read(tmp_path, written).channels
    assert (channel.url, channel.secret) == ("https://h.test/${TOKEN}", "${HOOK}")


@pytest.mark.parametrize(
    "written",
    ["${URL}", "http${S}://h.test/", "https://${HOST}/", "http://h.test:${PORT}/x", "http://h.test/${A}/${B}?c=${C}"],
)
def test_a_variable_may_stand_for_any_part_of_an_address(tmp_path: Path, written: str) -> None:
    assert url_of(tmp_path, written) == written


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("ftp://${HOST}/", "config_value"),
        ("ftp${S}://h.test/", "config_value"),
        ("https://h.test/a ${B}", "config_value"),
        ("${HOST", "config_variable"),
        ("https://h.test/${1}", "config_variable"),
        ("https://h.test/${A-B}", "config_variable"),
        ("https://h.test/${}", "config_variable"),
    ],
)
def test_what_no_variable_can_mend_is_refused_when_the_file_is_read(tmp_path: Path, written: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        url_of(tmp_path, written)
    assert (caught.value.code, caught.value.key, caught.value.line) == (code, "channels.a.url", 10)


@pytest.mark.parametrize("written", ["${A", "${A} no base64", "x!${A}"])
def test_a_secret_that_no_variable_can_mend_is_refused_and_not_shown(tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"channels: {{a: {{kind: webhook, url: 'http://h.test', secret: '{written}'}}}}")
    assert (caught.value.key, caught.value.line, caught.value.value) == ("channels.a.secret", 10, "")
    assert written not in caught.value.message


@pytest.mark.parametrize("environ", [{}, {"TOKEN": ""}])
def test_to_deliver_an_unset_or_empty_variable_is_refused_with_file_line_and_key(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    settings = read(tmp_path, "channels:", "  a:", "    kind: webhook", "    url: 'https://h.test/${TOKEN}'")
    error = refusal_of(settings, environ)
    assert (error.code, error.file, error.line, error.key) == (
        "config_variable",
        str(tmp_path / "rearguard.yaml"),
        13,
        "channels.a.url",
    )
    assert error.message == (
        f'{tmp_path / "rearguard.yaml"}:13: channels.a.url = "https://h.test/${{TOKEN}}" is not accepted; '
        "expected the environment variable TOKEN to be set and not empty"
    )


def test_the_value_of_a_variable_is_not_shown(tmp_path: Path) -> None:
    error = refusal_of(read(tmp_path, HOOK), {"TOKEN": "s3cret word"})
    assert error.code == "config_value"
    assert "s3cret" not in error.message + error.value + error.accepted + error.hint


def test_a_filled_channel_does_not_show_its_secrets_when_it_is_printed(tmp_path: Path) -> None:
    written = "channels: {a: {kind: webhook, url: 'https://h.test/${TOKEN}', secret: '${HOOK}'}}"
    channel = filled(read(tmp_path, written).channels[0], {"TOKEN": "s3cret", "HOOK": GOOD})
    assert (channel.url, channel.secret) == ("https://h.test/s3cret", GOOD)
    assert "s3cret" not in repr(channel)
    assert GOOD not in repr(channel)


def test_a_variable_is_filled_in_once(tmp_path: Path) -> None:
    channel = filled(read(tmp_path, HOOK).channels[0], {"TOKEN": "${OTHER}", "OTHER": "x"})
    assert channel.url == "https://h.test/${OTHER}"


def test_the_heartbeat_is_signed_like_a_channel(tmp_path: Path) -> None:
    beat = read(tmp_path, "heartbeat: {kind: webhook, url: 'http://h.test/', secret: '${HOOK}', every: 5 s}").heartbeat
    assert beat is not None
    assert filled(beat.channel, {"HOOK": GOOD}).secret == GOOD


def test_the_secret_of_a_heartbeat_that_is_no_webhook_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"heartbeat: {{kind: file, path: x, secret: {GOOD}}}")
    assert (caught.value.code, caught.value.key) == ("config_unknown_key", "heartbeat.secret")
    assert GOOD not in caught.value.message + caught.value.value


def test_whoever_delivers_for_long_is_refused_for_any_channel(tmp_path: Path) -> None:
    settings = read(tmp_path, "channels:", "  log: {kind: file, path: x}", "  a: {kind: webhook, url: '${URL}'}")
    refuse_unfilled(settings.channels, {"URL": "http://h.test/"})
    with pytest.raises(ConfigError, match="environment variable URL"):
        refuse_unfilled(settings.channels, {})
