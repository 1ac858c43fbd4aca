"""Signed envelopes: DSSE version 1 (secure-systems-lab/dsse, protocol.md and envelope.md), in one strict form.

Owns the bytes that are signed and the text that is kept. Who may sign, and whether a signature holds, is asked elsewhere.
Law: `decode(encode(e)) == e`, and `decode` takes no other text for the same envelope. The specification lets a verifier
take more forms of Base64 and of JSON; a stored envelope has one writer, so anything else was altered.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from rearguard.rules.chain import canonical_bytes


class MalformedEnvelopeError(ValueError):
    """A text that is no envelope of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload with one signature over it."""

    payload_type: str
    payload: bytes
    key_id: str
    """A hint which key to try; the signature does not cover it (protocol.md: KEYID)."""
    signature: bytes


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What is signed: `DSSEv1 LEN(type) type LEN(payload) payload`, lengths in bytes (protocol.md: PAE)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode(envelope: Envelope) -> str:
    """The envelope as canonical JSON (envelope.md) with standard Base64."""
    return canonical_bytes(to_json(envelope)).decode("ascii")


def to_json(envelope: Envelope) -> dict[str, object]:
    """The envelope as a JSON value."""
    signature = {"keyid": envelope.key_id, "sig": _base64(envelope.signature)}
    return {
        "payload": _base64(envelope.payload),
        "payloadType": envelope.payload_type,
        "signatures": [signature],
    }


def decode(text: str) -> Envelope:
    """The envelope that `encode` wrote. Raises `MalformedEnvelopeError` for any other text."""
    try:
        value = json.loads(text)
        (signature,) = value["signatures"]
        found = Envelope(
            payload_type=_text(value["payloadType"]),
            payload=base64.b64decode(value["payload"], validate=True),
            key_id=_text(signature["keyid"]),
            signature=base64.b64decode(signature["sig"], validate=True),
        )
        same = encode(found) == text
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise MalformedEnvelopeError(f"no envelope: {type(error).__name__}") from error
    if not same:
        raise MalformedEnvelopeError("not the form that was written")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
