"""When two answers to a golden request agree."""

from __future__ import annotations

from typing import Any

import pytest

from rearguard.model.checkpoint import GoldenPolicy
from rearguard.rules.golden import difference

POLICY = GoldenPolicy(rtol=0.02, atol=0.05)


def out(data: list[Any], datatype: str = "FP64", name: str = "y") -> list[dict[str, Any]]:
    return [{"name": name, "shape": [len(data)], "datatype": datatype, "data": data}]


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        # |10.25 - 10| = 0.25 <= 0.05 + 0.02 * 10 = 0.25
        (out([10.0]), out([10.25])),
        (out([-10.0]), out([-10.25])),
        (out(["NaN", "Infinity"]), out([float("nan"), float("inf")])),
        (out([3], "INT64"), out([3], "INT64")),
        (out(["a"], "BYTES"), out(["a"], "BYTES")),
        (out([1.0], name="a") + out([2.0], name="b"), out([2.0], name="b") + out([1.0], name="a")),
    ],
)
def test_answers_within_the_tolerance_agree(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> None:
    assert difference(expected, actual, POLICY) == ""


@pytest.mark.parametrize(
    ("expected", "actual", "reason"),
    [
        # The tolerance scales with the expected value: |10 - 10.26| = 0.26 > 0.05 + 0.02 * 10 = 0.25
        (out([10.0]), out([10.26]), "y[0]: 10.26, expected 10.0"),
        (out([1.0, 2.0]), out([1.0, "NaN"]), "y[1]: 'NaN', expected 2.0"),
        (out(["Infinity"]), out(["-Infinity"]), "y[0]: '-Infinity', expected 'Infinity'"),
        (out([1.0]), out([None]), "y[0]: None, expected 1.0"),
        (out([3], "INT64"), out([4], "INT64"), "y[0]: 4, expected 3"),
        (out([True], "BOOL"), out([1], "BOOL"), "y[0]: 1, expected True"),
        (out([1.0]), out([1.0], "FP32"), "y: datatype FP32, expected FP64"),
        (out([1.0]), out([1.0, 2.0]), "y: shape [2], expected [1]"),
        (out([1.0]), out([1.0], name="z"), "outputs ['z'], expected ['y']"),
        (out([1.0]), out([1.0]) + out([1.0]), "an output is given twice"),
    ],
)
def test_a_disagreement_is_named(expected: list[dict[str, Any]], actual: list[dict[str, Any]], reason: str) -> None:
    assert difference(expected, actual, POLICY) == reason


@pytest.mark.parametrize("actual", [[{"name": ["y"]}], ["y"], [5], [{}]])
def test_an_answer_of_something_else_differs_and_crashes_nothing(actual: list[Any]) -> None:
    assert difference(out([1.0]), actual, POLICY) == "an output has no name"


def test_an_integer_that_no_double_holds_differs_from_every_other() -> None:
    assert difference(out([10**400]), out([10**400 + 1]), POLICY) != ""
    assert difference(out([1.0]), out([10**400]), POLICY) != ""
    assert difference(out([10**400]), out([10**400]), POLICY) == ""


def test_data_may_be_nested_deeper_than_a_call_stack() -> None:
    deep: Any = 1.0
    for _ in range(100_000):
        deep = [deep]
    expected = [{"name": "y", "shape": [1], "datatype": "FP64", "data": [1.0]}]
    assert difference(expected, [{**expected[0], "data": deep}], POLICY) == ""


def test_nested_data_is_compared_in_row_major_order() -> None:
    flat = [{"name": "y", "shape": [2, 2], "datatype": "FP64", "data": [1.0, 2.0, 3.0, 4.0]}]
    nested = [{"name": "y", "shape": [2, 2], "datatype": "FP64", "data": [[1.0, 2.0], [3.0, 4.0]]}]
    assert difference(flat, nested, POLICY) == ""
