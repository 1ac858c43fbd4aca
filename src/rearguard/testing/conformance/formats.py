"""What every model format promises; see the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rearguard.errors import (
    RearguardError,
    UsageError,
)
from rearguard.loaders import Model, answer, get_format, get_loader
from rearguard.loaders.detection import detect
from rearguard.model.model_format import ModelFormat


class LoaderConformance:
    """The promises of a model format: its `ModelFormat`, and the loader that it names."""

    format_name = ""
    """Override: the entry point's name in the group `rearguard.loaders`."""
    sandbox_memory_bytes = 4 << 30
    """Of a format that runs code."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Override: a folder that holds one good model."""
        raise NotImplementedError("override the fixture `folder`")

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        """Override: a folder of the same file names with bytes that are no model."""
        raise NotImplementedError("override the fixture `broken_folder`")

    @pytest.fixture
    def requests(self) -> list[dict[str, Any]]:
        """Override for a format that predicts: V2 requests that the model answers."""
        return []

    @property
    def format(self) -> ModelFormat:
        """The value behind the entry point."""
        return get_format(self.format_name)

    def probe(self, folder: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """What a fresh process says of the folder, as the product asks it."""
        order: dict[str, Any] = {"path": str(folder), "format": self.format_name, "requests": requests}
        if self.format.runs_code:
            order["sandbox"] = {"memory_bytes": self.sandbox_memory_bytes, "cpu_s": 60}
        command = [sys.executable, "-P", "-m", "rearguard.loaders.probe"]
        ended = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        said: dict[str, Any] = json.loads(ended.stdout)
        return said

    def test_its_description_imports_no_library(self) -> None:
        """The officer looks at formats without loading what they need."""
        program = (
            "import sys; from rearguard.loaders import get_format; from importlib.metadata import packages_distributions\n"
            f"found = get_format({self.format_name!r}); loaded = {{n.partition('.')[0] for n in sys.modules}}\n"
            "owners = packages_distributions()\n"
            "print(sorted(n for n in loaded if set(owners.get(n, ())) & set(found.libraries)))\n"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert ended.stdout.strip() == "[]", ended.stderr

    def test_its_folder_is_recognised(self, folder: Path) -> None:
        """By names and first bytes, and as nothing else."""
        assert detect(folder, (self.format_name,)).name == self.format_name

    def test_two_fresh_processes_agree(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """R17: the same state, the same answers."""
        first, second = self.probe(folder, requests), self.probe(folder, requests)
        assert first["ok"], first
        assert (first["state_sha256"], first["answers"]) == (second["state_sha256"], second["answers"])

    def test_something_can_be_compared(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """It answers, or tells its state, as its description says; with neither nothing could ever be proven."""
        said = self.probe(folder, requests)
        assert bool(said["answers"]) == self.format.predicts
        assert bool(re.fullmatch("[0-9a-f]{64}", said["state_sha256"])) == self.format.tells_state
        assert said["answers"] or said["state_sha256"]

    def test_its_libraries_are_named_with_their_versions(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """What loaded the model is recorded with the proof."""
        assert bool(self.probe(folder, requests)["libraries"]) == bool(self.format.libraries)

    def test_loading_changes_nothing_in_the_folder(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """It is what was hashed, and read-only in the store."""
        before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}
        self.probe(folder, requests)
        assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))} == before

    def test_broken_bytes_are_refused_in_words(self, broken_folder: Path) -> None:
        """The library's own exception stops at the loader."""
        said = self.probe(broken_folder, [])
        assert (said["ok"], said["code"] in ("load_failed", "model_failed")) == (False, False), said

    def test_an_empty_folder_is_refused_in_words(self, tmp_path: Path) -> None:
        """As any other mistake."""
        (tmp_path / "empty").mkdir()
        assert self.probe(tmp_path / "empty", [])["code"] == "unknown_format"

    def test_a_request_that_it_does_not_know_is_the_clients_mistake(self, folder: Path) -> None:
        """`bad_tensor`, never a failure of the model."""
        if not self.format.predicts or self.format.runs_code:
            pytest.skip("this format answers nothing, or not in this process")
        model = get_loader(self.format_name)(folder, ())
        assert isinstance(model, Model)
        wrong = {"name": "no-such-input", "shape": [1, 1, 1, 1], "datatype": "BOOL", "data": [True]}
        with pytest.raises(UsageError) as refused:
            answer(model, {"inputs": [wrong]})
        assert refused.value.code == "bad_tensor"

    def test_code_is_run_in_the_sandbox_only(self, folder: Path) -> None:
        """A format that runs code refuses to be loaded in any other process."""
        if not self.format.runs_code:
            pytest.skip("this format runs no code")
        with pytest.raises(RearguardError) as refused:
            get_loader(self.format_name)(folder, ())
        assert refused.value.code == "sandbox_unavailable"
