"""The secret of a webhook: how it is written, and never shown.

Decides whether it is a key that Standard Webhooks accepts. No error of it says more than file, line and key.
"""

from __future__ import annotations

import base64
import binascii
import re

from rearguard.config.document import Scalar
from rearguard.config.reader import Fields
from rearguard.config.refusal import refusal
from rearguard.errors import ConfigError

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""Stands for an environment variable."""

_PREFIX = "whsec_"
SECRET_FORM = f"{_PREFIX} and the base64 of 24 to 64 bytes, or ${{NAME}} of an environment variable that holds it"
_PIECE = re.compile(r"[A-Za-z0-9+/=_]*")
_MIN_BYTES, _MAX_BYTES = 24, 64
"""Standard Webhooks 1.0, "Signature scheme": 192 to 512 bits."""


def read_secret(channel: Fields) -> str:
    """`secret` of a webhook as written, or empty when there is none; `${NAME}` stays in place. Raises `ConfigError`."""
    node = channel.mapping.find("secret")
    if node is None:
        return ""
    text = node.text if isinstance(node, Scalar) else ""
    literal = VARIABLE.sub("", text)
    if "${" in literal:
        raise _refusal(channel, SECRET_FORM, "config_variable")
    # With a variable only its form can be judged: the rest of it is a piece of a secret.
    if not (_PIECE.fullmatch(literal) if literal != text else is_secret(text)):
        raise _refusal(channel, SECRET_FORM)
    return text


def is_secret(text: str) -> bool:
    """Whether it is a key that Standard Webhooks accepts: `whsec_` and base64."""
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith(_PREFIX) and _MIN_BYTES <= len(key) <= _MAX_BYTES


def refuse_secret(channel: Fields, kind: str) -> None:
    """Only a webhook has one. Raises `ConfigError` without the value, which any other refusal would show."""
    if channel.has("secret") and kind != "webhook":
        raise _refusal(channel, "no such key: only a webhook is signed", "config_unknown_key")


def _refusal(channel: Fields, accepted: str, code: str = "config_value") -> ConfigError:
    node = channel.mapping.find("secret")
    line = node.line if node is not None else channel.mapping.line
    path = (*channel.path, "secret")
    return refusal(code, file=channel.file, line=line, path=path, found="is not accepted", accepted=accepted)
