"""Which format a model folder is, read from names and first bytes. Law: no file is ever loaded to find out.

A pickle runs code when it is loaded, so it is refused under whatever name it comes, packed or not. That is the first of
two guards: no loader but the sandboxed one unpickles anything, so what slips through here is data to it.
"""

from __future__ import annotations

import lzma
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import IO

from rearguard.errors import RefusedError, UsageError
from rearguard.loaders import installed_formats, packing
from rearguard.model.model_format import ModelFormat

HEAD_BYTES = 32
_PACKED_BYTES = 4096
"""How much of a packed file is read to see the beginning of what it holds."""
_WHOLE_BYTES = 65_536
"""Of a file: below this all of it is read. Chosen: a pickle in text that only calls something is far shorter."""
_MAX_LAYERS = 4
"""Chosen: pickles packed deeper than this are not what any library writes, and are refused unread."""
_MAX_MEMBERS = 100_000

PICKLED_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"})
_TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin"})
_OPCODES = frozenset(ord(code.code) for code in pickletools.opcodes)
_CALLS = frozenset({"GLOBAL", "INST", "OBJ", "REDUCE", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_ZIP_MAGIC = b"PK\x03\x04"
# Protocols 0 and 1 have no magic number: a global of a module, or a marked dict, list, tuple or instance.
_PICKLED_MODULES = (
    "posix",
    "nt",
    "os",
    "builtins",
    "__builtin__",
    "copy_reg",
    "copyreg",
    "subprocess",
    "sys",
    "socket",
)
_TEXT_PICKLE_STARTS = (
    *(f"{mark}{module}\n".encode() for module in _PICKLED_MODULES for mark in ("c", "(c", "(i", "}c", "]c")),
    b"(dp",
    b"(lp",
    b"ccopy_reg\n",
)
# torch before 1.6 wrote this number first, as a pickle of protocol 2 (torch/serialization.py: MAGIC_NUMBER).
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


_LZ4_MAGIC = b"\x04\x22\x4d\x18"


def detect(path: Path, unsafe_formats: tuple[str, ...] = ()) -> ModelFormat:
    """The format of the model folder (or single file) `path`.

    Raises `RefusedError` (`unsafe_format`) for anything that is unpickled when it is loaded, unless it is the plain
    file of a format that the policy names in `unsafe_formats`; `UsageError` (`unknown_format`, `no_such_path`) otherwise.
    """
    if not path.exists():
        raise UsageError("no_such_path", f"there is no {path}", "give the folder that holds the model's files")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    formats = installed_formats()
    found: dict[str, ModelFormat] = {}
    for file in files:
        claimed = _claimed(file, formats)
        if file.suffix.lower() in _TORCH_SUFFIXES and claimed is not None and claimed.name == "torch-weights":
            claimed = claimed if _is_torch(file) else None
        if claimed is not None and claimed.runs_code:
            _refuse_code(file, claimed, unsafe_formats, path)
        elif (claimed is None or claimed.name != "torch-weights") and is_pickled(file):
            raise _unsafe(file)
        if claimed is not None:
            found[claimed.name] = claimed
    marked = [f for f in found.values() if any("." not in s for s in f.suffixes)]
    if len(marked) == 1:  # the folder of a packaging format holds files of the formats that it packs
        if any(f.runs_code for f in found.values()):
            raise _unsafe(path)  # what is allowed is a plain file, not whatever a folder wraps
        return marked[0]
    if len(found) != 1:
        names = ", ".join(f.name for f in files[:8]) or "nothing"
        which = f"more than one format ({', '.join(sorted(found))})" if found else "no known format"
        accepted = ", ".join(f"{'|'.join(f.suffixes)} ({f.name})" for f in formats if not f.runs_code)
        raise UsageError("unknown_format", f"{path} holds {names}: {which}", f"accepted, one of: {accepted}")
    return next(iter(found.values()))


def _claimed(file: Path, formats: tuple[ModelFormat, ...]) -> ModelFormat | None:
    name, suffix = file.name, file.suffix.lower()
    return next((f for f in formats if name in f.suffixes or (suffix and suffix in f.suffixes)), None)


def _refuse_code(file: Path, claimed: ModelFormat, allowed: tuple[str, ...], path: Path) -> None:
    """An allowed format is a plain file at the top of its folder; deeper down it is part of something else."""
    if claimed.name not in allowed or (path.is_dir() and file.parent != path):
        raise _unsafe(file)


def _unsafe(file: Path) -> RefusedError:
    return RefusedError(
        "unsafe_format",
        f"{file.name} is a pickle or may hold one: loading it can run any code",
        "save it as skops or ONNX: skops.io.dump(model, 'model.skops') for scikit-learn, "
        "or export to model.onnx; weights alone as safetensors",
    )


def is_pickled(file: Path) -> bool:
    """True when the file's name says so, or its first bytes, packed or in an archive, are those of a pickle."""
    if file.suffix.lower() in PICKLED_SUFFIXES:
        return True
    with file.open("rb") as stream:
        return _stream_is_pickled(stream)


def _is_torch(file: Path) -> bool:
    """True when the bytes are a container that `torch.save` writes; whether it is only weights is torch's to say."""
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        if head.startswith(_TORCH_LEGACY):
            return True
        if not head.startswith(_ZIP_MAGIC):
            return False
        try:
            with zipfile.ZipFile(stream) as archive:
                return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            return False


def _stream_is_pickled(stream: IO[bytes]) -> bool:
    head = stream.read(_WHOLE_BYTES)
    if _holds_pickle(head) or (len(head) < _WHOLE_BYTES and _is_text_pickle(head)):
        return True
    stream.seek(0)
    # A zip is found by its end, so one may hide behind other bytes.
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            return len(members) > _MAX_MEMBERS or any(_member_is_pickled(archive, m) for m in members)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError):
        return False


def _member_is_pickled(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    if Path(member.filename).suffix.lower() in PICKLED_SUFFIXES:
        return True
    try:
        with archive.open(member) as stream:
            head = stream.read(_PACKED_BYTES)
            return _holds_pickle(head) or (len(head) < _PACKED_BYTES and _is_text_pickle(head))
    except (
        zipfile.BadZipFile,
        RuntimeError,
        ValueError,
        OSError,
        NotImplementedError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
    ):
        return False  # nobody can read it either


def _holds_pickle(head: bytes, layer: int = 0) -> bool:
    """True when `head` begins like a pickle, at once or below as many layers of packing as anybody would use."""
    if begins_like_pickle(head):
        return True
    if head.startswith(_LZ4_MAGIC):
        return True  # the standard library cannot look inside; joblib writes it, no other format here does
    try:
        inner = packing.unpack(head, _PACKED_BYTES)
    except ValueError:
        return False
    return bool(inner) and (layer >= _MAX_LAYERS or _holds_pickle(inner, layer + 1))


def begins_like_pickle(head: bytes) -> bool:
    """True for protocol 2 to 5 by its mark, and for what protocols 0 and 1 usually begin with."""
    # The byte after the mark has to be an opcode: the length that opens a safetensors file can look like a mark.
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2] in _OPCODES:
        return True
    return head.startswith(_TEXT_PICKLE_STARTS)


def _is_text_pickle(whole: bytes) -> bool:
    """True when all of `whole` reads as a pickle that names something to call; words and settings do not."""
    if not whole.rstrip(b"\n").endswith(b"."):
        return False
    try:
        return any(opcode.name in _CALLS for opcode, _, _ in list(pickletools.genops(whole)))
    except (ValueError, OverflowError, UnicodeDecodeError, AttributeError, IndexError):
        return False
