"""What is taken for a stored golden set, whoever made it: everything else is refused, and nothing crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rearguard.checkpoints import golden
from rearguard.errors import IntegrityError, UsageError
from rearguard.rules.golden import GoldenSet

REQUEST = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1]}]}
OUTPUT = {"name": "y", "shape": [1], "datatype": "FP64", "data": [0.1]}


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def answered(*outputs: Any) -> dict[str, Any]:
    return {"requests": [REQUEST], "answers": [list(outputs)]}


HOSTILE: dict[str, Any] = {
    "no object": [1],
    "no answers": {"requests": [REQUEST]},
    "requests that are a number": {"requests": 5, "answers": []},
    "no request at all": {"requests": [], "answers": []},
    "more than a thousand": {"requests": [REQUEST] * 1001, "answers": [[OUTPUT]] * 1001},
    "fewer answers than requests": {"requests": [REQUEST, REQUEST], "answers": [[OUTPUT]]},
    "a request that is a text": {"requests": ["a"], "answers": [[OUTPUT]]},
    "a request without inputs": {"requests": [{}], "answers": [[OUTPUT]]},
    "inputs that are a mapping": {"requests": [{"inputs": {}}], "answers": [[OUTPUT]]},
    "an answer that is a text": {"requests": [REQUEST], "answers": ["abc"]},
    "an answer that is a mapping": {"requests": [REQUEST], "answers": [{"name": "y"}]},
    "an output that is a number": answered(5),
    "an output without a name": answered({}),
    "a name that is a list": answered({"name": ["u"]}),
    "an output twice": answered(OUTPUT, OUTPUT),
    "data nested deeply": answered({**OUTPUT, "data": nested(90)}),
    "inputs nested deeply": {"requests": [{"inputs": nested(90)}], "answers": [[OUTPUT]]},
    "an integer of 65 bits": answered({**OUTPUT, "data": [2**64]}),
    "half of a surrogate pair": answered({**OUTPUT, "name": "\ud800"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_not_be_compared_is_no_golden_set(name: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        golden.decode(json.dumps(HOSTILE[name]).encode())
    assert refused.value.code == "golden_malformed"
    assert "--golden FILE" in refused.value.hint


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"1" * 5_000, b'"' + b" " * 2**24 + b'"'])
def test_bytes_that_cannot_be_read_are_no_golden_set(content: bytes) -> None:
    with pytest.raises(IntegrityError) as refused:
        golden.decode(content)
    assert refused.value.code == "golden_malformed"


def test_what_was_stored_is_read_back() -> None:
    stored = GoldenSet(requests=(REQUEST,), answers=((OUTPUT, {**OUTPUT, "name": "z", "data": [2**64 - 1, "NaN"]}),))
    assert golden.decode(golden.encode(stored)) == stored


def test_answers_that_are_too_large_to_be_kept_are_refused_before_they_are() -> None:
    answers = (({**OUTPUT, "data": ["x" * 2**24]},),)
    with pytest.raises(UsageError) as refused:
        golden.encode(GoldenSet(requests=(REQUEST,), answers=answers))
    assert refused.value.code == "golden_too_large"


def test_a_request_that_would_be_refused_later_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text(json.dumps(REQUEST) + "\n" + json.dumps({"inputs": nested(90)}) + "\n", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        golden.read_requests(path)
    assert refused.value.code == "golden_malformed"
    assert "golden.jsonl:2: " in refused.value.message
