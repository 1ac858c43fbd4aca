"""Bytes out of what joblib packs a file in: gzip, zlib, bz2, xz, lzma. Bounded; nothing of it is interpreted."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol


class _Unpacker(Protocol):
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


_BY_MAGIC: tuple[tuple[bytes, Callable[[], _Unpacker]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ", lzma.LZMADecompressor),
    (b"\x5d\x00\x00", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_ALONE)),
    (b"\x78", zlib.decompressobj),
)


def unpack(raw: bytes, max_bytes: int) -> bytes:
    """At most `max_bytes` of what `raw` holds packed; empty when it is not packed. ValueError when it cannot be unpacked."""
    unpacker = next((make for magic, make in _BY_MAGIC if raw.startswith(magic)), None)
    if unpacker is None:
        return b""
    try:
        return unpacker().decompress(raw, max_bytes)
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error)) from error
