"""Zip archives that would burst when they are unpacked are refused, whatever they declare; honest ones are not."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from rearguard.checkpoints.archives import FREE_BYTES, MAX_ENTRIES, refuse_bomb
from rearguard.errors import RefusedError


def archive(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as writer:
        for name, content in entries:
            writer.writestr(name, content)
    return target.getvalue()


def declare(content: bytes, size: int) -> bytes:
    """The first entry of an archive says that it becomes `size` bytes, in the directory and in front of its data."""
    changed = bytearray(content)
    struct.pack_into("<L", changed, content.index(b"PK\x03\x04") + 22, size)
    struct.pack_into("<L", changed, content.rindex(b"PK\x01\x02") + 24, size)
    return bytes(changed)


def many_entries() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as writer:
        for number in range(MAX_ENTRIES + 1):
            writer.writestr(zipfile.ZipInfo(str(number)), b"")
    return target.getvalue()


def more_than_it_declares() -> bytes:
    return declare(archive(("weights", bytes(3_000_000))), 100)


def declares_too_much() -> bytes:
    """A ratio that deflate reaches, of a size that it does not hold: nothing has to be unpacked to say no."""
    return declare(archive(("weights", bytes(1_000_000))), FREE_BYTES + 1)


def overlapping() -> bytes:
    """One kernel of data, and a thousand entries of the directory that point at it, as in Fifield's bomb (WOOT 2019)."""
    one = archive(("weights", bytes(2_000_000)))
    at = one.index(b"PK\x01\x02")
    end = one.index(b"PK\x05\x06")
    entry, closing = one[at:end], bytearray(one[end:])
    struct.pack_into("<HHLL", closing, 8, 1000, 1000, len(entry) * 1000, at)
    return one[:at] + entry * 1000 + bytes(closing)


def bzip2() -> bytes:
    """Its ratio has no bound that is of use: 45 bytes become 45 million."""
    return archive(("weights", bytes(10_000_000)), method=zipfile.ZIP_BZIP2)


def stored_with_another_size() -> bytes:
    return declare(archive(("weights", b"abc"), method=zipfile.ZIP_STORED), 5_000_000)


@pytest.mark.parametrize(
    "make", [many_entries, more_than_it_declares, declares_too_much, overlapping, bzip2, stored_with_another_size]
)
def test_a_bomb_is_refused(make: Callable[[], bytes]) -> None:
    with pytest.raises(RefusedError) as refused:
        refuse_bomb(io.BytesIO(make()), "model.skops")
    assert (refused.value.code, refused.value.exit_code) == ("zip_bomb", 30)


def test_a_bomb_behind_other_bytes_is_refused() -> None:
    """A reader of zip files looks for the end, not for the beginning."""
    with pytest.raises(RefusedError):
        refuse_bomb(io.BytesIO(b"#!/bin/sh\n" + many_entries()), "model.pt")


def test_a_bomb_under_another_name_is_refused() -> None:
    with pytest.raises(RefusedError):
        refuse_bomb(io.BytesIO(more_than_it_declares()), "notes.md")


def arrays() -> bytes:
    target = io.BytesIO()
    np.savez(target, a=np.arange(100_000), b=np.zeros(100_000))
    return target.getvalue()


def packed_arrays() -> bytes:
    target = io.BytesIO()
    np.savez_compressed(target, a=np.arange(100_000), b=np.zeros(1_000_000))
    return target.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        arrays,
        packed_arrays,
        archive,
        lambda: archive(("a", b""), ("b", b"x" * 1000)),
        lambda: b"",
        lambda: b"PK\x03\x04",
    ],
    ids=["npz", "packed npz", "empty", "two", "no byte", "half a header"],
)
def test_an_honest_archive_or_none_at_all_is_not_refused(make: Callable[[], bytes]) -> None:
    refuse_bomb(io.BytesIO(make()), "model.npz")


def test_what_is_no_archive_is_not_read_to_its_end() -> None:
    reader = io.BytesIO(b"\x08\x07" + bytes(1000))
    refuse_bomb(reader, "model.onnx")
    assert reader.tell() <= 4
