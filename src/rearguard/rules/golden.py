"""Do two sets of outputs say the same? Pure comparison of Open Inference Protocol tensors within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rearguard.model.checkpoint import GoldenPolicy

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no number for these; they travel as the strings of the ProtoJSON mapping of doubles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSet:
    """Requests and the outputs that were recorded for them, in the same order."""

    requests: tuple[dict[str, Any], ...]
    answers: tuple[tuple[dict[str, Any], ...], ...]


def difference(expected: Sequence[dict[str, Any]], actual: Sequence[dict[str, Any]], policy: GoldenPolicy) -> str:
    """Empty when `actual` agrees with `expected`, else one short reason; tensors are paired by name.

    Floats agree when |actual - expected| <= atol + rtol * |expected|; not-a-number agrees with itself, an infinity
    with the same infinity. Everything else agrees when equal and of one type.
    """
    answered: Sequence[Any] = actual  # by whoever answered, so it may be anything
    if not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in answered):
        return "an output has no name"
    theirs = {t["name"]: t for t in actual}
    if len(theirs) != len(actual):
        return "an output is given twice"
    names = [t.get("name") for t in expected]
    if set(names) != set(theirs):
        return f"outputs {sorted(map(str, theirs))}, expected {sorted(map(str, names))}"
    for tensor in expected:
        reason = _compare(tensor, theirs[tensor.get("name")], policy)
        if reason:
            return reason
    return ""


def _compare(expected: dict[str, Any], actual: dict[str, Any], policy: GoldenPolicy) -> str:
    name = expected.get("name")
    for field in ("datatype", "shape"):
        if expected.get(field) != actual.get(field):
            return f"{name}: {field} {actual.get(field)}, expected {expected.get(field)}"
    ours, theirs = _flat(expected.get("data")), _flat(actual.get("data"))
    if len(ours) != len(theirs):
        return f"{name}: {len(theirs)} elements, expected {len(ours)}"
    floats = str(expected.get("datatype", "")).startswith("FP")
    for index, (want, got) in enumerate(zip(ours, theirs, strict=True)):
        same = _close(want, got, policy) if floats else type(want) is type(got) and want == got
        if not same:
            return f"{name}[{index}]: {got!r}, expected {want!r}"
    return ""


def _flat(data: Any) -> list[Any]:
    """Tensor data may be nested or flat (Open Inference Protocol, REST, tensor data)."""
    if not isinstance(data, list):
        return [data]
    leaves, rest = [], [iter(data)]
    while rest:  # not by recursion: how deep it goes, whoever answered says
        for item in rest[-1]:
            if isinstance(item, list):
                rest.append(iter(item))
                break
            leaves.append(item)
        else:
            rest.pop()
    return leaves


def _close(want: Any, got: Any, policy: GoldenPolicy) -> bool:
    want = _NON_FINITE.get(want, want) if isinstance(want, str) else want
    got = _NON_FINITE.get(got, got) if isinstance(got, str) else got
    if type(want) not in (int, float) or type(got) not in (int, float):
        return False
    try:
        want, got = float(want), float(got)
    except OverflowError:  # an integer that no double holds
        return bool(want == got)
    if math.isnan(want) or math.isnan(got):
        return math.isnan(want) and math.isnan(got)
    if math.isinf(want) or math.isinf(got):
        return bool(want == got)
    return bool(abs(got - want) <= policy.atol + policy.rtol * abs(want))
