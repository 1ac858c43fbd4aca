"""Typed readers of the fields of one mapping of a settings file.

Decides whether a text is the number, duration, name or list that a field accepts; which fields exist is left to
`settings` and `playbook`. Every refusal is a `ConfigError` that names file, line, dotted key, value and accepted form.
A key that nobody reads is refused when its mapping is opened, so a misspelt key never falls back to a default.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from rearguard.config.document import Document, Mapping, Node, Scalar, Sequence
from rearguard.config.refusal import refusal
from rearguard.errors import ConfigError

OFF = "off"
"""The text that switches a section off."""

MAX_TEXT_CHARACTERS = 4_096
"""Chosen: longer than any path or URL that Linux or a proxy takes."""

MAX_DURATION_MS = 366 * 86_400_000
"""Chosen: nothing here lasts longer than a year."""

_MS_PER_UNIT = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,6}))? ?(ms|s|min|h|d)")
# No leading zero: `010` is eight for one YAML reader and ten for the next. No underscore, infinity or NaN.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?")
_VARIABLE = "${"
_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """One mapping of the file and the dotted path that leads to it."""

    file: str
    path: tuple[str, ...]
    mapping: Mapping

    def has(self, key: str) -> bool:
        """Whether `key` stands here."""
        return self.mapping.find(key) is not None

    def only(self, accepted: tuple[str, ...]) -> Fields:
        """These fields, once each key is one of `accepted`; otherwise ConfigError with the closest accepted key."""
        for name, value in self.mapping.entries:
            if name.text in accepted:
                continue
            raise refusal(
                "config_unknown_key",
                file=self.file,
                line=name.line,
                path=(*self.path, name.text),
                value=_written(value),
                accepted=f"one of the keys {', '.join(accepted)}{suggestion(name.text, accepted)}",
            )
        return self

    def refuse(self, key: str, accepted: str, *, code: str = "config_value") -> ConfigError:
        """The error for the value of `key`, or for its absence."""
        value = self.mapping.find(key)
        if value is None:
            return refusal(
                "config_missing_key",
                file=self.file,
                line=self.mapping.line,
                path=(*self.path, key),
                accepted=accepted,
            )
        return self._refuse_node(key, value, accepted, code)

    def _refuse_node(self, key: str, node: Node, accepted: str, code: str = "config_value") -> ConfigError:
        return refusal(
            code, file=self.file, line=node.line, path=(*self.path, key), value=_written(node), accepted=accepted
        )

    def is_off(self, key: str) -> bool:
        """Whether the value of `key` is the word `off`."""
        value = self.mapping.find(key)
        return isinstance(value, Scalar) and value.text == OFF

    def section(self, key: str, accepted: tuple[str, ...], *, required: bool = False, or_off: bool = False) -> Fields:
        """The mapping at `key`, with no keys but `accepted`; an empty one when it may be missing and is."""
        value = self.mapping.find(key)
        form = f"a section with keys of {', '.join(accepted)}{', or the word off' if or_off else ''}"
        if value is None and not required:
            value = Mapping((), self.mapping.line)
        if not isinstance(value, Mapping):
            raise self.refuse(key, form)
        return Fields(file=self.file, path=(*self.path, key), mapping=value).only(accepted)

    def named(self, key: str, what: str, form: re.Pattern[str], *, required: bool = True) -> Fields:
        """The mapping at `key`, whose keys are names that the file chooses; each matches `form`.

        At least one when `required`, otherwise none when the key is missing.
        """
        value = self.mapping.find(key)
        if value is None and not required:
            value = Mapping((), self.mapping.line)
        if not isinstance(value, Mapping) or (required and not value.entries):
            raise self.refuse(key, f"a section with at least one {what}")
        for name, _ in value.entries:
            if form.fullmatch(name.text) is None:
                raise refusal(
                    "config_name",
                    file=self.file,
                    line=name.line,
                    path=(*self.path, key, name.text),
                    found="is not an accepted name",
                    accepted=f"a name of a {what} that matches {form.pattern}",
                )
        return Fields(file=self.file, path=(*self.path, key), mapping=value)

    def names(self) -> tuple[str, ...]:
        """The keys that stand here, in the order of the file."""
        return tuple(name.text for name, _ in self.mapping.entries)

    def items(self, key: str, what: str, accepted: tuple[str, ...]) -> tuple[Fields, ...]:
        """The mappings of the list at `key`, in order; in paths they count from 1, such as `steps.3.owner`."""
        value = self.mapping.find(key)
        if not isinstance(value, Sequence):
            raise self.refuse(key, what)
        found = []
        for number, item in enumerate(value.items, start=1):
            if not isinstance(item, Mapping):
                entry = Fields(file=self.file, path=(*self.path, key), mapping=self.mapping)
                raise entry._refuse_node(str(number), item, what)
            found.append(Fields(file=self.file, path=(*self.path, key, str(number)), mapping=item).only(accepted))
        return tuple(found)

    def text(self, key: str, what: str, default: str | None = None) -> str:
        """One line of text; without `default` the key is required."""
        value = self.mapping.find(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, Scalar):
            raise self.refuse(key, what)
        return self._checked_text(key, value, what)

    def _checked_text(self, key: str, node: Scalar, what: str) -> str:
        if not node.text or (not node.quoted and node.text in _NOTHING):
            raise self._refuse_node(key, node, what)
        if len(node.text) > MAX_TEXT_CHARACTERS or not node.text.isprintable():
            accepted = f"{what}, in one printable line of at most {MAX_TEXT_CHARACTERS} characters"
            raise self._refuse_node(key, node, accepted)
        if _VARIABLE in node.text:
            accepted = f"{what}; ${{NAME}} is taken from the environment in the url of a channel only"
            raise self._refuse_node(key, node, accepted, "config_variable")
        return node.text

    def raw_text(self, key: str, what: str) -> str:
        """Required text as it was written, with `${NAME}` left in place and nothing else checked than being text."""
        value = self.mapping.find(key)
        if not isinstance(value, Scalar):
            raise self.refuse(key, what)
        return value.text

    def choice(self, key: str, accepted: tuple[str, ...], default: str | None = None) -> str:
        """One of the words `accepted`."""
        value = self.mapping.find(key)
        if value is None and default is not None:
            return default
        written = value.text if isinstance(value, Scalar) else ""
        if written not in accepted:
            form = accepted[0] if len(accepted) == 1 else f"one of {', '.join(accepted)}"
            raise self.refuse(key, f"{form}{suggestion(written, accepted)}")
        return written

    def boolean(self, key: str) -> bool:
        """`true` or `false`, required, without quotes."""
        value = self.mapping.find(key)
        if not isinstance(value, Scalar) or value.quoted or value.text not in ("true", "false"):
            raise self.refuse(key, "true or false, without quotes")
        return value.text == "true"

    def number(
        self,
        key: str,
        unit: str,
        default: Decimal | None = None,
        *,
        above: Decimal | None = None,
        at_least: Decimal | None = None,
        at_most: Decimal | None = None,
        example: str,
    ) -> Decimal:
        """An exact decimal number of `unit` within the bounds given (R23); without `default` the key is required."""
        value = self.mapping.find(key)
        if value is None and default is not None:
            return default
        number = plain_number(value)
        if (
            number is None
            or (above is not None and number <= above)
            or (at_least is not None and number < at_least)
            or (at_most is not None and number > at_most)
        ):
            bounds = (("> ", above), (">= ", at_least), ("<= ", at_most))
            limits = " and ".join(f"{sign}{bound:f}" for sign, bound in bounds if bound is not None)
            form = f"a number of {unit}{f' {limits}' if limits else ''}{_no_quotes(value)}, for example {example}"
            raise self.refuse(key, form)
        return number

    def integer(self, key: str, unit: str, default: int, *, at_least: int, at_most: int, example: str) -> int:
        """A whole number of `unit` within the bounds, written with digits only."""
        value = self.mapping.find(key)
        if value is None:
            return default
        number = plain_number(value)
        digits = isinstance(value, Scalar) and value.text.isdecimal()
        if number is None or not digits or not at_least <= number <= at_most:
            form = f"a whole number of {unit} from {at_least} to {at_most}{_no_quotes(value)}, for example {example}"
            raise self.refuse(key, form)
        return int(number)

    def duration_s(self, key: str, default_s: int | None = None, *, at_least_s: int = 1, example: str) -> int:
        """A duration in whole seconds, written with its unit; without `default_s` the key is required."""
        if default_s is not None and not self.has(key):
            return default_s
        return self._duration(key, at_least_s, 1_000, "seconds", example) // 1_000

    def duration_ms(self, key: str, default_ms: int, *, at_least_ms: int = 1, example: str) -> int:
        """A duration in whole milliseconds, written with its unit."""
        if not self.has(key):
            return default_ms
        return self._duration(key, at_least_ms, 1, "milliseconds", example)

    def _duration(self, key: str, at_least: int, step_ms: int, step: str, example: str) -> int:
        value = self.mapping.find(key)
        ms = duration_of(value.text) if isinstance(value, Scalar) else None
        if ms is None or ms % step_ms or not at_least * step_ms <= ms <= MAX_DURATION_MS:
            form = f"a duration of {at_least} or more whole {step}, with its unit (ms, s, min, h or d)"
            raise self.refuse(key, f"{form}, for example {example}")
        return int(ms)

    def texts(self, key: str, what: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts; without `default` it is required and not empty."""
        value = self.mapping.find(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, Sequence) or (default is None and not value.items):
            raise self.refuse(key, what)
        return tuple(self._list_item(key, item, what) for item in value.items)

    def _list_item(self, key: str, item: Node, what: str) -> str:
        if not isinstance(item, Scalar):
            raise self._refuse_node(key, item, what)
        return self._checked_text(key, item, what)

    def options(self, leave_out: frozenset[str]) -> dict[str, object]:
        """Every other field as text, exact number or list of texts: an adapter's own options, unjudged."""
        entries = ((name.text, value) for name, value in self.mapping.entries)
        return {name: self._option(name, value) for name, value in entries if name not in leave_out}

    def _option(self, key: str, node: Node) -> object:
        what = "a text, a number or a list of texts"
        match node:
            case Scalar():
                number = plain_number(node)
                return number if number is not None else self._checked_text(key, node, what)
            case Sequence():
                return [self._list_item(key, item, what) for item in node.items]
            case Mapping():
                raise self._refuse_node(key, node, what)


def root_fields(document: Document, accepted: tuple[str, ...]) -> Fields:
    """The fields of the whole file, with no keys but `accepted`."""
    if not isinstance(document.root, Mapping):
        raise refusal(
            "config_value",
            file=document.file,
            line=document.root.line,
            value=_written(document.root),
            accepted=f"a section with the keys {', '.join(accepted)}",
        )
    return Fields(file=document.file, path=(), mapping=document.root).only(accepted)


def plain_number(node: Node | None) -> Decimal | None:
    """The exact number that an unquoted scalar spells, or None."""
    if not isinstance(node, Scalar) or node.quoted or _NUMBER.fullmatch(node.text) is None:
        return None
    return Decimal(node.text)


def duration_of(text: str) -> int | None:
    """Milliseconds of `60 s`, `500 ms`, `1.5 h`, `10 min` or `2 d`; None for anything else, also for part of one."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    whole, fraction, unit = match.groups(default="")
    ms, rest = divmod(int(whole + fraction) * _MS_PER_UNIT[unit], 10 ** len(fraction))
    return None if rest else ms


def suggestion(name: str, accepted: Iterable[str]) -> str:
    """` (did you mean x?)` for the accepted word closest to `name`, or nothing."""
    # Bounded: the comparison takes time in the product of both lengths.
    close = difflib.get_close_matches(name, list(accepted), n=1, cutoff=0.6) if len(name) <= 64 else []
    return f" (did you mean {close[0]}?)" if close else ""


def _written(node: Node) -> str:
    match node:
        case Scalar():
            return node.text
        case Sequence():
            return "[...]" if node.items else "[]"
        case Mapping():
            return "{...}" if node.entries else "{}"


def _no_quotes(node: Node | None) -> str:
    return " without quotes" if isinstance(node, Scalar) and node.quoted else ""
