"""Evidence records: one appended fact each, chained by hash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = Any
"""JSON without floats: dict, list, str, int, bool, None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of the evidence log; the format is normative in `docs/reference/evidence.md`."""

    id: int
    """Sequence number from 1, without gaps, never reused (R50)."""
    ts: str
    """RFC 3339, UTC, seconds (R56)."""
    monotonic_ns: str
    """Decimal string: it may exceed 2**53."""
    boot_id: str
    run_id: str | None
    service: str | None
    env: str | None
    kind: str
    body: dict[str, Json]
    prev: str
    """Hash of the record before, or 64 zeros."""
    hash: str
    """SHA-256 of the canonical bytes of all other fields."""
