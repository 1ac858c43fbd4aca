"""The digest of a loaded state: the same numbers under the same names give the same digest, whatever file they came from.

Form, version 1: sha256 over one line a tensor, in the order of the names' UTF-8 bytes. A line is the canonical JSON
array of name, type, shape and the sha256 of the bytes (little-endian, row-major), and a line feed. The first line is
`rearguard-state-1`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_PIECE_BYTES = 1 << 20
"""Chosen: hashed from the page cache piece by piece, so that a thread can be stopped and caches are not swept."""


@dataclass(frozen=True, slots=True)
class TensorState:
    """One tensor of a state. `dtype` is named as safetensors names it: F32, BF16, I64 ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: memoryview


def digest(tensors: Iterable[TensorState]) -> str:
    """The digest of the state, 64 hex digits; hashed by as many threads as there are processors."""
    ordered = sorted(tensors, key=lambda t: t.name.encode("utf-8", "surrogatepass"))
    workers = max(1, min(len(ordered) or 1, os.cpu_count() or 1, 8))
    with ThreadPoolExecutor(workers) as pool:
        hashes = list(pool.map(lambda t: _sha256(t.content), ordered))
    whole = hashlib.sha256(b"rearguard-state-1\n")
    for tensor, content in zip(ordered, hashes, strict=True):
        line = [tensor.name, tensor.dtype, list(tensor.shape), content]
        whole.update(json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n")
    return whole.hexdigest()


def _sha256(content: memoryview) -> str:
    hasher = hashlib.sha256()
    for start in range(0, len(content), _PIECE_BYTES):
        hasher.update(content[start : start + _PIECE_BYTES])
    return hasher.hexdigest()
