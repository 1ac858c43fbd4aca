"""Safetensors: what the format's own library writes is read, what breaks its rules is refused in bounded time and memory."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from rearguard.errors import UsageError
from rearguard.loaders.safetensors import MAX_HEADER_BYTES, load


def write(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return file


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as refused:
        load(folder, ())
    assert refused.value.code == "model_unreadable"
    return refused.value.message


def test_the_state_digest_is_that_of_names_types_shapes_and_bytes(tmp_path: Path) -> None:
    save_file({"b": np.arange(2, dtype="<i4"), "a": np.ones((1, 2), dtype="<f4")}, tmp_path / "m.safetensors")
    first = hashlib.sha256(b"\x00\x00\x80\x3f" * 2).hexdigest()  # 1.0f twice
    second = hashlib.sha256(b"\x00\x00\x00\x00\x01\x00\x00\x00").hexdigest()
    lines = f'rearguard-state-1\n["a","F32",[1,2],"{first}"]\n["b","I32",[2],"{second}"]\n'
    assert load(tmp_path, ()).state_sha256() == hashlib.sha256(lines.encode()).hexdigest()


def test_shards_and_their_order_do_not_change_the_digest(tmp_path: Path) -> None:
    tensors = {f"t{n}": np.full((3,), n, dtype="<f8") for n in range(4)}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    save_file({k: tensors[k] for k in ("t3", "t0")}, tmp_path / "two" / "model-00001-of-00002.safetensors")
    save_file({k: tensors[k] for k in ("t2", "t1")}, tmp_path / "two" / "model-00002-of-00002.safetensors")
    digests = {load(tmp_path / name, ()).state_sha256() for name in ("one", "two")}
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["name", "type", "shape", "bytes"])
def test_every_part_of_a_tensor_counts(tmp_path: Path, change: str) -> None:
    changed = {
        "name": {"b": tensor("F32", [2], 0, 8)},
        "type": {"a": tensor("I32", [2], 0, 8)},
        "shape": {"a": tensor("F32", [1, 2], 0, 8)},
        "bytes": {"a": tensor("F32", [2], 0, 8)},
    }[change]
    for name, header, data in (
        ("before", {"a": tensor("F32", [2], 0, 8)}, bytes(8)),
        ("after", changed, bytes(8) if change != "bytes" else bytes(7) + b"\x01"),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "m.safetensors", header, data)
    assert load(tmp_path / "before", ()).state_sha256() != load(tmp_path / "after", ()).state_sha256()


@pytest.mark.parametrize(("dtype", "size"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
def test_types_that_numpy_does_not_know_are_read(tmp_path: Path, dtype: str, size: int) -> None:
    write(tmp_path / "m.safetensors", {"w": tensor(dtype, [4], 0, 4 * size)}, bytes(range(4 * size)))
    assert len(load(tmp_path, ()).state_sha256()) == 64


def test_a_length_that_looks_like_a_pickles_mark_is_no_pickle(tmp_path: Path) -> None:
    """640 is written 80 02 00 ..., as protocol 2 begins; no pickle goes on with a zero."""
    from rearguard.loaders.detection import detect

    header = json.dumps({"w": tensor("U8", [1], 0, 1)}).encode()
    write(tmp_path / "m.safetensors", header.ljust(640), b"\x00")
    assert detect(tmp_path).name == "safetensors"


HOSTILE: dict[str, tuple[Any, bytes]] = {
    "overlap": ({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 2, 6)}, bytes(6)),
    "gap": ({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 4, 6)}, bytes(6)),
    "begins late": ({"a": tensor("U8", [2], 2, 4)}, bytes(4)),
    "bytes over": ({"a": tensor("U8", [2], 0, 2)}, bytes(4)),
    "beyond the file": ({"a": tensor("U8", [8], 0, 8)}, bytes(4)),
    "backwards": ({"a": tensor("U8", [2], 4, 2)}, bytes(4)),
    "negative": ({"a": tensor("U8", [-2], 0, 2)}, bytes(2)),
    "float size": (b'{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}', bytes(2)),
    "overflow": ({"a": tensor("F32", [2**62, 2**62, 4], 0, 16)}, bytes(16)),
    "wrong size": ({"a": tensor("F32", [2], 0, 4)}, bytes(4)),
    "unknown type": ({"a": tensor("OBJECT", [2], 0, 2)}, bytes(2)),
    "key twice": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "no object": (b"[1]", b""),
    "no json": (b"{nonsense", b""),
    "not utf-8": (b'{"\xff":1}', b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "entry of text": ({"a": "F32"}, b""),
    "more keys": ({"a": {**tensor("U8", [1], 0, 1), "code": "x"}}, b"x"),
    "a thousand dimensions": ({"a": tensor("U8", [1] * 1000, 0, 1)}, b"x"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, name: str) -> None:
    header, data = HOSTILE[name]
    write(tmp_path / "m.safetensors", header, data)
    assert refusal(tmp_path).startswith("m.safetensors: ")


@pytest.mark.parametrize("name", [n for n in HOSTILE if n not in ("key twice", "more keys", "a thousand dimensions")])
def test_the_formats_own_library_refuses_it_too(tmp_path: Path, name: str) -> None:
    """So these are faults of the file and no taste of ours."""
    header, data = HOSTILE[name]
    file = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises((safetensors.SafetensorError, OverflowError, UnicodeDecodeError)):
        safetensors.deserialize(file.read_bytes())


@pytest.mark.parametrize("length", [2**63, MAX_HEADER_BYTES + 1, 100])
def test_a_length_beyond_the_file_or_the_limit_is_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path / "m.safetensors", b"{}", length=length)
    refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8)])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    refusal(tmp_path)


@pytest.mark.parametrize("kind", ["length", "brackets", "numbers"])
def test_a_header_of_many_megabytes_is_refused_within_a_gigabyte_and_seconds(tmp_path: Path, kind: str) -> None:
    most = MAX_HEADER_BYTES - 64
    raw = {
        "length": b'{"a":"' + b" " * (100 << 20) + b'"}',
        "brackets": b'{"a":' + b"[" * most,
        "numbers": b'{"a":[' + b"1," * (most // 2) + b"1]}",
    }[kind]
    write(tmp_path / "m.safetensors", raw)
    program = (
        "import sys; from pathlib import Path; from rearguard.loaders.safetensors import load\n"
        "from rearguard.errors import UsageError\n"
        "try:\n    load(Path(sys.argv[1]), ())\nexcept UsageError as e:\n    print(e.code)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, preexec_fn=limit
    )
    assert ended.stdout.strip() == "model_unreadable", ended.stderr[-300:]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_file({"a": np.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(1)}, tmp_path / "other.safetensors")
    assert "model-00002-of-00002.safetensors is missing" in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"a": np.ones(1)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    assert "is in model-00001-of-00002.safetensors as well" in refusal(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "m.safetensors", "missing": "m.safetensors"}},
        {"weight_map": {}},
        {"weight_map": {"a": "../m.safetensors"}},
        {"weight_map": {"a": 1}},
        {},
        [],
    ],
)
def test_an_index_that_is_not_what_the_shards_hold_is_refused(tmp_path: Path, index: Any) -> None:
    save_file({"a": np.ones(1)}, tmp_path / "m.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(tmp_path).startswith("model.safetensors.index.json: ")


def test_an_index_that_says_what_the_shards_hold_is_read(tmp_path: Path) -> None:
    save_file({"a": np.ones(1)}, tmp_path / "m.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "m.safetensors"}}))
    assert len(load(tmp_path, ()).tensors) == 1
