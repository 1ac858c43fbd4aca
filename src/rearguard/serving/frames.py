"""Frames between the front and a worker: a length of four bytes, big-endian, then the payload.

Front to worker: one frame, a JSON object with `op`. Worker to front: two frames, a small JSON head and a body that
the front passes on without reading it. The worker answers in the order it was asked.
"""

from __future__ import annotations

import asyncio
import socket
import struct

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Chosen: far above any tensor sent as JSON, low enough that a corrupt length cannot take all memory."""


def pack(payload: bytes) -> bytes:
    """The frame of one payload; ValueError above `MAX_FRAME_BYTES`."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes")
    return _LENGTH.pack(len(payload)) + payload


def receive(connection: socket.socket) -> bytes | None:
    """The next payload, blocking; None when the other side is gone."""
    head = _receive_exactly(connection, _LENGTH.size)
    if head is None:
        return None
    return _receive_exactly(connection, _LENGTH.unpack(head)[0])


async def read(stream: asyncio.StreamReader) -> bytes:
    """The next payload; `asyncio.IncompleteReadError` or OSError when the other side is gone."""
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ConnectionError(f"a frame of {length} bytes")
    return await stream.readexactly(length)


def _receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    buffer = bytearray()
    while len(buffer) < size:
        chunk = connection.recv(min(size - len(buffer), 1 << 20))
        if not chunk:
            return None
        buffer += chunk
    return bytes(buffer)
