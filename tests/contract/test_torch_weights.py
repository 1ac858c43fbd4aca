"""PyTorch weights, with the real library: what is only weights is read, everything else is refused and nothing has run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malicious import shapes
from rearguard.errors import RefusedError, UsageError
from rearguard.loaders.detection import detect
from rearguard.testing.conformance import LoaderConformance

pytestmark = pytest.mark.long

RequirePart = Callable[[str, bool, str], None]


@pytest.fixture(autouse=True)
def torch_is_there(require_part: RequirePart) -> None:
    require_part("torch", importlib.util.find_spec("torch") is not None, "`make test-long` installs it")


def probe(format_name: str, folder: Path) -> dict[str, Any]:
    order = json.dumps({"path": str(folder), "format": format_name, "requests": []})
    command = [sys.executable, "-P", "-m", "rearguard.loaders.probe"]
    ended = subprocess.run(command, input=order, capture_output=True, text=True, timeout=100)
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


def tensors() -> dict[str, Any]:
    import torch

    return {
        "layer.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "eighth": torch.ones(4).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(5),
        "nothing": torch.zeros(0, 3),
        "turned": torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
        "mask": torch.tensor([True, False]),
        "complex": torch.ones(2, dtype=torch.complex64),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import torch

    (tmp_path / "weights").mkdir()
    torch.save(tensors(), tmp_path / "weights" / "model.pt")
    return tmp_path / "weights"


class TestTorchWeights(LoaderConformance):
    format_name = "torch-weights"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        import torch

        (tmp_path / "weights").mkdir()
        torch.save(tensors(), tmp_path / "weights" / "model.pt")
        return tmp_path / "weights"

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "model.pt").write_bytes(b"PK\x03\x04 nonsense")
        return tmp_path / "broken"


def test_the_same_tensors_have_one_state_in_both_formats(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "other").mkdir()
    save_file({k: v.contiguous() for k, v in tensors().items()}, tmp_path / "other" / "model.safetensors")
    digests = {probe("torch-weights", folder)["state_sha256"], probe("safetensors", tmp_path / "other")["state_sha256"]}
    assert len(digests) == 1


def test_the_form_before_torch_1_6_is_read(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.ones(3)}, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    assert detect(tmp_path).name == "torch-weights"
    assert len(probe("torch-weights", tmp_path)["state_sha256"]) == 64


def test_plain_values_beside_the_tensors_count(tmp_path: Path) -> None:
    import torch

    digests = set()
    for step in (1, 2):
        (tmp_path / str(step)).mkdir()
        torch.save({"model": {"a": torch.ones(3)}, "step": step}, tmp_path / str(step) / "model.pt")
        digests.add(probe("torch-weights", tmp_path / str(step))["state_sha256"])
    assert len(digests) == 2


def test_a_whole_module_is_more_than_weights(tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    said = probe("torch-weights", tmp_path)
    assert (said["code"], "torch.nn.modules.linear.Linear" in said["message"]) == ("untrusted_types", True)
    assert "weights_only" not in said["message"]


@pytest.mark.parametrize("wrapped", ["zip", "legacy", "plain"])
def test_none_of_34_payloads_runs(tmp_path: Path, wrapped: str) -> None:
    """As a plain file, behind the magic number of the old form, and as data.pkl of the new one."""
    import torch

    canaries = tmp_path / "canaries"
    canaries.mkdir()
    program = (
        "import sys; from pathlib import Path; from rearguard.loaders import get_loader\n"
        "load = get_loader('torch-weights'); codes = []\n"
        "for folder in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        load(folder, ())\n"
        "    except Exception as e:\n        codes.append(getattr(e, 'code', repr(e)))\n"
        "import json; print(len(codes), json.dumps(sorted(set(codes))))\n"
    )
    models = tmp_path / "models"
    models.mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pt")
    for shape in shapes(canaries, 9):
        folder = models / shape.name
        folder.mkdir()
        if wrapped == "plain":
            (folder / "model.pt").write_bytes(shape.content)
        elif wrapped == "legacy":
            (folder / "model.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + shape.content)
        else:
            import zipfile

            with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(folder / "model.pt", "w") as evil:
                for name in good.namelist():
                    evil.writestr(name, shape.content if name.endswith("data.pkl") else good.read(name))
    ended = subprocess.run([sys.executable, "-c", program, str(models)], capture_output=True, text=True, timeout=100)
    count, _, codes = ended.stdout.strip().partition(" ")
    assert (count, set(json.loads(codes)) <= {"untrusted_types", "model_unreadable"}) == ("34", True), ended
    assert list(canaries.iterdir()) == []


def test_a_pickle_named_like_weights_is_refused_by_the_look(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "model.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RefusedError):
        detect(tmp_path)


def test_weights_without_a_tensor_are_no_model(tmp_path: Path) -> None:
    import torch

    from rearguard.loaders.torch_weights import load

    torch.save({"step": 1}, tmp_path / "model.pt")
    with pytest.raises(UsageError) as refused:
        load(tmp_path, ())
    assert refused.value.code == "unsupported_model"
