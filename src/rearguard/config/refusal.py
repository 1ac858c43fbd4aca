"""How a refused setting is told: one sentence with file, line, key, value and the accepted form.

A sentence stays one short line whatever stands in the file: values are shortened and control characters escaped, so
that a file cannot write to the terminal of whoever reads the error.
"""

from __future__ import annotations

import re

from rearguard.errors import ConfigError

SHOWN_CHARACTERS = 80
"""Chosen: enough to recognise a value, short enough for one line."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


def shown(text: str) -> str:
    """`text` in double quotes, at most `SHOWN_CHARACTERS` long, with quotes and unprintable characters escaped."""
    cut = text[:SHOWN_CHARACTERS]
    escaped = "".join(_escaped(c) for c in cut)
    return f'"{escaped}"' if len(cut) == len(text) else f'"{escaped}…"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, f"\\u{{{ord(character):x}}}")


def dotted(path: tuple[str, ...]) -> str:
    """The keys of `path` joined with dots; a key that is not a plain word stands in quotes."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else shown(key) for key in path)


def refusal(
    code: str,
    *,
    file: str,
    line: int = 0,
    path: tuple[str, ...] = (),
    value: str | None = None,
    accepted: str,
    found: str = "",
    hint: str = "",
) -> ConfigError:
    """The error for what stands at `path`.

    `value` is as written and None where nothing stands; `found` replaces "is not accepted" or "is missing" where a
    plainer statement exists. `line` 0 means the file as a whole.
    """
    where = f"{file}:{line}" if line else file
    key = dotted(path)
    statement = found or ("is missing" if value is None else "is not accepted")
    subject = " = ".join(part for part in (key, "" if value is None else shown(value)) if part)
    message = f"{where}: {subject} {statement}" if subject else f"{where}: {statement}"
    return ConfigError(
        code,
        f"{message}; expected {accepted}",
        hint,
        file=file,
        line=line,
        key=key,
        value="" if value is None else value,
        accepted=accepted,
    )
