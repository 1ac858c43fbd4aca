"""YAML files as trees of text with line numbers, read strictly and within bounds.

Decides what a settings file may be made of: mappings, sequences and scalars of one UTF-8 document. Anchors, aliases,
merge keys and tags are refused, so a file cannot grow when it is read; a key stands once; every scalar stays the TEXT
that was written, so `1.1` is exact (R23) and `no` is not false. What a text means is left to `reader`.

The tree is built from the event stream of the pure-Python parser, one event at a time, and each bound is checked before
the next event is asked for. The C parser is not used: 100,000 opening brackets end its process with a signal. Nothing
here recurses over the input.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.resolver import Resolver

from rearguard.config.refusal import refusal
from rearguard.errors import ConfigError

MAX_BYTES = 1_048_576
"""Chosen: 1 MiB is thousands of services, and the pure parser reads it in seconds."""
MAX_DEPTH = 32
"""Collections inside collections. Chosen: our own files nest 7 deep."""
MAX_NODES = 20_000
"""Keys, values and collections together. Chosen: hundreds of services."""

_TEXT_TAG = "tag:yaml.org,2002:str"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """How large a document may be; each limit is checked before what exceeds it is read."""

    max_bytes: int = MAX_BYTES
    max_depth: int = MAX_DEPTH
    max_nodes: int = MAX_NODES


_SETTINGS_LIMITS = DocumentLimits()


@dataclass(frozen=True, slots=True)
class Scalar:
    """One text. `line` counts from 1; `quoted` is true for every style but plain."""

    text: str
    line: int
    quoted: bool


@dataclass(frozen=True, slots=True)
class Sequence:
    """Items in the order of the file."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys, each once, in the order of the file, and their values."""

    entries: tuple[tuple[Scalar, Node], ...]
    line: int

    def find(self, key: str) -> Node | None:
        """The value of `key`, or None when the key does not stand here."""
        return next((value for name, value in self.entries if name.text == key), None)


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What one file says, and the digest of the bytes that said it."""

    file: str
    """The path as it was given."""
    sha256: str
    root: Node


def read_document(path: Path, limits: DocumentLimits = _SETTINGS_LIMITS) -> Document:
    """Read `path` once and parse it. ConfigError when it is missing, no regular file, too large or not accepted."""
    file = str(path)
    return parse_document(_bytes_of(path, file, limits.max_bytes), file, limits)


def parse_document(raw: bytes, file: str, limits: DocumentLimits = _SETTINGS_LIMITS) -> Document:
    """The document that `raw` holds; `file` is its name in errors. ConfigError for everything that is not accepted."""
    if len(raw) > limits.max_bytes:
        accepted = f"a file of at most {limits.max_bytes >> 20} MiB"
        raise refusal("config_too_large", file=file, found="is too large", accepted=accepted)
    return Document(file=file, sha256=hashlib.sha256(raw).hexdigest(), root=_tree(_decoded(raw, file), file, limits))


def _bytes_of(path: Path, file: str, max_bytes: int) -> bytes:
    accepted = "a regular file that can be read"
    try:
        with open(path, "rb", opener=_open_at_once) as handle:
            if stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                return handle.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise refusal(
            "config_missing",
            file=file,
            found="does not exist",
            accepted="a file",
            hint="write one with `rearguard init`, or name another file",
        ) from error
    except (OSError, ValueError) as error:
        why = (error.strerror or "") if isinstance(error, OSError) else str(error)
        found = f"cannot be read ({why})"
        raise refusal("config_unreadable", file=file, found=found, accepted=accepted) from error
    raise refusal("config_unreadable", file=file, found="is not a regular file", accepted=accepted)


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe that nobody writes to would block for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _decoded(raw: bytes, file: str) -> str:
    nul = raw.find(b"\0")
    if nul >= 0:
        line = raw.count(b"\n", 0, nul) + 1
        raise refusal("config_character", file=file, line=line, found="holds a NUL byte", accepted="UTF-8 text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = f"holds the byte 0x{raw[error.start]:02x}, which is not UTF-8"
        raise refusal("config_not_utf8", file=file, line=line, found=found, accepted="UTF-8 text") from error


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read yet."""

    mapping: bool
    line: int
    items: list[Node] = field(default_factory=list)
    entries: list[tuple[Scalar, Node]] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    key: Scalar | None = None

    @property
    def wants_key(self) -> bool:
        return self.mapping and self.key is None

    def add(self, node: Node) -> None:
        if self.key is not None:
            self.entries.append((self.key, node))
            self.key = None
        else:
            self.items.append(node)

    def closed(self) -> Node:
        return Mapping(tuple(self.entries), self.line) if self.mapping else Sequence(tuple(self.items), self.line)


def _tree(text: str, file: str, limits: DocumentLimits) -> Node:
    """The only document of `text` as a tree."""
    stack: list[_Open] = []
    root: Node | None = None
    nodes = documents = 0
    for event in _events(text, file):
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    found = "starts a second document"
                    raise refusal(
                        "config_several_documents", file=file, line=line, found=found, accepted="one document a file"
                    )
                continue
            case yaml.AliasEvent() | yaml.ScalarEvent() | yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                nodes += 1
                if nodes > limits.max_nodes:
                    found = "is where the file gets too long"
                    accepted = f"at most {limits.max_nodes} keys and values"
                    raise refusal("config_too_many_nodes", file=file, line=line, found=found, accepted=accepted)
                _check_properties(event, stack, file, line)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                done = stack.pop().closed()
                if stack:
                    stack[-1].add(done)
                else:
                    root = done
                continue
            case _:
                continue
        if isinstance(event, yaml.ScalarEvent):
            scalar = _scalar(event, stack, file, line)
            if not stack:
                root = scalar
            elif stack[-1].wants_key:
                _take_key(scalar, stack, file)
            else:
                stack[-1].add(scalar)
            continue
        if stack and stack[-1].wants_key:
            found = "has a key that is a collection"
            raise refusal(
                "config_key_not_text", file=file, line=line, path=_path(stack), found=found, accepted="a key of text"
            )
        if len(stack) >= limits.max_depth:
            found = "is nested too deep"
            accepted = f"at most {limits.max_depth} collections inside each other"
            raise refusal("config_too_deep", file=file, line=line, found=found, accepted=accepted)
        stack.append(_Open(mapping=isinstance(event, yaml.MappingStartEvent), line=line))
    if root is None:
        raise refusal("config_empty", file=file, found="is empty", accepted="a mapping of keys to values")
    return root


def _events(text: str, file: str) -> Iterator[yaml.Event]:
    """The parser's events. Whatever it raises becomes a ConfigError."""
    # Reading ahead is bounded by the scanner itself: it looks for the end of a possible key on one line and at most
    # 1,024 characters far, so the checks in `_tree` see a flood of brackets long before it can cost anything.
    loader: yaml.SafeLoader | None = None
    while True:
        try:
            loader = loader or yaml.SafeLoader(text)
            event = _next_event(loader)
        except Exception as error:
            # The scanner also raises bare ValueError and OverflowError, such as for the escape "\UFFFFFFFF".
            raise _syntax_error(error, text, file, loader.line + 1 if loader is not None else 0) from error
        if event is None:
            return
        yield event


def _next_event(loader: yaml.SafeLoader) -> yaml.Event | None:
    # `check_event` is false at the end of the stream, where `get_event` would answer None for ever.
    if not loader.check_event():
        return None
    event: yaml.Event = loader.get_event()  # type: ignore[no-untyped-call]  # untyped in stubs
    return event


def _syntax_error(error: Exception, text: str, file: str, line: int) -> ConfigError:
    """The error for what the parser raised; `line` is how far it had read."""
    problem = "a value cannot be represented"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else line
        problem = error.problem or error.context or problem
    elif isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        problem = "a control character"
    one_line = "".join(c if c.isprintable() else "?" for c in problem)[:120]
    return refusal("config_syntax", file=file, line=line, found=f"is not YAML ({one_line})", accepted="a YAML document")


def _path(stack: list[_Open]) -> tuple[str, ...]:
    """The keys that lead to what is being read."""
    return tuple(frame.key.text for frame in stack if frame.key is not None)


def _check_properties(event: yaml.NodeEvent, stack: list[_Open], file: str, line: int) -> None:
    """Refuse an alias, an anchor or a tag."""
    path = _path(stack)
    if isinstance(event, yaml.AliasEvent):
        accepted = "the value itself, written out"
        raise refusal("config_alias", file=file, line=line, path=path, value=f"*{event.anchor}", accepted=accepted)
    if event.anchor is not None:
        accepted = "a value without an anchor"
        raise refusal("config_anchor", file=file, line=line, path=path, value=f"&{event.anchor}", accepted=accepted)
    tag = getattr(event, "tag", None)
    if tag is not None:
        accepted = "a value without a tag"
        raise refusal("config_tag", file=file, line=line, path=path, value=str(tag), accepted=accepted)


def _scalar(event: yaml.ScalarEvent, stack: list[_Open], file: str, line: int) -> Scalar:
    """The text of `event`. Escapes may spell what no file, path or database takes: those are refused."""
    text = event.value
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        accepted = "text without NUL and without half of a surrogate pair"
        printable = text.encode("utf-8", "backslashreplace").decode("utf-8")
        raise refusal("config_character", file=file, line=line, path=_path(stack), value=printable, accepted=accepted)
    return Scalar(text, line, event.style is not None)


def _take_key(key: Scalar, stack: list[_Open], file: str) -> None:
    """Make `key` the pending key of the innermost mapping."""
    path = (*_path(stack), key.text)
    frame = stack[-1]
    if not key.quoted and key.text == "<<":
        accepted = "the keys themselves, written out"
        raise refusal(
            "config_merge_key", file=file, line=key.line, path=path, found="is a merge key", accepted=accepted
        )
    if not key.quoted and not reads_as_text(key.text):
        found = "is not a text"
        accepted = "a key of text, in quotes where it looks like a number, a date, a yes or no, or null"
        raise refusal("config_key_not_text", file=file, line=key.line, path=path, found=found, accepted=accepted)
    first = frame.lines.get(key.text)
    if first is not None:
        raise refusal(
            "config_duplicate_key",
            file=file,
            line=key.line,
            path=path,
            found=f"stands twice (first in line {first})",
            accepted="each key once",
        )
    frame.lines[key.text] = key.line
    frame.key = key


def reads_as_text(plain: str) -> bool:
    """Whether other YAML readers take `plain` for text, and not for a number, a truth value, a date or nothing."""
    tag = Resolver().resolve(yaml.ScalarNode, plain, (True, False))  # type: ignore[no-untyped-call]  # untyped in stubs
    return bool(tag == _TEXT_TAG)
