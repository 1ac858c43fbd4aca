"""Open Inference Protocol (V2 REST) tensors to and from numpy arrays.

Source: Open Inference Protocol, `specification/protocol/inference_rest.md`, "Tensor Data" and "Tensor Data Types".
A wrong tensor is the client's mistake (`UsageError` `bad_tensor`, HTTP 400), never a failure of the model. BF16 has
no numpy type and the binary-data extension is not supported; both are refused by name. JSON has no number for
not-a-number and infinity: an input must not carry them, an output carries them as the strings `NaN`, `Infinity` and
`-Infinity` (the ProtoJSON mapping of doubles).

numpy is imported where it is used: an installation without a model server does not need it.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any

from rearguard.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_NUMPY_NAMES = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_V2_NAMES = {numpy_name: v2_name for v2_name, numpy_name in _NUMPY_NAMES.items()}
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def datatype_of(array: Array) -> str:
    """The V2 datatype name of an array; TypeError when the protocol has none for it."""
    if array.dtype.kind in "OUS":
        return "BYTES"
    try:
        return _V2_NAMES[array.dtype.name]
    except KeyError:
        raise TypeError(f"no V2 datatype for numpy {array.dtype}") from None


def decode_inputs(request: dict[str, Any]) -> dict[str, Array]:
    """The input tensors of a V2 request by name, in the order given; BYTES become object arrays of `str`.

    Raises `UsageError` (`bad_tensor`).
    """
    tensors = request.get("inputs")
    if not isinstance(tensors, list) or not tensors:
        raise _bad("the request has no inputs", "send a non-empty list of tensors under 'inputs'")
    decoded: dict[str, Array] = {}
    for tensor in tensors:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise _bad("an input has no name", "each input needs name, shape, datatype and data")
        if tensor["name"] in decoded:
            raise _bad(f"the input {tensor['name']!r} is given twice")
        decoded[tensor["name"]] = _decode(tensor)
    return decoded


def requested_outputs(request: dict[str, Any]) -> tuple[str, ...]:
    """Names of the outputs that a V2 request asks for; empty means all. Raises `UsageError` (`bad_tensor`)."""
    wanted = request.get("outputs") or []
    if not isinstance(wanted, list):
        raise _bad("outputs is not a list")
    if not all(isinstance(w, dict) and isinstance(w.get("name"), str) for w in wanted):
        raise _bad("a requested output has no name")
    return tuple(w["name"] for w in wanted)


def encode_outputs(outputs: dict[str, Array]) -> list[dict[str, Any]]:
    """V2 tensors (name, shape, datatype, flat row-major data) of named arrays; TypeError for what is no tensor."""
    return [_encode(name, array) for name, array in outputs.items()]


def _bad(message: str, hint: str = "") -> UsageError:
    return UsageError("bad_tensor", message, hint)


def _decode(tensor: dict[str, Any]) -> Array:
    import numpy as np

    name, datatype, shape = tensor["name"], tensor.get("datatype"), tensor.get("shape")
    if datatype != "BYTES" and datatype not in _NUMPY_NAMES:
        accepted = ", ".join((*_NUMPY_NAMES, "BYTES"))
        raise _bad(f"input {name!r} has the datatype {datatype!r}", f"accepted: {accepted}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise _bad(f"input {name!r} has the shape {shape!r}", "a list of whole numbers, none below 0")
    if "binary_data_size" in (tensor.get("parameters") or {}):
        raise _bad(f"input {name!r} uses the binary data extension", "send the numbers as JSON under 'data'")
    flat = _flatten(name, tensor.get("data"), shape)
    if len(flat) != math.prod(shape):
        raise _bad(f"input {name!r} has {len(flat)} elements, its shape {shape} needs {math.prod(shape)}")
    _check_types(name, datatype, flat)
    if datatype == "BYTES":
        array: Array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return array.reshape(shape)
    try:
        # An overflow to infinity is reported below, by name; numpy's warning about it would say less.
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=_NUMPY_NAMES[datatype])
    except OverflowError:
        raise _bad(f"input {name!r} has a number that {datatype} cannot hold") from None
    if datatype in _FLOATS and not np.isfinite(array).all():
        raise _bad(f"input {name!r} has a number that is not finite as {datatype}")
    return array.reshape(shape)


def _flatten(name: str, data: Any, shape: list[int]) -> list[Any]:
    """Row-major flat data. The protocol allows flat or nested lists; a nested one must have exactly `shape`."""
    if not isinstance(data, list):
        raise _bad(f"input {name!r} has no data list")
    if not (data and isinstance(data[0], list)):
        return data
    level = data
    for depth, length in enumerate(shape):
        if depth:
            if not all(isinstance(row, list) and len(row) == length for row in level):
                raise _bad(f"input {name!r} is nested unlike its shape {shape}")
            level = list(chain.from_iterable(level))
        elif len(level) != length:
            raise _bad(f"input {name!r} is nested unlike its shape {shape}")
    return level


def _check_types(name: str, datatype: str, flat: list[Any]) -> None:
    accepted: frozenset[type]
    if datatype == "BYTES":
        accepted = frozenset({str})
    elif datatype == "BOOL":
        accepted = frozenset({bool})
    elif datatype in _FLOATS:
        accepted = frozenset({int, float})
    else:
        accepted = frozenset({int})
    wrong = set(map(type, flat)) - accepted
    if wrong:
        found = min(t.__name__ for t in wrong)
        raise _bad(f"input {name!r} is {datatype} and has an element of type {found}")


def _encode(name: str, array: Array) -> dict[str, Any]:
    import numpy as np

    array = np.asarray(array)
    datatype = datatype_of(array)
    flat: list[Any] = array.reshape(-1).tolist()
    if datatype == "BYTES":
        flat = [_text(name, value) for value in flat]
    elif datatype in _FLOATS and not np.isfinite(array).all():
        flat = [value if math.isfinite(value) else _non_finite_name(value) for value in flat]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": flat}


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    raise TypeError(f"output {name!r} has an element of type {type(value).__name__}: not a tensor of text")


def _non_finite_name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
