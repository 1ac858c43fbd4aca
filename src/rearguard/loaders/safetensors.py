"""Weights in the safetensors format, one or several shards, mapped and never copied.

Own reading of the format (safetensors, README "Format", 0.8): 8 bytes little-endian length of the header, the header as
JSON, the bytes. It holds numbers and no code. A loaded state answers no requests; it tells its digest. No numpy is
needed, so BF16 and FP8 are read like everything else.

Hostile headers are refused in bounded time and memory: a length beyond the file or `MAX_HEADER_BYTES`, a key given twice,
offsets that overlap, leave gaps or bytes over, a shape that does not fill its offsets.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from rearguard.errors import UsageError
from rearguard.loaders import state

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Chosen: 100,000 tensors need about 10 MB. The format itself allows 100 MB, which costs a reader gigabytes."""
MAX_TENSORS = 200_000
_MAX_DIMENSIONS = 64
_INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""safetensors 0.8, `tensor.rs`: `Dtype::bitsize`."""


class SafetensorsState:
    """The mapped tensors of all shards."""

    def __init__(self, tensors: tuple[state.TensorState, ...]) -> None:
        self.tensors = tensors

    def state_sha256(self) -> str:
        """As `rearguard.loaders.state.digest`."""
        return state.digest(self.tensors)


def load(path: Path, trusted_types: tuple[str, ...]) -> SafetensorsState:
    """All tensors of the folder's `*.safetensors`, every page of them read; `trusted_types` has no meaning here.

    Raises `UsageError`: `unknown_format` (no such file), `model_unreadable` (a header that is not sound, a shard or a
    tensor that the index names and nobody holds, a tensor in two shards).
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UsageError(
            "unknown_format", f"{path} holds no file named *.safetensors", "give the folder with the weights"
        )
    _check_shards(files)
    tensors: dict[str, state.TensorState] = {}
    shard_of: dict[str, str] = {}
    for file in files:
        for tensor in read_file(file):
            if tensor.name in tensors:
                _refuse(file, f"the tensor {tensor.name[:80]!r} is in {shard_of[tensor.name]} as well")
            if len(tensors) >= MAX_TENSORS:
                _refuse(file, f"more than {MAX_TENSORS} tensors")
            tensors[tensor.name], shard_of[tensor.name] = tensor, file.name
    for index in sorted(path.glob(f"*{_INDEX_SUFFIX}")):
        _check_index(index, shard_of)
    return SafetensorsState(tuple(tensors.values()))


def read_file(file: Path) -> tuple[state.TensorState, ...]:
    """The tensors of one file, mapped. Raises `UsageError` `model_unreadable`."""
    with file.open("rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            _refuse(file, "it is no regular file")
        size = os.fstat(stream.fileno()).st_size
        if size < 8:
            _refuse(file, f"it has {size} bytes, a header's length alone takes 8")
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            _refuse(file, f"its header is said to have {length} bytes, the limit is {MAX_HEADER_BYTES}")
        if length > size - 8:
            _refuse(file, f"its header is said to have {length} bytes, the file has {size}")
        header = _header(file, stream.read(length))
        start = 8 + length
        entries = _entries(file, header, size - start)
        if size == start:
            return tuple(state.TensorState(n, t, s, memoryview(b"")) for n, t, s, _, _ in entries)
        # Populated: each page is read now, so that what is timed is the load and not the promise of one.
        mapped = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
    view = memoryview(mapped)[start:]
    return tuple(state.TensorState(n, t, s, view[begin:end]) for n, t, s, begin, end in entries)


def _header(file: Path, raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        _refuse(file, "its header does not begin with {")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        _refuse(file, f"its header is no JSON that can be read: {str(error)[:200]}")
    if not isinstance(header, dict):
        _refuse(file, "its header is no object")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


Entry = tuple[str, str, tuple[int, ...], int, int]


def _entries(file: Path, header: dict[str, Any], size_bytes: int) -> list[Entry]:
    """Name, type, shape, begin and end of each tensor, by offset; they fill `size_bytes` exactly."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(file, "its __metadata__ is not texts by name")
    entries = sorted((_entry(file, name, given) for name, given in header.items()), key=lambda e: (e[3], e[4]))
    end = 0
    for name, _, _, begin, stop in entries:
        if begin != end:
            _refuse(file, f"{name[:80]!r} begins at {begin}, the one before ends at {end}")
        end = stop
    if end != size_bytes:
        _refuse(file, f"its tensors take {end} bytes, the file holds {size_bytes}")
    return entries


def _entry(file: Path, name: str, given: Any) -> Entry:
    if not isinstance(given, dict) or set(given) != {"dtype", "shape", "data_offsets"}:
        _refuse(file, f"{name[:80]!r} is not dtype, shape and data_offsets")
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        _refuse(file, f"{name[:80]!r} has the type {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        _refuse(file, f"{name[:80]!r} has a shape or offsets that are none")
    begin, end = offsets
    if math.prod(shape) * bits != (end - begin) * 8:
        _refuse(file, f"{name[:80]!r} of {dtype} has a shape that does not fill its {end - begin} bytes")
    return name, str(dtype), tuple(shape), begin, end


def _are_sizes(given: Any) -> bool:
    return isinstance(given, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in given)


def _check_shards(files: Iterable[Path]) -> None:
    """Refuse a set of shards whose own names say that one is missing."""
    names = {file.name: file for file in files}
    for name, file in names.items():
        part = _SHARD.fullmatch(name)
        if part is None:
            continue
        count = int(part["count"])
        if count > len(names) or not 1 <= int(part["number"]) <= count:
            _refuse(file, f"it is shard {part['number']} of {count}, and {len(names)} are here")
        for number in range(1, count + 1):
            wanted = f"{part['stem']}-{number:05d}-of-{part['count']}.safetensors"
            if wanted not in names:
                _refuse(file, f"{wanted} is missing")


def _check_index(index: Path, shard_of: dict[str, str]) -> None:
    """Every tensor that the index names is in the shard that it names, and no shard holds another."""
    if index.stat().st_size > MAX_HEADER_BYTES:
        _refuse(index, f"it is larger than {MAX_HEADER_BYTES} bytes")
    try:
        given = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        _refuse(index, f"no JSON that can be read: {str(error)[:200]}")
    wanted = given.get("weight_map") if isinstance(given, dict) else None
    if not isinstance(wanted, dict) or not all(isinstance(v, str) for v in wanted.values()):
        _refuse(index, "it has no weight_map of file names")
    for name, file in wanted.items():
        if len(PurePosixPath(file).parts) != 1 or shard_of.get(name) != file:
            _refuse(index, f"{name[:80]!r} is not in {file[:80]!r}")
    over = next((name for name in shard_of if name not in wanted), None)
    if over is not None:
        _refuse(index, f"it does not name {over[:80]!r}")


def _refuse(file: Path, why: str) -> NoReturn:
    raise UsageError("model_unreadable", f"{file.name}: {why}", "save it again, or copy it again from where it came")
