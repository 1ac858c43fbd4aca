"""Which names of files may enter a checkpoint. A name becomes a path below a view, and a line on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import pairwise

MAX_FILES = 10_000
MAX_DEPTH = 32
MAX_PART_BYTES = 255
"""What Linux file systems take as one name."""
MAX_PATH_BYTES = 1024
"""Chosen, as the other two: far above any model, far below what a path may have in all (4096)."""


def fault_of(path: str) -> str:
    """Why `path` is no relative POSIX path that is safe to create and to show; empty when it is one."""
    try:
        size_bytes = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if size_bytes > MAX_PATH_BYTES:
        return f"it has {size_bytes} bytes, the limit is {MAX_PATH_BYTES}"
    if path.startswith("/"):
        return "it is absolute"
    if "\\" in path:
        return "it holds a backslash"
    # Cc: controls, Cf: what turns or hides the text around it, Zl and Zp: ends of lines.
    if any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in path):
        return "it holds a control character"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "a part of it is empty, . or .."
    if len(parts) > MAX_DEPTH:
        return f"it is {len(parts)} levels deep, the limit is {MAX_DEPTH}"
    if any(len(part.encode("utf-8")) > MAX_PART_BYTES for part in parts):
        return f"a part of it is longer than {MAX_PART_BYTES} bytes"
    return ""


def fault_of_all(paths: Iterable[str]) -> tuple[str, str]:
    """The first path at fault and why; two empty texts when all are fit to stand beside each other."""
    seen: set[str] = set()
    for path in paths:
        if why := fault_of(path):
            return path, why
        if path in seen:
            return path, "it stands twice"
        if len(seen) == MAX_FILES:
            return path, f"it is one more than {MAX_FILES} files"
        seen.add(path)
    # In this order whatever lies below a path follows it at once: no name holds a NUL, which sorts before all else. To
    # keep every parent of every path instead takes a hundred times the memory of a hostile file.
    ordered = sorted(path.replace("/", "\0") for path in seen)
    for path, after in pairwise(ordered):
        if after.startswith(f"{path}\0"):
            return path.replace("\0", "/"), "it is a file and a folder"
    return "", ""
