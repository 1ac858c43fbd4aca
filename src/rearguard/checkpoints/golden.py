"""Golden predictions: recorded requests with the answers that a checkpoint must repeat.

The user's file is JSON lines, one Open Inference Protocol request a line (`{"inputs": [...]}`). The stored set may come
from anywhere (an import, a pull), so `decode` is the one place that judges it, for everybody who uses one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.errors import IntegrityError, UsageError
from rearguard.model.model_format import ModelFormat
from rearguard.rules.golden import GoldenSet

MAX_REQUESTS = 1_000
"""Chosen: each is answered twice at every verification, and it must stay far below the load-time limit."""
MAX_BYTES = 16 * 1024 * 1024
"""Of the user's file, and of the stored set with its answers. Chosen."""
MAX_DEPTH = 64
"""Of lists and mappings in a request or an answer. Chosen: twice the dimensions that a tensor may have in numpy 1."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""INT64 and UINT64 of the Open Inference Protocol; a larger integer is no double either."""
_EXAMPLE = (
    'one request a line, for example {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequest:
    """One request of the user's file."""

    where: str
    """`golden.jsonl:3`, as an editor takes it."""
    request: dict[str, Any]


def requests_for(found: ModelFormat, path: Path | None) -> tuple[GoldenRequest, ...]:
    """The golden requests of a checkpoint of this format; none when its loader tells the state instead.

    Raises `UsageError`: `golden_required`, `format_answers_nothing`, and as `read_requests`.
    """
    if path is not None and not found.predicts:
        raise UsageError(
            "format_answers_nothing",
            f"{found.name} holds weights and answers no requests",
            "leave --golden out: what is compared is the digest of the loaded state",
        )
    if path is None and not found.tells_state:
        raise UsageError(
            "golden_required",
            f"{found.name} does not tell its state, so only recorded answers can prove that it loads as before",
            f"--golden FILE: {_EXAMPLE}",
        )
    return read_requests(path) if path is not None else ()


def read_requests(path: Path) -> tuple[GoldenRequest, ...]:
    """Read the user's golden file.

    Raises `UsageError`: `golden_missing`, `golden_too_large`, `golden_malformed` (names the line), `golden_empty`.
    """
    hint = _EXAMPLE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(
                "golden_too_large", f"{path} is larger than {MAX_BYTES} bytes", "keep a few telling requests"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("golden_missing", f"cannot read {path}: {error}", hint) from error
    lines = [_Line(number=n, text=line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UsageError("golden_empty", f"{path} holds no requests", hint)
    if len(lines) > MAX_REQUESTS:
        raise UsageError(
            "golden_too_large", f"{path} holds {len(lines)} requests, the limit is {MAX_REQUESTS}", "keep a few"
        )
    return tuple(GoldenRequest(where=f"{path}:{line.number}", request=_request(path, line, hint)) for line in lines)


def _request(path: Path, line: _Line, hint: str) -> dict[str, Any]:
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        raise UsageError("golden_malformed", f"{path}:{line.number}: {error}", hint) from error
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list) or not value["inputs"]:
        raise UsageError("golden_malformed", f"{path}:{line.number}: no `inputs` list", hint)
    if why := _odd_value(value["inputs"]):
        raise UsageError("golden_malformed", f"{path}:{line.number}: {why}", hint)
    return {"inputs": value["inputs"]}


def encode(golden: GoldenSet) -> bytes:
    """Bytes of the stored set; floats keep Python's shortest form, which reads back to the same double.

    Law: `decode` accepts them. Raises `UsageError` `golden_too_large`, and as `decode` for answers that are none.
    """
    document = {"requests": list(golden.requests), "answers": [list(a) for a in golden.answers]}
    content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode("utf-8")
    if len(content) > MAX_BYTES:
        raise UsageError(
            "golden_too_large",
            f"requests and answers are {len(content)} bytes, the limit is {MAX_BYTES}",
            "keep a few telling requests",
        )
    decode(content)
    return content


def decode(content: bytes) -> GoldenSet:
    """The stored set back: at least one request, and for each an answer that `rules.golden.difference` can compare.

    Raises `IntegrityError` `golden_malformed` for everything else, whoever made it.
    """
    if len(content) > MAX_BYTES:
        raise _malformed(f"it has {len(content)} bytes, the limit is {MAX_BYTES}")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, and integers of more than 4300 digits, too
        raise _malformed("it is no JSON that can be read") from error
    if why := _fault_of(document):
        raise _malformed(why)
    return GoldenSet(requests=tuple(document["requests"]), answers=tuple(tuple(a) for a in document["answers"]))


def _malformed(why: str) -> IntegrityError:
    return IntegrityError(
        "golden_malformed",
        f"the golden set is none: {why}",
        "take it in again from where the checkpoint was made, or add the model anew: rearguard checkpoint add --golden FILE",
    )


def _fault_of(document: Any) -> str:
    """Why it is no golden set; empty when it is one."""
    if not isinstance(document, dict):
        return "it is no object"
    requests, answers = document.get("requests"), document.get("answers")
    if not isinstance(requests, list) or not isinstance(answers, list):
        return "`requests` and `answers` are not both lists"
    if not 0 < len(requests) <= MAX_REQUESTS:
        return f"it has {len(requests)} requests, at least 1 and at most {MAX_REQUESTS} are taken"
    if len(answers) != len(requests):
        return f"{len(answers)} answers to {len(requests)} requests"
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True), 1):
        if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
            return f"request {number} has no `inputs` list"
        why = _odd_answer(answer) or _odd_value(request) or _odd_value(answer)
        if why:
            return f"request {number}: {why}"
    return ""


def _odd_answer(answer: Any) -> str:
    if not isinstance(answer, list) or not all(isinstance(output, dict) for output in answer):
        return "its answer is no list of outputs"
    names = [output.get("name") for output in answer]
    if not all(isinstance(name, str) for name in names):
        return "an output has no name"
    return "" if len(set(names)) == len(names) else "an output is given twice"


def _odd_value(value: Any) -> str:
    """What could not be compared, shown or recorded; empty when nothing is. Goes down level by level, not by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, list):
                below.extend(item)
            elif isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, str):
                if not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
                    return "a text holds half of a surrogate pair"
            elif isinstance(item, int) and not MIN_INTEGER <= item <= MAX_INTEGER:
                return "an integer has more than 64 bits"
        if not below:
            return ""
        level = below
    return f"it is nested more than {MAX_DEPTH} levels deep"
