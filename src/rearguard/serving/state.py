"""What a model server must still know after its process died, and the words of a load order.

One file, `serving.json`, version 1: highest epoch seen, key of the last applied order, the active order and the warm
standbys'. It is replaced atomically (temporary name, fsync, rename, fsync of the folder) before a load returns. A file
that cannot be read is refused, never replaced by an empty one: that would forget the epoch that fences old orders off.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rearguard.errors import ConflictError, IntegrityError, UsageError
from rearguard.model.service import Digest

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE = "serving.json"
_FORMAT = "rearguard-serving-state"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """What a worker loads."""

    digest: Digest
    version: str
    format: str
    path: str
    trusted_types: tuple[str, ...]
    warmup: dict[str, Any] | None
    """V2 request that the worker must answer before it is ready; None: one made from the declared inputs."""
    sandbox_memory_bytes: int | None = None
    """Address space of the sandbox in which a format that runs code may be loaded; None: it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """A load call: what to load and which order it is."""

    spec: LoadSpec
    epoch: int
    key: str
    activate: bool = True
    """False (`rearguard_standby`, an extension of ours): load it beside the active one and leave the traffic."""
    memory_bytes: int | None = None
    """What the load of a standby may need at most; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """The whole memory of a server."""

    epoch: int = 0
    """Highest seen, also by orders that failed."""
    key: str = ""
    """Of the last applied order; empty before the first."""
    active: LoadSpec | None = None
    standby: tuple[LoadSpec, ...] = ()
    """Oldest first."""


def parse_order(body: object) -> LoadOrder:
    """The load order in a request body; `UsageError` (`bad_load`) names what is wrong with it."""
    given = body.get("parameters") if isinstance(body, dict) else None
    if not isinstance(given, dict):
        raise UsageError("bad_load", "the body has no object under 'parameters'")
    epoch, key = given.get("epoch"), given.get("key")
    if type(epoch) is not int or epoch < 0:
        raise UsageError("bad_load", f"epoch is {epoch!r}, not a whole number from 0")
    if not isinstance(key, str) or not key:
        raise UsageError("bad_load", f"key is {key!r}, not a text")
    activate, memory_bytes = given.get("activate", True), given.get("memory_bytes")
    if not isinstance(activate, bool):
        raise UsageError("bad_load", f"activate is {activate!r}, not true or false")
    if memory_bytes is not None and (type(memory_bytes) is not int or memory_bytes < 0):
        raise UsageError("bad_load", f"memory_bytes is {memory_bytes!r}, not a whole number from 0")
    return LoadOrder(spec=parse_spec(given), epoch=epoch, key=key, activate=activate, memory_bytes=memory_bytes)


def parse_spec(given: dict[str, Any]) -> LoadSpec:
    """The specification of a worker; `UsageError` (`bad_load`) names the field that is not accepted."""
    for field in ("digest", "version", "format", "path"):
        if not isinstance(given.get(field), str) or not given[field]:
            raise UsageError("bad_load", f"{field} is {given.get(field)!r}, not a text")
    if not _DIGEST.fullmatch(given["digest"]):
        raise UsageError("bad_load", f"digest is {given['digest']!r}, not sha256: and 64 lower-case hex digits")
    if "/" in given["version"]:
        raise UsageError("bad_load", f"version is {given['version']!r}: it stands in a path and must not hold '/'")
    if not Path(given["path"]).is_absolute():
        raise UsageError("bad_load", f"path is {given['path']!r}, not absolute")
    trusted = given.get("trusted_types") or []
    if not isinstance(trusted, list) or not all(isinstance(t, str) for t in trusted):
        raise UsageError("bad_load", "trusted_types is not a list of text")
    warmup = given.get("warmup")
    if warmup is not None and not isinstance(warmup, dict):
        raise UsageError("bad_load", "warmup is not a V2 request")
    sandbox = given.get("sandbox_memory_bytes")
    if sandbox is not None and (type(sandbox) is not int or sandbox <= 0):
        raise UsageError("bad_load", f"sandbox_memory_bytes is {sandbox!r}, not a whole number from 1")
    return LoadSpec(
        digest=Digest(given["digest"]),
        version=given["version"],
        format=given["format"],
        path=given["path"],
        trusted_types=tuple(trusted),
        warmup=warmup,
        sandbox_memory_bytes=sandbox,
    )


class StateFile:
    """The state folder, held by one server at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock_fd = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise ConflictError(
                "state_dir_locked", f"another model server uses {folder}", "stop it, or give each its own --state-dir"
            ) from None

    def read(self) -> ServerState:
        """What was written last; the empty state before the first write. Raises `IntegrityError`."""
        file = self._folder / _FILE
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ServerState()
        try:
            document = json.loads(text)
            if (document["format"], document["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"{document['format']} {document['version']}")
            if type(document["epoch"]) is not int or not isinstance(document["key"], str):
                raise ValueError("epoch or key")
            active = document["active"]
            return ServerState(
                epoch=document["epoch"],
                key=document["key"],
                active=None if active is None else parse_spec(active),
                standby=tuple(parse_spec(s) for s in document["standby"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise IntegrityError(
                "serving_state_unreadable",
                f"{file} is not a state of this server: {error}",
                "look what damaged it; move it away only if no order with an old epoch can still arrive",
            ) from error

    def write(self, state: ServerState) -> None:
        """Replace the state; when this returns it survives a loss of power. OSError when the disk refuses."""
        document = {"format": _FORMAT, "version": _VERSION, **asdict(state)}
        temporary = self._folder / f"{_FILE}.tmp"
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._folder / _FILE)
        folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock_fd)
