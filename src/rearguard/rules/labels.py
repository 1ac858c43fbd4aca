"""Which version labels are taken: a label stands in command lines, in references and in file names."""

from __future__ import annotations

MAX_VERSION = 64
VERSION_ACCEPTED = f"letters, digits and . _ - + only, at most {MAX_VERSION}, and not dots alone"


def is_version(text: str) -> bool:
    """True for what may be the version of a checkpoint."""
    return 0 < len(text) <= MAX_VERSION and all(c.isalnum() or c in "._-+" for c in text) and bool(text.strip("."))
