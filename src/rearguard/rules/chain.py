"""Canonical bytes, record digests and the check of a whole chain.

Laws: `record_hash` covers every field of a record but `hash` itself; a chain verifies iff ids run 1, 2, 3 ... without
gaps, each `prev` is the hash before it, and each `hash` is the digest of its own record (R46).
Canonical form: RFC 8785 restricted to ASCII keys and to values without floats, so that sorting by code point equals
the RFC's sorting by UTF-16 unit and a verifier needs nothing but a standard library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rearguard.model.evidence import Record
from rearguard.model.time import NS_PER_S, parse_rfc3339

GENESIS = "0" * 64
_MAX_INTEGER = 2**53 - 1
"""Largest integer of I-JSON (RFC 7493 section 2.2); larger numbers travel as decimal strings."""
MAX_STEP_BACK_S = 120
"""A record whose wall clock lies this much before its predecessor's is back-dated (R58)."""


class NotCanonicalError(ValueError):
    """A value that has no canonical form here: a float, a non-ASCII key, a huge integer, half a character, a foreign type."""


def canonical_bytes(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value without floats; raises `NotCanonicalError`."""
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _check(value: Any, path: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):  # RFC 8785 section 3.2.2.2: a lone surrogate ends in an error
            raise NotCanonicalError(f"{path}: half of a surrogate pair has no UTF-8 form")
        return
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise NotCanonicalError(f"{path}: integer beyond 2**53 - 1; store it as a decimal string")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise NotCanonicalError(f"{path}: key {key!r} is not an ASCII string")
            _check(item, f"{path}.{key}")
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")
        return
    raise NotCanonicalError(f"{path}: a {type(value).__name__} has no place in evidence; store it as a string")


def record_fields(record: Record) -> dict[str, Any]:
    """The record as it stands in a file, `hash` included."""
    return {
        "id": record.id,
        "ts": record.ts,
        "monotonic_ns": record.monotonic_ns,
        "boot_id": record.boot_id,
        "run_id": record.run_id,
        "service": record.service,
        "env": record.env,
        "kind": record.kind,
        "body": record.body,
        "prev": record.prev,
        "hash": record.hash,
    }


def record_hash(fields: dict[str, Any]) -> str:
    """SHA-256, lower-case hex, of the canonical bytes of all fields but `hash`."""
    return hashlib.sha256(canonical_bytes({k: v for k, v in fields.items() if k != "hash"})).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFinding:
    """The first bad record of a chain."""

    id: int
    """Id at which the chain stops being what was recorded."""
    code: str
    """`gap`, `prev_mismatch`, `hash_mismatch`, `not_canonical`, `back_dated`."""
    message: str


def verify_chain(records: Iterable[dict[str, Any]]) -> ChainFinding | None:
    """The first record that breaks a law above, or None for a sound chain (the empty one included)."""
    prev, expected_id, newest_ts = GENESIS, 1, ""
    for fields in records:
        found = fields.get("id")
        if found != expected_id:
            return ChainFinding(id=expected_id, code="gap", message=f"record {expected_id} is missing; found {found!r}")
        if fields.get("prev") != prev:
            return ChainFinding(
                id=expected_id,
                code="prev_mismatch",
                message=f"record {expected_id} does not follow record {expected_id - 1}",
            )
        try:
            digest = record_hash(fields)
        except NotCanonicalError as error:
            return ChainFinding(id=expected_id, code="not_canonical", message=str(error))
        if fields.get("hash") != digest:
            return ChainFinding(id=expected_id, code="hash_mismatch", message=f"record {expected_id} was altered")
        ts = str(fields.get("ts"))
        if newest_ts and _seconds(ts) < _seconds(newest_ts) - MAX_STEP_BACK_S:
            return ChainFinding(
                id=expected_id,
                code="back_dated",
                message=f"record {expected_id} is dated {ts}, its predecessor {newest_ts}",
            )
        prev, expected_id, newest_ts = digest, expected_id + 1, max(newest_ts, ts)
    return None


def _seconds(ts: str) -> int:
    """A number that orders and subtracts like the RFC 3339 instant; -1 when it is none."""
    try:
        return parse_rfc3339(ts) // NS_PER_S
    except ValueError:
        return -1
