"""The secret of a webhook: read from the file or the environment, and never shown.

Decides whether it is a key that Standard Webhooks accepts. No error of it says more than file, line and key.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping as Environ

from rearguard.config.document import Scalar
from rearguard.config.reader import Fields
from rearguard.config.refusal import refusal
from rearguard.errors import ConfigError

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""Stands for an environment variable."""

_PREFIX = "whsec_"
_FORM = f"{_PREFIX} and the base64 of 24 to 64 bytes, or ${{NAME}} of an environment variable that holds it"
_MIN_BYTES, _MAX_BYTES = 24, 64
"""Standard Webhooks 1.0, "Signature scheme": 192 to 512 bits."""


def read_secret(channel: Fields, environ: Environ[str, str]) -> str:
    """`secret` of a webhook channel as `whsec_` and base64, or empty when there is none. Raises `ConfigError`."""
    node = channel.mapping.find("secret")
    if node is None:
        return ""
    text = node.text if isinstance(node, Scalar) else ""
    for name in VARIABLE.findall(text):
        if not environ.get(name):
            raise _refusal(channel, f"the environment variable {name[:64]} to be set and not empty", "config_variable")
    secret = VARIABLE.sub(lambda found: environ[found[1]], text)
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise _refusal(channel, _FORM)
    return secret


def refuse_secret(channel: Fields, kind: str) -> None:
    """Only a webhook has one. Raises `ConfigError` without the value, which any other refusal would show."""
    if channel.has("secret") and kind != "webhook":
        raise _refusal(channel, "no such key: only a webhook is signed", "config_unknown_key")


def _refusal(channel: Fields, accepted: str, code: str = "config_value") -> ConfigError:
    node = channel.mapping.find("secret")
    line = node.line if node is not None else channel.mapping.line
    path = (*channel.path, "secret")
    return refusal(code, file=channel.file, line=line, path=path, found="is not accepted", accepted=accepted)
