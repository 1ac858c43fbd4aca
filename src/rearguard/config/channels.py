"""Receivers of messages: a channel, and the sign of life. Their secrets are read from the environment only to deliver.

Decides whether a receiver is written well, with `${NAME}` left in place, so that whoever only reads needs none of the
variables; and fills them in for whoever delivers. No error shows more than what stands in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Mapping as Environ
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from rearguard.config.reader import Fields
from rearguard.config.refusal import refusal
from rearguard.config.secret import SECRET_FORM, VARIABLE, is_secret, read_secret, refuse_secret
from rearguard.errors import ConfigError
from rearguard.model.settings import ChannelSettings

CHANNEL_KINDS = {"webhook": "url", "file": "path", "command": "argv"}
"""Kind of a channel and the one key that it needs."""

_URL_FORM = "an http:// or https:// address, in which ${NAME} stands for an environment variable"
_SCHEMES = ("http://", "https://")


def read_receiver(section: Fields, name: str, folder: Path, *, also: tuple[str, ...] = ()) -> ChannelSettings:
    """The receiver written in `section`, its variables left as written; `also` are keys that somebody else reads.

    Raises `ConfigError`, `config_variable` for a `${` that names no variable.
    """
    kind = section.choice("kind", tuple(CHANNEL_KINDS))
    refuse_secret(section, kind)
    section.only(("kind", CHANNEL_KINDS[kind], *(("secret",) if kind == "webhook" else ()), *also))
    place = {"file": section.file, "path_in_file": section.path}
    match kind:
        case "webhook":
            lines = {f"{key}_line": _line(section, key) for key in ("url", "secret")}
            url, secret = _url(section), read_secret(section)
            return ChannelSettings(name=name, kind=kind, url=url, secret=secret, **place, **lines)  # type: ignore[arg-type]
        case "file":
            written = section.text("path", "the path of the file that messages are appended to")
            return ChannelSettings(name=name, kind=kind, path=str(folder / written), **place)  # type: ignore[arg-type]
        case _:
            argv = section.texts("argv", "a list of a program and its arguments, for example [/usr/bin/notify, ops]")
            return ChannelSettings(name=name, kind=kind, argv=argv, **place)  # type: ignore[arg-type]


def filled(channel: ChannelSettings, environ: Environ[str, str] | None = None) -> ChannelSettings:
    """The channel with every `${NAME}` replaced, once, from `environ` (default: this process's).

    Raises `ConfigError`: `config_variable` for one that is not set or empty, `config_value` when the whole is no address
    or no secret. The error shows an address as written and a secret not at all.
    """
    environ = os.environ if environ is None else environ
    url = _fill(channel, "url", channel.url, environ)
    if channel.kind == "webhook" and not _is_web_address(url):
        raise _refusal(channel, "url", _URL_FORM)
    secret = _fill(channel, "secret", channel.secret, environ)
    if secret and not is_secret(secret):
        raise _refusal(channel, "secret", SECRET_FORM)
    return replace(channel, url=url, secret=secret)


def refuse_unfilled(channels: Iterable[ChannelSettings], environ: Environ[str, str] | None = None) -> None:
    """For whoever is going to deliver for long. Raises as `filled`, of the first that cannot be."""
    for channel in channels:
        filled(channel, environ)


def _fill(channel: ChannelSettings, key: str, written: str, environ: Environ[str, str]) -> str:
    for name in VARIABLE.findall(written):
        if not environ.get(name):
            accepted = f"the environment variable {name[:64]} to be set and not empty"
            raise _refusal(channel, key, accepted, "config_variable")
    return VARIABLE.sub(lambda found: environ[found[1]], written)


def _refusal(channel: ChannelSettings, key: str, accepted: str, code: str = "config_value") -> ConfigError:
    shown = key == "url"
    return refusal(
        code,
        file=channel.file,
        line=channel.url_line if shown else channel.secret_line,
        path=(*channel.path_in_file, key),
        value=channel.url if shown else None,
        found="" if shown else "is not accepted",
        accepted=accepted,
        hint="set it where the officer and `rearguard doctor` run" if code == "config_variable" else "",
    )


def _line(section: Fields, key: str) -> int:
    node = section.mapping.find(key)
    return node.line if node is not None else section.mapping.line


def _url(section: Fields) -> str:
    """The address as written. What its variables hold is not known yet: they stand for some text without a space."""
    written = section.raw_text("url", _URL_FORM)
    if "${" in VARIABLE.sub("", written):
        raise section.refuse("url", _URL_FORM, code="config_variable")
    head = written.partition("${")[0]
    if "://" not in head and len(head) < len(written) and any(scheme.startswith(head) for scheme in _SCHEMES):
        plausible = _SCHEMES[0] + "1" + VARIABLE.sub("1", written)
    else:
        plausible = VARIABLE.sub("1", written)  # a digit fits a name, a port and a path
    if not _is_web_address(plausible):
        raise section.refuse("url", _URL_FORM)
    return written


def _is_web_address(url: str) -> bool:
    if len(url) > 4_096 or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
