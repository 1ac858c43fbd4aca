"""Reading a registry file that somebody hands over, within bounds and without believing it.

Decides what is accepted as an entry: every key is known, every digest and path has its form. What the entries would
change is left to `rules.registry_import`. A file may come from anywhere, so it is read by the strict reader of the
settings: no anchors, tags or merge keys, each key once, bounded in bytes, depth and nodes.
"""

from __future__ import annotations

import re
from pathlib import Path

from rearguard.checkpoints.registry_file import EXPORT_FORMAT
from rearguard.config.document import DocumentLimits, Scalar, read_document
from rearguard.config.reader import Fields, root_fields
from rearguard.model.checkpoint import CheckpointFile
from rearguard.model.registry_file import ListedCheckpoint, ListedQuarantine, RegistryFile
from rearguard.model.service import Digest, Place
from rearguard.rules import file_names
from rearguard.rules.labels import VERSION_ACCEPTED, is_version

LIMITS = DocumentLimits(max_bytes=32 * 1_048_576, max_depth=8, max_nodes=1_000_000)
"""Chosen: ten thousand checkpoints of a few files each; our own form nests 4 deep. The pure parser needs 10 s for them."""
MAX_SIZE_BYTES = 2**53
"""Of one file. Chosen: what every JSON reader keeps exact."""

_ROOT = ("format", "checkpoints", "quarantine", "standbys")
_ENTRY = (
    "digest", "service", "version", "kind", "format", "warm_start", "files", "golden_sha256", "state_sha256",
    "oci_manifest", "added_at", "validated", "verified_at", "verified_by", "reproducible", "load_ms", "peak_rss_bytes",
    "failure", "copies",
)  # fmt: skip
_FILE = ("path", "sha256", "size_bytes")
_COPY = ("domain", "verified_at")
_HOLD = ("service", "env", "digest", "run_id")
_STANDBY = ("service", "env", "digest", "version", "state", "reason")

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FORMAT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_RUN = re.compile(r"[A-Za-z0-9_]{1,64}")
_NULLS = ("null", "~", "")


def read_registry_file(path: Path) -> RegistryFile:
    """What `path` says. Raises `ConfigError` with file, line and key for whatever is not accepted."""
    document = read_document(path, LIMITS)
    root = root_fields(document, _ROOT)
    root.choice("format", (EXPORT_FORMAT,))
    quarantine = root.items("quarantine", "a list of quarantines", _HOLD) if root.has("quarantine") else ()
    if root.has("standbys"):  # what stands warm elsewhere says nothing of here
        root.items("standbys", "a list of standbys", _STANDBY)
    return RegistryFile(
        file=document.file,
        sha256=document.sha256,
        checkpoints=tuple(_entry(f) for f in root.items("checkpoints", "a list of checkpoints", _ENTRY)),
        quarantine=tuple(_hold(f) for f in quarantine),
    )


def _entry(fields: Fields) -> ListedCheckpoint:
    if fields.has("copies"):  # where copies lie elsewhere says nothing of here
        fields.items("copies", "a list of copies", _COPY)
    fields.choice("kind", ("model",), default="model")
    fields.choice("warm_start", ("true",), default="true")
    return ListedCheckpoint(
        line=fields.mapping.line,
        digest=Digest(_text(fields, "digest", _DIGEST, "sha256: and 64 lower-case hex digits")),
        service=_text(fields, "service", _NAME, "the name of a service"),
        version=_version(fields),
        format=_text(fields, "format", _FORMAT, "the name of a loader"),
        files=_files(fields),
        golden_sha256=_optional(fields, "golden_sha256", _HEX, "64 lower-case hex digits, or null"),
        state_sha256=_optional(fields, "state_sha256", _HEX, "64 lower-case hex digits, or null"),
        claims_proof=fields.has("validated") and fields.boolean("validated"),
    )


def _version(fields: Fields) -> str:
    text = fields.text("version", VERSION_ACCEPTED)
    if not is_version(text):
        raise fields.refuse("version", VERSION_ACCEPTED)
    return text


def _files(fields: Fields) -> tuple[CheckpointFile, ...]:
    found: dict[str, CheckpointFile] = {}
    items = fields.items("files", "a list of at least one file", _FILE)
    if not items:
        raise fields.refuse("files", "a list of at least one file")
    for item in items:
        path = item.text("path", "a relative path inside the checkpoint")
        if why := file_names.fault_of(path):
            raise item.refuse("path", f"a file name that a checkpoint may hold, and {why}")
        if path in found:
            raise item.refuse("path", "each path once")
        if not item.has("size_bytes"):
            raise item.refuse("size_bytes", "a whole number of bytes")
        found[path] = CheckpointFile(
            path=path,
            sha256=_text(item, "sha256", _HEX, "64 lower-case hex digits"),
            size_bytes=item.integer("size_bytes", "bytes", 0, at_least=0, at_most=MAX_SIZE_BYTES, example="344479"),
        )
    path, why = file_names.fault_of_all(found)
    if why:
        raise fields.refuse("files", f"files that can lie beside each other, and of {path}: {why}")
    return tuple(sorted(found.values(), key=lambda f: f.path))


def _hold(fields: Fields) -> ListedQuarantine:
    return ListedQuarantine(
        line=fields.mapping.line,
        place=Place(
            service=_text(fields, "service", _NAME, "the name of a service"),
            env=_text(fields, "env", _NAME, "the name of an environment"),
        ),
        digest=Digest(_text(fields, "digest", _DIGEST, "sha256: and 64 lower-case hex digits")),
        run_id=_optional(fields, "run_id", _RUN, "the id of a run, or null"),
    )


def _text(fields: Fields, key: str, form: re.Pattern[str], accepted: str) -> str:
    text = fields.text(key, accepted)
    if form.fullmatch(text) is None:
        raise fields.refuse(key, accepted)
    return text


def _optional(fields: Fields, key: str, form: re.Pattern[str], accepted: str) -> str:
    """The text of `key`; empty when it is missing or null."""
    value = fields.mapping.find(key)
    if value is None or (isinstance(value, Scalar) and not value.quoted and value.text in _NULLS):
        return ""
    return _text(fields, key, form, accepted)
