"""Laws of signed envelopes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rearguard.evidence import signatures
from rearguard.recovery.approval import PAYLOAD_TYPE, opened
from rearguard.rules.dsse import Envelope, decode, encode, pre_authentication_encoding

PRIVATE = signatures.new_private_key()
PUBLIC = signatures.public_key_of(PRIVATE)


def signed(payload: bytes) -> str:
    return encode(
        Envelope(
            payload_type=PAYLOAD_TYPE,
            payload=payload,
            key_id=signatures.fingerprint(PUBLIC),
            signature=signatures.sign(PRIVATE, pre_authentication_encoding(PAYLOAD_TYPE, payload)),
        )
    )


@given(st.binary(max_size=200))
def test_an_envelope_that_nobody_touched_opens_to_its_payload(payload: bytes) -> None:
    assert opened(signed(payload), PUBLIC) == payload


def test_an_envelope_with_any_flipped_bit_does_not_open() -> None:
    """All of them: Base64 and JSON have spellings that mean the same, and a signature does not cover its key id."""
    text = signed(b'{"run_id":"run_0"}').encode("ascii")
    survived = []
    for position in range(len(text) * 8):
        changed = bytearray(text)
        changed[position // 8] ^= 1 << position % 8
        if opened(changed.decode("latin-1"), PUBLIC) is not None:
            survived.append(position)
    assert survived == []


@given(st.binary(max_size=50))
def test_an_envelope_of_another_key_does_not_open(payload: bytes) -> None:
    other = signatures.public_key_of(signatures.new_private_key())
    assert opened(signed(payload), other) is None


@given(st.text(max_size=20), st.binary(max_size=50), st.text(max_size=20), st.binary(max_size=80))
def test_decoding_gives_back_what_was_encoded(kind: str, payload: bytes, key_id: str, signature: bytes) -> None:
    ascii_only = kind.encode("ascii", "ignore").decode(), key_id.encode("ascii", "ignore").decode()
    before = Envelope(payload_type=ascii_only[0], payload=payload, key_id=ascii_only[1], signature=signature)
    assert decode(encode(before)) == before


@given(st.text(max_size=10), st.binary(max_size=30), st.text(max_size=10), st.binary(max_size=30))
def test_two_different_contents_are_never_signed_as_the_same_bytes(
    one: str, first: bytes, other: str, second: bytes
) -> None:
    same = pre_authentication_encoding(one, first) == pre_authentication_encoding(other, second)
    assert same == ((one, first) == (other, second))
