"""ONNX models through onnxruntime, on the CPU with one thread, so that an answer repeats (R17).

An ONNX file holds a graph and numbers, no code. The folder holds exactly one `*.onnx`; external data files may lie
beside it and are found by onnxruntime itself, which refuses a reference that leaves the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from rearguard.errors import UsageError
from rearguard.loaders.tensors import datatype_of

_NUMPY_NAMES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

Array = np.ndarray[Any, Any]


class OnnxModel:
    """One inference session."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = {i.name: i for i in session.get_inputs()}
        self._outputs = [o.name for o in session.get_outputs()]

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs of the graph; `UsageError` (`bad_tensor`) when an input is not what the graph declares."""
        self._check(inputs)
        results = self._session.run(self._outputs, inputs)
        return dict(zip(self._outputs, results, strict=True))

    def example_inputs(self) -> dict[str, Array] | None:
        """Zeros of each declared shape, 1 for a dimension the graph leaves open; text inputs are empty strings."""
        return {
            name: np.full(_example_shape(declared.shape), "" if dtype == "object" else 0, dtype=dtype)
            for name, declared in self._inputs.items()
            for dtype in (_NUMPY_NAMES[declared.type],)
        }

    def _check(self, inputs: dict[str, Array]) -> None:
        if set(inputs) != set(self._inputs):
            raise UsageError(
                "bad_tensor",
                f"inputs {sorted(inputs)}, the model needs {sorted(self._inputs)}",
                f'set "name": "{next(iter(self._inputs))}"'
                if len(inputs) == len(self._inputs) == 1
                else "send exactly the inputs that the model declares",
            )
        for name, array in inputs.items():
            declared = self._inputs[name]
            wanted = np.dtype(_NUMPY_NAMES[declared.type])
            if array.dtype != wanted:
                raise UsageError(
                    "bad_tensor",
                    f"input {name!r} is {array.dtype}, the model needs {declared.type}",
                    f'use "datatype": "{datatype_of(np.empty(0, wanted))}"',
                )
            fits = len(declared.shape) == array.ndim and all(
                not isinstance(want, int) or want == got for want, got in zip(declared.shape, array.shape, strict=True)
            )
            if not fits:
                raise UsageError(
                    "bad_tensor",
                    f"input {name!r} has the shape {list(array.shape)}, the model needs {declared.shape}",
                    "a name or None in the model's shape stands for any size; the other sizes are fixed",
                )


def load(path: Path, trusted_types: tuple[str, ...]) -> OnnxModel:
    """The one ONNX model in the folder `path`; `trusted_types` has no meaning here.

    Raises `UsageError`: `unknown_format` (not exactly one `*.onnx`), `model_unreadable` (onnxruntime refuses the
    bytes), `unsupported_model` (an input or output that is no V2 tensor).
    """
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        raise UsageError("unknown_format", f"{path} holds {len(files)} files named *.onnx", "keep exactly one")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # 3 = errors: warnings about unused initializers are no news to an operator
    try:
        session = ort.InferenceSession(str(files[0]), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen classes that share no base but Exception
        raise UsageError(
            "model_unreadable", f"{files[0].name}: {_first_line(error)}", "export the model again"
        ) from error
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        if tensor.type not in _NUMPY_NAMES:
            raise UsageError(
                "unsupported_model",
                f"{files[0].name}: {tensor.name!r} is {tensor.type}, which is no V2 tensor",
                'convert with options={id(model): {"zipmap": False}}'
                if tensor.type.startswith("seq(map(")
                else "export it with tensors only",
            )
    return OnnxModel(session)


def _example_shape(shape: list[Any]) -> list[int]:
    return [n if isinstance(n, int) and n >= 0 else 1 for n in shape]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
