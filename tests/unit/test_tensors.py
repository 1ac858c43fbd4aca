"""Open Inference Protocol tensors: what is decoded and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rearguard.errors import UsageError
from rearguard.loaders.tensors import decode_inputs, encode_outputs, requested_outputs


def tensor(datatype: str = "FP32", shape: list[Any] | None = None, data: Any = None, name: str = "x") -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype,
        "shape": [2] if shape is None else shape,
        "data": [1, 2] if data is None else data,
    }


def decode(one: dict[str, Any]) -> np.ndarray[Any, Any]:
    return decode_inputs({"inputs": [one]})[one["name"]]


# Largest and smallest values by the widths that the protocol's names state.
EXTREMES = [
    ("INT8", "int8", [-128, 127]),
    ("INT16", "int16", [-32768, 32767]),
    ("INT32", "int32", [-2147483648, 2147483647]),
    ("INT64", "int64", [-9223372036854775808, 9223372036854775807]),
    ("UINT8", "uint8", [0, 255]),
    ("UINT16", "uint16", [0, 65535]),
    ("UINT32", "uint32", [0, 4294967295]),
    ("UINT64", "uint64", [0, 18446744073709551615]),
    ("FP16", "float16", [-65504.0, 65504.0]),
    ("FP32", "float32", [0.5, -1.25]),
    ("FP64", "float64", [1e308, -1e-308]),
    ("BOOL", "bool", [True, False]),
]


@pytest.mark.parametrize(("datatype", "numpy_name", "data"), EXTREMES)
def test_every_datatype_survives_both_ways(datatype: str, numpy_name: str, data: list[Any]) -> None:
    array = decode(tensor(datatype, [2], data))
    assert array.dtype == np.dtype(numpy_name)
    assert encode_outputs({"x": array}) == [{"name": "x", "shape": [2], "datatype": datatype, "data": data}]


def test_bytes_are_text_both_ways() -> None:
    array = decode(tensor("BYTES", [2, 1], ["å", ""]))
    assert array.shape == (2, 1)
    assert encode_outputs({"x": array})[0]["data"] == ["å", ""]


def test_data_is_row_major() -> None:
    assert decode(tensor("INT32", [2, 3], [1, 2, 3, 4, 5, 6]))[1].tolist() == [4, 5, 6]


def test_nested_data_is_accepted_when_it_has_the_shape() -> None:
    assert decode(tensor("INT32", [2, 1, 2], [[[1, 2]], [[3, 4]]])).tolist() == [[[1, 2]], [[3, 4]]]


def test_a_scalar_has_an_empty_shape() -> None:
    assert decode(tensor("INT64", [], [16000])).shape == ()


def test_inputs_keep_their_order() -> None:
    inputs = decode_inputs({"inputs": [tensor(name="b"), tensor(name="a")]})
    assert list(inputs) == ["b", "a"]


REFUSED = {
    "no inputs": {"inputs": []},
    "inputs no list": {"inputs": {"x": 1}},
    "input without a name": {"inputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]},
    "given twice": {"inputs": [tensor(), tensor()]},
    "unknown datatype": {"inputs": [tensor("BF16")]},
    "negative dimension": {"inputs": [tensor(shape=[-1])]},
    "boolean dimension": {"inputs": [tensor(shape=[True], data=[1])]},
    "too few elements": {"inputs": [tensor(shape=[3])]},
    "no data": {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]},
    "ragged": {"inputs": [tensor(shape=[2, 2], data=[[1, 2], [3]])]},
    "nested unlike the shape": {"inputs": [tensor(shape=[4], data=[[1, 2], [3, 4]])]},
    "text in numbers": {"inputs": [tensor(data=[1, "2"])]},
    "boolean in numbers": {"inputs": [tensor("INT8", data=[True, False])]},
    "fraction in integers": {"inputs": [tensor("INT64", data=[1.0, 2.0])]},
    "number in booleans": {"inputs": [tensor("BOOL", data=[0, 1])]},
    "number in text": {"inputs": [tensor("BYTES", data=["a", 1])]},
    "null": {"inputs": [tensor(data=[1, None])]},
    "integer above its width": {"inputs": [tensor("UINT8", data=[0, 256])]},
    "integer below its width": {"inputs": [tensor("UINT8", data=[0, -1])]},
    "integer above 64 bits as FP64": {"inputs": [tensor("FP64", data=[0, 10**400])]},
    "above FP32": {"inputs": [tensor("FP32", data=[0, 1e39])]},
    "not a number": {"inputs": [tensor("FP64", data=[0, float("nan")])]},
    "infinite": {"inputs": [tensor("FP64", data=[0, float("inf")])]},
    "binary extension": {"inputs": [{**tensor(), "parameters": {"binary_data_size": 8}}]},
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_tensor_is_the_clients_mistake(request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        decode_inputs(request_)
    assert refused.value.code == "bad_tensor"


def test_requested_outputs_are_named() -> None:
    assert requested_outputs({"outputs": [{"name": "label"}]}) == ("label",)


def test_not_a_number_in_an_output_is_valid_json() -> None:
    data = encode_outputs({"y": np.array([np.nan, np.inf, -np.inf, 1.5])})[0]["data"]
    assert data == ["NaN", "Infinity", "-Infinity", 1.5]
    json.dumps(data, allow_nan=False)


def test_an_array_of_mixed_objects_is_no_tensor() -> None:
    with pytest.raises(TypeError):
        encode_outputs({"y": np.array([{1: 0.5}], dtype=object)})


def test_complex_numbers_are_no_tensor() -> None:
    with pytest.raises(TypeError):
        encode_outputs({"y": np.array([1j])})
