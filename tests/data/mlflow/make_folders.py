"""How the folders beside this file were made: by MLflow itself, which the product and its tests do not need.

    python -m venv /tmp/mlflow && /tmp/mlflow/bin/pip install mlflow-skinny==3.17.2 scikit-learn==1.9.1 skops onnx \
        onnxruntime pandas && cd tests/data/mlflow && /tmp/mlflow/bin/python make_folders.py
"""

from __future__ import annotations

import mlflow.onnx
import mlflow.sklearn
import numpy as np
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression

inputs = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
model = LogisticRegression().fit(inputs, [0, 1, 1, 0])
for how in ("skops", "cloudpickle"):
    mlflow.sklearn.save_model(model, how, serialization_format=how, pip_requirements=["scikit-learn"])

# y = x @ [[1], [2]]
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    [helper.make_tensor("w", TensorProto.FLOAT, [2, 1], [1.0, 2.0])],
)
multiplies = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
multiplies.ir_version = 8
mlflow.onnx.save_model(multiplies, "onnx", pip_requirements=["onnxruntime"])
