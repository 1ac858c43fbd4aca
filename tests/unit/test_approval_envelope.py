"""Envelopes and signatures against the vectors of their standards."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from rearguard.errors import UsageError
from rearguard.evidence import signatures
from rearguard.rules.dsse import Envelope, MalformedEnvelopeError, decode, encode, pre_authentication_encoding

# secure-systems-lab/dsse, protocol.md, "Test Vectors".
DSSE_TYPE = "http://example.com/HelloWorld"
DSSE_BODY = b"hello world"
DSSE_PAE = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
DSSE_X = 46950820868899156662930047687818585632848591499744589407958293238635476079160
DSSE_Y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
DSSE_SIGNATURE = "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="

# RFC 8032 section 7.1, TEST 1 to 3: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def private_pem(secret: str) -> str:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode("ascii")


def envelope(**changed: object) -> Envelope:
    fields = {"payload_type": "t", "payload": b"{}", "key_id": "k", "signature": b"s" * 64}
    return Envelope(**(fields | changed))  # type: ignore[arg-type]


def test_the_pre_authentication_encoding_is_that_of_the_specification() -> None:
    assert pre_authentication_encoding(DSSE_TYPE, DSSE_BODY) == DSSE_PAE


def test_the_specifications_own_signature_holds_over_our_encoding() -> None:
    """Raises `InvalidSignature` otherwise."""
    raw = base64.b64decode(DSSE_SIGNATURE)
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    key = ec.EllipticCurvePublicNumbers(DSSE_X, DSSE_Y, ec.SECP256R1()).public_key()
    signed = pre_authentication_encoding(DSSE_TYPE, DSSE_BODY)
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))


def test_lengths_are_counted_in_bytes() -> None:
    """`é` is two bytes in UTF-8."""
    assert pre_authentication_encoding("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_the_text_of_an_envelope_has_the_fields_of_the_specification() -> None:
    """envelope.md; Base64 of `hello world` and of 64 times `s` by hand: `hello world` is in the specification."""
    text = encode(envelope(payload_type=DSSE_TYPE, payload=DSSE_BODY, key_id="66301bbf", signature=b"\x00"))
    assert text == (
        '{"payload":"aGVsbG8gd29ybGQ=","payloadType":"http://example.com/HelloWorld",'
        '"signatures":[{"keyid":"66301bbf","sig":"AA=="}]}'
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"payload":"","payloadType":"t","signatures":[]}',
        '{"payload":"","payloadType":"t","signatures":[{"keyid":"k","sig":""},{"keyid":"k","sig":""}]}',
        '{"payload":"","payloadType":1,"signatures":[{"keyid":"k","sig":""}]}',
        '{"payload":"","payloadType":"t","signatures":[{"keyid":null,"sig":""}]}',
        '{"payload":"","payloadType":"t","signatures":[{"keyid":"k","sig":"AB=="}]}',  # unused bits that are not zero
        '{"payload": "","payloadType":"t","signatures":[{"keyid":"k","sig":""}]}',
        '{"payload":"","payloadType":"t","signatures":[{"keyid":"k","sig":""}],"x":0}',
        '{"payload":"","payloadType":"t","payloadType":"t","signatures":[{"keyid":"k","sig":""}]}',
    ],
)
def test_another_form_of_an_envelope_is_refused(text: str) -> None:
    with pytest.raises(MalformedEnvelopeError):
        decode(text)


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    pem = private_pem(secret)
    assert signatures.sign(pem, bytes.fromhex(message)).hex() == signature
    der = base64.b64decode("".join(signatures.public_key_of(pem).splitlines()[1:-1]))
    assert der.hex() == "302a300506032b6570032100" + public  # RFC 8410 section 10.1 prefix of an Ed25519 key


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_a_signature_of_rfc_8032_is_accepted(secret: str, public: str, message: str, signature: str) -> None:
    key = signatures.public_key_of(private_pem(secret))
    assert signatures.is_signed(key, bytes.fromhex(signature), bytes.fromhex(message))


def test_a_signature_over_other_bytes_is_none() -> None:
    secret, _, _, signature = RFC_8032[1]
    key = signatures.public_key_of(private_pem(secret))
    assert not signatures.is_signed(key, bytes.fromhex(signature), b"\x73")


def test_a_signature_by_another_key_is_none() -> None:
    key = signatures.public_key_of(private_pem(RFC_8032[0][0]))
    assert not signatures.is_signed(key, bytes.fromhex(RFC_8032[1][3]), b"\x72")


def test_the_fingerprint_is_the_digest_of_the_der_form() -> None:
    secret, public, _, _ = RFC_8032[0]
    expected = hashlib.sha256(bytes.fromhex("302a300506032b6570032100" + public)).hexdigest()
    assert signatures.fingerprint(signatures.public_key_of(private_pem(secret))) == f"sha256:{expected}"


def test_a_key_of_another_kind_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(UsageError) as refused:
        signatures.sign(pem.decode("ascii"), b"")
    assert refused.value.code == "key_unreadable"


def test_a_key_under_a_password_is_refused_with_words() -> None:
    key = Ed25519PrivateKey.generate()
    locked = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    with pytest.raises(UsageError) as refused:
        signatures.public_key_of(pem.decode("ascii"))
    assert (refused.value.code, "password" in refused.value.hint) == ("key_unreadable", True)
