"""Our own formats keep the promises that we ask of everybody's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnxruntime
import pytest
import skops.io
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from rearguard.testing.conformance import LoaderConformance

MLFLOW = Path(__file__).resolve().parents[1] / "data" / "mlflow"
ROWS = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [0, 1, 1, 1]}]}


def fitted() -> LogisticRegression:
    return LogisticRegression().fit(np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), [0, 1, 1, 0])


def broken(folder: Path, name: str) -> Path:
    (folder / "broken").mkdir()
    (folder / "broken" / name).write_bytes(b"\x00\x01 nonsense" * 10)
    return folder / "broken"


class TestOnnx(LoaderConformance):
    format_name = "onnx"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        shutil.copy(Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx", tmp_path / "model.onnx")
        return tmp_path

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        return broken(tmp_path, "model.onnx")

    @pytest.fixture
    def requests(self) -> list[dict[str, Any]]:
        return [{"inputs": [{"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1] * 6}]}]


class TestSkops(LoaderConformance):
    format_name = "sklearn-skops"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        skops.io.dump(fitted(), tmp_path / "model.skops")
        return tmp_path

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        return broken(tmp_path, "model.skops")

    @pytest.fixture
    def requests(self) -> list[dict[str, Any]]:
        return [ROWS]


class TestSafetensors(LoaderConformance):
    format_name = "safetensors"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_file({"a": np.ones((2, 3), dtype="<f4")}, tmp_path / "model.safetensors")
        return tmp_path

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        return broken(tmp_path, "model.safetensors")


class TestMlflowWithSkops(LoaderConformance):
    format_name = "mlflow"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(MLFLOW / "skops", tmp_path / "model"))

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        return broken(tmp_path, "MLmodel")

    @pytest.fixture
    def requests(self) -> list[dict[str, Any]]:
        return [ROWS]


class TestMlflowWithOnnx(TestMlflowWithSkops):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(MLFLOW / "onnx", tmp_path / "model"))

    @pytest.fixture
    def requests(self) -> list[dict[str, Any]]:
        return [{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3, 4]}]}]


class TestJoblib(LoaderConformance):
    format_name = "sklearn-joblib"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        joblib.dump(fitted(), tmp_path / "model.joblib", compress=("xz", 3))
        return tmp_path

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        return broken(tmp_path, "model.joblib")

    @pytest.fixture
    def requests(self) -> list[dict[str, Any]]:
        return [ROWS]
