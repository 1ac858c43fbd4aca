"""The formats that come with the product, as light values; their entry points lead here.

Loading a model imports the module that a value names; looking at a folder imports nothing.
"""

from __future__ import annotations

from rearguard.model.model_format import ModelFormat

ONNX = ModelFormat(
    name="onnx",
    load="rearguard.loaders.onnx:load",
    suffixes=(".onnx",),
    predicts=True,
    libraries=("onnxruntime", "numpy"),
    extra="rearguard[onnx]",
)
SKOPS = ModelFormat(
    name="sklearn-skops",
    load="rearguard.loaders.skops:load",
    suffixes=(".skops",),
    predicts=True,
    libraries=("scikit-learn", "skops", "numpy", "scipy"),
    extra="rearguard[sklearn]",
)
SAFETENSORS = ModelFormat(
    name="safetensors",
    load="rearguard.loaders.safetensors:load",
    suffixes=(".safetensors",),
    predicts=False,
    tells_state=True,
)
TORCH_WEIGHTS = ModelFormat(
    name="torch-weights",
    load="rearguard.loaders.torch_weights:load",
    suffixes=(".pt", ".pth", ".bin"),
    predicts=False,
    tells_state=True,
    libraries=("torch",),
    extra="rearguard[torch]",
)
MLFLOW = ModelFormat(
    name="mlflow",
    load="rearguard.loaders.mlflow:load",
    suffixes=("MLmodel",),
    predicts=True,
    libraries=("onnxruntime", "scikit-learn", "skops", "numpy"),
    extra="rearguard[mlflow]",
)
JOBLIB = ModelFormat(
    name="sklearn-joblib",
    load="rearguard.loaders.joblib:load",
    suffixes=(".joblib", ".pkl", ".pickle"),
    predicts=True,
    runs_code=True,
    libraries=("scikit-learn", "joblib", "numpy", "scipy"),
    extra="rearguard[sklearn,scan]",
)
