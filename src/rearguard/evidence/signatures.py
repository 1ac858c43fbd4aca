"""Ed25519 keys and signatures (RFC 8032): the only room that knows the cryptography library.

The library is loaded when a key is used, never before: most commands use none. Private keys are PKCS #8 PEM (RFC 5958),
public ones SubjectPublicKeyInfo PEM (RFC 8410), so that openssl reads both.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from rearguard.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def new_private_key() -> str:
    """A new private key as PEM, from the kernel's randomness."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return (
        Ed25519PrivateKey.generate()
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode("ascii")
    )


def public_key_of(private_pem: str) -> str:
    """The public key of a private one, as PEM. Raises `UsageError` `key_unreadable`."""
    return _public_pem(_private(private_pem).public_key())


def read_public_key(text: str) -> str:
    """A public key in the form in which it is kept, whatever stands around it. Raises `UsageError` `key_unreadable`."""
    return _public_pem(_public(text))


def fingerprint(public_pem: str) -> str:
    """`sha256:` and the digest of the key's DER form, as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
    from cryptography.hazmat.primitives import serialization

    der = _public(public_pem).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def sign(private_pem: str, message: bytes) -> bytes:
    """The 64 bytes of a signature; the same key and message give the same. Raises `UsageError` `key_unreadable`."""
    return _private(private_pem).sign(message)


def is_signed(public_pem: str, signature: bytes, message: bytes) -> bool:
    """True when the signature is this key's over these very bytes."""
    from cryptography.exceptions import InvalidSignature

    try:
        _public(public_pem).verify(signature, message)
    except (InvalidSignature, UsageError):
        return False
    return True


def _private(pem: str) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(pem.encode("utf-8"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(
            "key_unreadable", f"no private key: {error}", "name a file that `rearguard key new` wrote, without password"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("key_unreadable", "the private key is not Ed25519", "make one with `rearguard key new`")
    return key


def _public(pem: str) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(pem.encode("utf-8"))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(
            "key_unreadable", f"no public key: {error}", "name a PEM file with what `rearguard key new` printed"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError("key_unreadable", "the public key is not Ed25519", "make one with `rearguard key new`")
    return key


def _public_pem(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode("ascii")
