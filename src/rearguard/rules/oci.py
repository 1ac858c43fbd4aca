"""A checkpoint as an OCI image manifest of the ModelPack model-spec, and what a foreign manifest really says.

The bytes of config, manifest and index follow from what is registered alone, so each can be written anew and compared.
`docs/reference/store-layout.md` is normative. The standards: OCI image-spec 1.1 (`manifest.md`, `image-index.md`,
`image-layout.md`) and the ModelPack model-spec of June 2026. A layer is one file, raw: its blob is the file itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rearguard.errors import IntegrityError
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.rules import file_names
from rearguard.rules.chain import canonical_bytes

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILE_TYPE = "application/vnd.cncf.model.weight.v1.raw"
GOLDEN_TYPE = "application/vnd.rearguard.golden.v1+json"

PATH_KEY = "org.cncf.model.filepath"
REF_KEY = "org.opencontainers.image.ref.name"
DIGEST_KEY = "io.rearguard.checkpoint.digest"
FORMAT_KEY = "io.rearguard.checkpoint.format"
SERVICE_KEY = "io.rearguard.checkpoint.service"
VERSION_KEY = "io.rearguard.checkpoint.version"
STATE_KEY = "io.rearguard.checkpoint.state-sha256"

LAYOUT_BYTES = b'{"imageLayoutVersion":"1.0.0"}'
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""What registries take at most (OCI distribution-spec 1.1, pushing manifests)."""
MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_GOLDEN_BYTES = 1024 * 1024 * 1024
"""What is read into memory of a golden set at most. Chosen."""

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REF = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*")
"""Grammar of a reference in a layout (image-spec `annotations.md`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One row of the index."""

    manifest: str
    size_bytes: int
    ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a manifest says, its form judged and nothing of it believed."""

    manifest: str
    """`sha256:` and the digest of its bytes."""
    config: CheckpointFile
    files: tuple[CheckpointFile, ...]
    """Sorted by path."""
    golden: CheckpointFile | None
    digest: str
    """Address that it claims; empty: it is not of our making."""
    format: str
    service: str
    version: str
    state_sha256: str

    @property
    def blobs(self) -> tuple[CheckpointFile, ...]:
        """Everything that has to be fetched, config first."""
        return (self.config, *self.files, *((self.golden,) if self.golden else ()))

    @property
    def size_bytes(self) -> int:
        """Sum over the distinct blobs."""
        return sum({blob.sha256: blob.size_bytes for blob in self.blobs}.values())


def sha256_of(content: bytes) -> str:
    """Lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def ref_name(service: str, version: str, digest: str) -> str:
    """`SERVICE/VERSION`, or the digest where these two are no reference."""
    name = f"{service}/{version}"
    return name if _REF.fullmatch(name) else digest.replace(":", "-")


def config_bytes(checkpoint: Checkpoint) -> bytes:
    """The config blob: general description, format, and the digest of each layer's content."""
    layers = [f"sha256:{file.sha256}" for file in checkpoint.files]
    if checkpoint.golden_sha256:
        layers.append(f"sha256:{checkpoint.golden_sha256}")
    return canonical_bytes(
        {
            "descriptor": {"name": checkpoint.service, "version": checkpoint.version},
            "config": {"format": checkpoint.format},
            "modelfs": {"type": "layers", "diffIds": layers},
        }
    )


def manifest_bytes(checkpoint: Checkpoint, golden_bytes: int) -> bytes:
    """The manifest blob. `golden_bytes` is the length of the golden set, which its digest fixes; 0 when there is none.

    Law: equal checkpoints have equal manifests, on every machine and at every time; nothing of a proof stands in it.
    """
    config = config_bytes(checkpoint)
    layers = [
        _descriptor(FILE_TYPE, file.sha256, file.size_bytes) | {"annotations": {PATH_KEY: file.path}}
        for file in checkpoint.files
    ]
    if checkpoint.golden_sha256:
        layers.append(_descriptor(GOLDEN_TYPE, checkpoint.golden_sha256, golden_bytes))
    annotations = {
        DIGEST_KEY: str(checkpoint.digest),
        FORMAT_KEY: checkpoint.format,
        SERVICE_KEY: checkpoint.service,
        VERSION_KEY: checkpoint.version,
    }
    if checkpoint.state_sha256:
        annotations[STATE_KEY] = checkpoint.state_sha256
    return canonical_bytes(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": _descriptor(CONFIG_TYPE, sha256_of(config), len(config)),
            "layers": layers,
            "annotations": annotations,
        }
    )


def index_bytes(rows: Iterable[Listed]) -> bytes:
    """`index.json`, in the order of the rows."""
    manifests = [
        _descriptor(MANIFEST_TYPE, row.manifest.removeprefix("sha256:"), row.size_bytes)
        | {"artifactType": ARTIFACT_TYPE, "annotations": {REF_KEY: row.ref}}
        for row in rows
    ]
    return canonical_bytes({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})


def _descriptor(media_type: str, sha256: str, size_bytes: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size_bytes}


def read_manifest(content: bytes) -> Carried:
    """Judge the form of a manifest that came from elsewhere.

    Raises `IntegrityError`: `manifest_malformed`, `manifest_too_large`, `media_type_refused` (an index, an image, tar
    layers), `carried_path_unsafe` (names of files), `carried_too_large`.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise _wrong("manifest_too_large", f"the manifest has more than {MAX_MANIFEST_BYTES} bytes")
    document = _document(content)
    found = document.get("mediaType", MANIFEST_TYPE)
    if found != MANIFEST_TYPE or "manifests" in document:
        raise _refused_type("the manifest", found)
    if document.get("schemaVersion") != 2 or not isinstance(document.get("layers"), list):
        raise _wrong("manifest_malformed", "the manifest has no schemaVersion 2 and no list of layers")
    if document.get("artifactType") != ARTIFACT_TYPE:
        raise _refused_type("the artifact", document.get("artifactType"))
    config = _blob(document.get("config"), "config", CONFIG_TYPE)
    if config.size_bytes > MAX_CONFIG_BYTES:
        raise _wrong("carried_too_large", f"the config has {config.size_bytes} bytes, the limit is {MAX_CONFIG_BYTES}")
    files, golden = _layers(document["layers"])
    notes = _annotations(document, "the manifest")
    blobs = (config, *files, *((golden,) if golden else ()))
    if len({blob.sha256 for blob in blobs}) != len({(blob.sha256, blob.size_bytes) for blob in blobs}):
        raise _wrong("manifest_malformed", "one digest is given two sizes")
    state = notes.get(STATE_KEY, "")
    if state and not _HEX.fullmatch(state):
        raise _wrong("manifest_malformed", f"{STATE_KEY} is no SHA-256")
    return Carried(
        manifest=f"sha256:{sha256_of(content)}",
        config=config,
        files=files,
        golden=golden,
        digest=notes.get(DIGEST_KEY, ""),
        format=notes.get(FORMAT_KEY, ""),
        service=notes.get(SERVICE_KEY, ""),
        version=notes.get(VERSION_KEY, ""),
        state_sha256=state,
    )


def _layers(layers: list[Any]) -> tuple[tuple[CheckpointFile, ...], CheckpointFile | None]:
    files, golden = [], None
    for number, layer in enumerate(layers, 1):
        if isinstance(layer, dict) and layer.get("mediaType") == GOLDEN_TYPE:
            if golden is not None:
                raise _wrong("manifest_malformed", f"layer {number} is a second golden set")
            golden = _blob(layer, "golden set", GOLDEN_TYPE)
            if golden.size_bytes > MAX_GOLDEN_BYTES:
                raise _wrong("carried_too_large", f"the golden set has {golden.size_bytes} bytes")
            continue
        blob = _blob(layer, f"layer {number}", FILE_TYPE)
        path = _annotations(layer, f"layer {number}").get(PATH_KEY, "")
        files.append(CheckpointFile(path=path, sha256=blob.sha256, size_bytes=blob.size_bytes))
        if len(files) > file_names.MAX_FILES:
            break  # told below, with the name
    path, why = file_names.fault_of_all(file.path for file in files)
    if why:
        raise _wrong("carried_path_unsafe", f"the manifest names the file {path[:200]!r}: {why}")
    if not files:
        raise _wrong("manifest_malformed", "the manifest has no file")
    return tuple(sorted(files, key=lambda f: f.path)), golden


def _blob(value: Any, what: str, media_type: str) -> CheckpointFile:
    if not isinstance(value, dict):
        raise _wrong("manifest_malformed", f"{what} is no descriptor")
    if value.get("mediaType") != media_type:
        raise _refused_type(what, value.get("mediaType"))
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _wrong("manifest_malformed", f"{what} has no sha256 digest: {str(digest)[:100]!r}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**53:
        raise _wrong("manifest_malformed", f"{what} has the size {str(size)[:100]!r}")
    if value.get("urls") or "data" in value:
        raise _wrong("manifest_malformed", f"{what} lies elsewhere: urls and data are not taken")
    return CheckpointFile(path=what, sha256=digest.removeprefix("sha256:"), size_bytes=size)


def _annotations(value: dict[str, Any], what: str) -> dict[str, str]:
    found = value.get("annotations") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise _wrong("manifest_malformed", f"the annotations of {what} are no texts")
    return found


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise _wrong("manifest_malformed", f"the manifest is no JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise _wrong("manifest_malformed", "the manifest is no object")
    return document


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers may take a different one of two equal keys (RFC 8259, section 4).
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refused_type(what: str, found: object) -> IntegrityError:
    return IntegrityError(
        "media_type_refused",
        f"{what} is of the type {str(found)[:100]!r}",
        f"carried are ModelPack artifacts whose files are raw layers, {FILE_TYPE}; not images, indexes, or files in tar layers",
    )


def _wrong(code: str, message: str) -> IntegrityError:
    return IntegrityError(
        code, f"{message}; nothing was taken in", "ask whoever pushed it for an artifact that was not changed"
    )
