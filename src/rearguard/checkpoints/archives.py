"""Model files that are zip archives, and what they would become when somebody unpacks them.

Decides only about size and number. What is in an archive, and whether it may be loaded, is the loader's to judge. An
archive that cannot be read as one is left to its loader, which will not read it either.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from typing import BinaryIO

from rearguard.errors import RefusedError

MAX_ENTRIES = 100_000
MAX_RATIO = 20
"""Of what comes out to the size of the file. Chosen: weights of random numbers do not shrink, zeros shrink 1000 times."""
FREE_BYTES = 1024 * 1024 * 1024
"""Below this the ratio is not asked for. Chosen: what any host of models can hold."""
MAX_DIRECTORY_BYTES = 64 * 1024 * 1024

_SUFFIXES = (".skops", ".npz", ".pt", ".pth", ".zip", ".mar", ".keras")
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_ENTRY = b"PK\x01\x02"
_LOCAL_BYTES = 30
_CHUNK_BYTES = 128 * 1024


def refuse_bomb(reader: BinaryIO, name: str) -> None:
    """Read the directory of a zip-shaped file, and inflate what says that it is small.

    Raises `RefusedError` `zip_bomb`: more than 100,000 entries; more than 1 GiB that is also more than 20 times the
    file; an entry that holds more than it declares; a method other than stored and deflated, whose result cannot be
    bounded before it is there. Law: whatever passes unpacks to no more than max(1 GiB, 20 x size).
    """
    reader.seek(0)
    if not reader.read(4).startswith((b"PK\x03\x04", _END)) and not name.lower().endswith(_SUFFIXES):
        return
    size_bytes = reader.seek(0, os.SEEK_END)
    _refuse_directory(reader, name, size_bytes)
    try:
        with zipfile.ZipFile(reader) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return
    if len(entries) > MAX_ENTRIES:
        raise _bomb(name, f"it has {len(entries)} entries, the limit is {MAX_ENTRIES}")
    declared = sum(entry.file_size for entry in entries)
    if declared > FREE_BYTES and declared > MAX_RATIO * size_bytes:
        raise _bomb(name, f"{size_bytes} bytes become {declared}, the limit is {MAX_RATIO} times as many")
    for entry in entries:
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.compress_size != entry.file_size:
                raise _bomb(name, f"{entry.filename[:100]!r} is stored as it is and declares another size")
        elif entry.compress_type != zipfile.ZIP_DEFLATED:
            raise _bomb(name, f"{entry.filename[:100]!r} is packed by method {entry.compress_type}")
        elif _inflates_beyond(reader, entry):
            raise _bomb(name, f"{entry.filename[:100]!r} holds more than the {entry.file_size} bytes that it declares")


def _refuse_directory(reader: BinaryIO, name: str, size_bytes: int) -> None:
    """Before anybody builds an object an entry: how many there are at most."""
    tail_bytes = min(size_bytes, 65_535 + 22 + 76)
    reader.seek(size_bytes - tail_bytes)
    tail = reader.read(tail_bytes)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        return
    directory_bytes = int(struct.unpack_from("<L", tail, at + 12)[0])
    end64 = tail.rfind(_END64, 0, at)
    if end64 >= 0 and len(tail) - end64 >= 56:
        directory_bytes = max(directory_bytes, int(struct.unpack_from("<Q", tail, end64 + 40)[0]))
    if directory_bytes == 0xFFFFFFFF or directory_bytes > size_bytes:
        return  # not an archive that anybody reads
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise _bomb(name, f"its directory has {directory_bytes} bytes, the limit is {MAX_DIRECTORY_BYTES}")
    reader.seek(max(0, size_bytes - tail_bytes + at - directory_bytes - 76))
    count = reader.read(directory_bytes + 76).count(_ENTRY)
    if count > MAX_ENTRIES:
        raise _bomb(name, f"it has {count} entries, the limit is {MAX_ENTRIES}")


def _inflates_beyond(reader: BinaryIO, entry: zipfile.ZipInfo) -> bool:
    """True when the deflated bytes of an entry give more than it declares. Stops there."""
    reader.seek(entry.header_offset)
    local = reader.read(_LOCAL_BYTES)
    if len(local) < _LOCAL_BYTES:
        return False
    reader.seek(entry.header_offset + _LOCAL_BYTES + sum(struct.unpack_from("<HH", local, 26)))
    inflater, left, given = zlib.decompressobj(-zlib.MAX_WBITS), entry.compress_size, 0
    pending = b""
    while not inflater.eof and given <= entry.file_size:
        if not pending:
            pending = reader.read(min(left, _CHUNK_BYTES))
            left -= len(pending)
            if not pending:
                break
        try:
            given += len(inflater.decompress(pending, 1024 * 1024))
        except zlib.error:
            return False
        pending = inflater.unconsumed_tail
    return given > entry.file_size


def _bomb(name: str, why: str) -> RefusedError:
    return RefusedError(
        "zip_bomb",
        f"{name} would fill memory or disk when it is loaded: {why}",
        "store the arrays uncompressed, and only them",
    )
