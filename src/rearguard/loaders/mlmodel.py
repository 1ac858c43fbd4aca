"""The file `MLmodel` of an MLflow model folder, read strictly and within bounds; MLflow itself is never imported.

It is YAML of strangers: mappings, sequences and scalars of one UTF-8 document. Anchors, aliases, merge keys and tags are
refused, a key stands once, every scalar stays the text that was written. Built from the event stream of the pure-Python
parser, each bound checked before the next event is asked for; the C parser can be ended by a signal.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import yaml

from rearguard.errors import UsageError

MAX_BYTES = 262_144
"""Chosen: MLflow writes a few KiB; signatures and examples make it tens."""
_MAX_DEPTH = 16
_MAX_NODES = 20_000

Node = str | list["Node"] | dict[str, "Node"]


def read(file: Path) -> dict[str, Node]:
    """The document as texts, lists and dicts. Raises `UsageError` `model_unreadable`."""
    with file.open("rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        _refuse(file, f"it is larger than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
        root = _Tree(file).build(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        _refuse(file, str(error).splitlines()[0][:200])
    if not isinstance(root, dict):
        _refuse(file, "it is no mapping")
    return root


class _Tree:
    """Grows by one event at a time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: list[tuple[list[Node] | dict[str, Node], str | None]] = []
        self._root: Node | None = None
        self._nodes = 0

    def build(self, text: str) -> Node | None:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
                self._refuse(event, "anchors, aliases and tags are not accepted")
            if isinstance(event, yaml.ScalarEvent):
                self._put(event, event.value)
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                begun: list[Node] | dict[str, Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
                self._put(event, begun)
                if len(self._open) >= _MAX_DEPTH:
                    self._refuse(event, f"it nests deeper than {_MAX_DEPTH}")
                self._open.append((begun, None))
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                self._open.pop()
            elif isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
                self._refuse(event, "it holds a second document")
        return self._root

    def _put(self, event: yaml.Event, node: Node) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            self._refuse(event, f"it holds more than {_MAX_NODES} values")
        if not self._open:
            self._root = node
            return
        holder, key = self._open[-1]
        if isinstance(holder, list):
            holder.append(node)
        elif key is not None:
            holder[key] = node
            self._open[-1] = (holder, None)
        elif not isinstance(node, str) or node == "<<" or node in holder:
            self._refuse(event, "a key is no plain text, or stands twice")
        else:
            self._open[-1] = (holder, node)

    def _refuse(self, event: yaml.Event, why: str) -> NoReturn:
        mark = event.start_mark
        _refuse(self._file, f"line {mark.line + 1 if mark else '?'}: {why}")


def _refuse(file: Path, why: str) -> NoReturn:
    raise UsageError("model_unreadable", f"{file.name}: {why}", "take the folder as MLflow wrote it")
