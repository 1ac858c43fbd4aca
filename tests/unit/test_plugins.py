"""Adapters load by entry-point name, ours like anybody's."""

from __future__ import annotations

from pathlib import Path

import pytest

from rearguard import plugins
from rearguard.adapters.channels import webhook
from rearguard.errors import ConfigError


def provide(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str, *, package: str = "other") -> None:
    """Install a distribution that provides one channel."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rearguard.channels]\n{entry}\n")
    monkeypatch.syspath_prepend(str(folder))


def refusal(group: str, name: str) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        plugins.load(group, name)
    return refused.value


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("rearguard.targets", ("command", "oip")),
        ("rearguard.telemetry", ("jsonl",)),
        ("rearguard.channels", ("command", "file", "webhook")),
        (
            "rearguard.loaders",
            ("mlflow", "onnx", "safetensors", "sklearn-joblib", "sklearn-skops", "torch-weights"),
        ),
    ],
)
def test_the_built_in_adapters_are_installed(group: str, names: tuple[str, ...]) -> None:
    assert plugins.installed(group) == names


def test_a_built_in_adapter_loads_by_its_name() -> None:
    assert plugins.load("rearguard.channels", "webhook") is webhook.build


def test_an_adapter_of_somebody_else_loads_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_pager.py").write_text("def build(settings):\n    return 'a pager'\n")
    provide(tmp_path, monkeypatch, "pager = other_pager:build")
    assert plugins.load("rearguard.channels", "pager")(None) == "a pager"


def test_an_unknown_adapter_is_refused_with_those_that_are_installed() -> None:
    error = refusal("rearguard.channels", "pigeon")
    assert error.code == "adapter_unknown"
    assert "installed: command, file, webhook" in error.message


def test_a_name_of_another_group_is_unknown() -> None:
    assert refusal("rearguard.targets", "webhook").code == "adapter_unknown"


def test_a_name_that_two_packages_provide_is_refused_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide(tmp_path, monkeypatch, "webhook = other_webhook:build")
    error = refusal("rearguard.channels", "webhook")
    assert error.code == "adapter_ambiguous"
    assert "other_webhook:build, rearguard.adapters.channels.webhook:build" in error.message


@pytest.mark.parametrize("entry", ["pager = absent_package:build", "pager = json:absent"])
def test_an_adapter_that_cannot_be_imported_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    provide(tmp_path, monkeypatch, entry)
    assert refusal("rearguard.channels", "pager").code == "adapter_broken"
