"""Do two sets of outputs say the same? Pure comparison of Open Inference Protocol tensors within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rearguard.model.checkpoint import GoldenPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSet:
    """Requests and the outputs that were recorded for them, in the same order."""

    requests: tuple[dict[str, Any], ...]
    answers: tuple[tuple[dict[str, Any], ...], ...]


def difference(expected: Sequence[dict[str, Any]], actual: Sequence[dict[str, Any]], policy: GoldenPolicy) -> str:
    """Empty when equal: |a - b| <= atol + rtol * |expected| for floating datatypes, exactly otherwise; else why not.

    Tensors are matched by name; an extra or missing one is a difference. NaN equals NaN.
    """
    wanted = {t.get("name"): t for t in expected}
    found = {t.get("name"): t for t in actual}
    if wanted.keys() != found.keys():
        return f"outputs are {sorted(map(str, found))}, recorded were {sorted(map(str, wanted))}"
    for name, tensor in wanted.items():
        other = found[name]
        for key in ("datatype", "shape"):
            if tensor.get(key) != other.get(key):
                return f"{name}: {key} is {other.get(key)}, recorded was {tensor.get(key)}"
        a, b = _flat(tensor.get("data")), _flat(other.get("data"))
        if len(a) != len(b):
            return f"{name}: {len(b)} values, recorded were {len(a)}"
        floating = str(tensor.get("datatype", "")).startswith("FP")
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            if not _same(x, y, policy if floating else None):
                return f"{name}[{index}] is {y!r}, recorded was {x!r}"
    return ""


def _flat(data: Any) -> list[Any]:
    """Tensor data may be nested or flat (Open Inference Protocol, REST, tensor data)."""
    if not isinstance(data, list):
        return [data]
    return [leaf for item in data for leaf in (_flat(item) if isinstance(item, list) else [item])]


def _same(expected: Any, actual: Any, policy: GoldenPolicy | None) -> bool:
    if policy is None or isinstance(expected, str) or isinstance(actual, str):
        return bool(expected == actual)
    try:
        x, y = float(expected), float(actual)
    except (TypeError, ValueError):
        return bool(expected == actual)
    if math.isnan(x) or math.isnan(y):
        return math.isnan(x) and math.isnan(y)
    if math.isinf(x) or math.isinf(y):
        return x == y
    return abs(x - y) <= policy.atol + policy.rtol * abs(x)
