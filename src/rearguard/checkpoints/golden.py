"""Golden predictions: recorded requests with the answers that a checkpoint must repeat.

The user's file is JSON lines, one Open Inference Protocol request a line (`{"inputs": [...]}`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.errors import UsageError
from rearguard.model.model_format import ModelFormat
from rearguard.rules.golden import GoldenSet

MAX_REQUESTS = 1_000
"""Chosen: each is answered twice at every verification, and it must stay far below the load-time limit."""
MAX_BYTES = 16 * 1024 * 1024
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
    return {"inputs": value["inputs"]}


def encode(golden: GoldenSet) -> bytes:
    """Bytes of the stored set; floats keep Python's shortest form, which reads back to the same double."""
    document = {"requests": list(golden.requests), "answers": [list(a) for a in golden.answers]}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("utf-8")


def decode(content: bytes) -> GoldenSet:
    """The stored set back."""
    document = json.loads(content)
    return GoldenSet(requests=tuple(document["requests"]), answers=tuple(tuple(a) for a in document["answers"]))
