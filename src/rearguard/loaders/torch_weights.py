"""PyTorch weights (`torch.save` of tensors), read by `torch.load(weights_only=True, mmap=True)` and in no other way.

That reader builds tensors and plain containers and refuses every other global of the file, so nothing of it is executed;
what it refuses is refused here (`untrusted_types`). A loaded state answers no requests; it tells its digest, which is that
of the same tensors in a safetensors file.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from rearguard.errors import RefusedError, UsageError
from rearguard.loaders import state

SUFFIXES = (".pt", ".pth", ".bin")
_MAX_DEPTH = 64
_TYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip


class TorchState:
    """What the files hold: tensors by name, and the plain values beside them."""

    def __init__(self, tensors: dict[str, torch.Tensor], values: dict[str, str]) -> None:
        self._tensors = tensors
        self._values = values

    def state_sha256(self) -> str:
        """As `rearguard.loaders.state.digest`; a plain value counts as its JSON text, of the type `JSON`."""
        found = [_tensor_state(name, tensor) for name, tensor in self._tensors.items()]
        found += [
            state.TensorState(name, "JSON", (), memoryview(text.encode("utf-8"))) for name, text in self._values.items()
        ]
        return state.digest(found)


def load(path: Path, trusted_types: tuple[str, ...]) -> TorchState:
    """All tensors of the folder's `*.pt`, `*.pth` and `*.bin`; `trusted_types` has no meaning here.

    Raises `RefusedError` `untrusted_types` for everything that is not tensors and plain containers; nothing of it has run
    then. `UsageError`: `unknown_format`, `model_unreadable`, `unsupported_model` (a value that has no state).
    """
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError("unknown_format", f"{path} holds no weights", f"accepted: {', '.join(SUFFIXES)}")
    torch.set_num_threads(1)
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, str] = {}
    for file in files:
        before = len(tensors) + len(values)
        found_tensors, found_values = _flat(file, _read(file))
        tensors.update(found_tensors)
        values.update(found_values)
        if len(tensors) + len(values) != before + len(found_tensors) + len(found_values):
            raise UsageError(
                "model_unreadable", f"{file.name} holds a name that another file holds too", "keep one set"
            )
    if not tensors:
        raise UsageError("unsupported_model", f"{files[0].name} holds no tensor", "save the state_dict")
    return TorchState(tensors, values)


def _read(file: Path) -> Any:
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # written before torch 1.6: no zip to map
    except pickle.UnpicklingError as error:
        raise RefusedError(
            "untrusted_types",
            f"{file.name} is more than weights{_names_in(error)}",
            "save the weights alone: torch.save(model.state_dict(), ...), better still as safetensors",
        ) from error
    except Exception as error:  # a broken archive raises whatever the reader was at
        raise UsageError("model_unreadable", f"{file.name}: {_first_line(error)}", "save it again") from error


def _flat(file: Path, loaded: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and plain values by name. A name at the top is itself, one further down the JSON array of its path."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, str] = {}
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), loaded)]
    while waiting:
        where, value = waiting.pop()
        name = where[0] if len(where) == 1 and isinstance(where[0], str) else json.dumps(list(where))
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is None or isinstance(value, (str, int, float, bool)):
            values[name] = json.dumps(value)
        elif len(where) < _MAX_DEPTH and isinstance(value, dict) and all(isinstance(k, (str, int)) for k in value):
            waiting.extend(((*where, key), item) for key, item in value.items())
        elif len(where) < _MAX_DEPTH and isinstance(value, (list, tuple)):
            waiting.extend(((*where, index), item) for index, item in enumerate(value))
        else:
            raise UsageError(
                "unsupported_model", f"{file.name}: {name} is a {type(value).__name__}", "save the state_dict alone"
            )
    return tensors, values


def _tensor_state(name: str, tensor: torch.Tensor) -> state.TensorState:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.is_quantized or dtype not in _TYPE_NAMES:
        raise UsageError("unsupported_model", f"{name} is {dtype} ({tensor.layout})", "save dense tensors")
    row_major = tensor.detach().contiguous().resolve_conj().resolve_neg()
    content: Any = row_major.reshape(-1).view(torch.uint8).numpy()
    return state.TensorState(name, _TYPE_NAMES[dtype], tuple(row_major.shape), memoryview(content))


def _names_in(error: Exception) -> str:
    """What torch would not build, without its advice to load the file unguarded."""
    found = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
    return f": it names {found[1]}" if found else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
