"""A checkpoint as an OCI manifest, and what of a foreign manifest is refused by its form alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rearguard.errors import IntegrityError
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.service import Digest
from rearguard.model.time import Instant
from rearguard.rules import file_names, oci

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""sha256 of `abc`, the first example of FIPS 180-2."""
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
CHECKPOINT = Checkpoint(
    digest=Digest("sha256:" + "d" * 64),
    service="fraud",
    version="v1",
    format="onnx",
    files=(CheckpointFile(path="a/model.onnx", sha256=ABC, size_bytes=3),),
    golden_sha256=EMPTY,
    added_at=Instant(wall_ns=1, mono_ns=1, boot_id="boot"),
    verified_at=None,
    load_ms=None,
    failure="",
)
CONFIG = (
    '{"config":{"format":"onnx"},"descriptor":{"name":"fraud","version":"v1"},'
    f'"modelfs":{{"diffIds":["sha256:{ABC}","sha256:{EMPTY}"],"type":"layers"}}}}'
)


def test_the_config_is_that_of_the_model_spec() -> None:
    assert oci.config_bytes(CHECKPOINT).decode() == CONFIG


def test_the_manifest_has_a_raw_layer_a_file_and_one_for_the_golden_set() -> None:
    said = json.loads(oci.manifest_bytes(CHECKPOINT, 0))
    assert said["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert said["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert said["config"]["size"] == len(CONFIG)
    assert said["layers"] == [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": f"sha256:{ABC}",
            "size": 3,
            "annotations": {"org.cncf.model.filepath": "a/model.onnx"},
        },
        {"mediaType": "application/vnd.rearguard.golden.v1+json", "digest": f"sha256:{EMPTY}", "size": 0},
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"added_at": Instant(wall_ns=2, mono_ns=2, boot_id="other")},
        {"verified_at": Instant(wall_ns=2, mono_ns=2, boot_id="other"), "load_ms": 5, "peak_rss_bytes": 7},
        {"failure": "load_failed"},
        {"reproducible": "bitwise"},
        {"oci_manifest": "sha256:" + "e" * 64, "oci_manifest_bytes": 9},
    ],
)
def test_nothing_of_time_and_proof_is_in_a_manifest(change: dict[str, Any]) -> None:
    assert oci.manifest_bytes(replace(CHECKPOINT, **change), 0) == oci.manifest_bytes(CHECKPOINT, 0)


def test_a_manifest_that_is_read_says_what_was_written() -> None:
    written = replace(CHECKPOINT, state_sha256="5" * 64)
    read = oci.read_manifest(oci.manifest_bytes(written, 0))
    assert (read.files, read.format, read.service, read.version) == (written.files, "onnx", "fraud", "v1")
    assert (read.digest, read.state_sha256) == (written.digest, "5" * 64)
    assert read.golden is not None
    assert read.golden.sha256 == EMPTY


def test_a_checkpoint_without_a_golden_set_has_no_layer_for_it() -> None:
    read = oci.read_manifest(oci.manifest_bytes(replace(CHECKPOINT, golden_sha256=""), 0))
    assert read.golden is None


@pytest.mark.parametrize(
    ("service", "version", "ref"),
    [
        ("fraud", "v1", "fraud/v1"),
        ("fraud-eu.2", "1.0.0+b", "fraud-eu.2/1.0.0+b"),
        ("fraud", "v1.", "sha256-" + "d" * 64),
        ("fraud", "a..b", "sha256-" + "d" * 64),
        ("frauß", "v1", "sha256-" + "d" * 64),
        ("a b", "v1", "sha256-" + "d" * 64),
    ],
)
def test_a_reference_is_the_labels_or_the_digest_where_they_are_none(service: str, version: str, ref: str) -> None:
    assert oci.ref_name(service, version, "sha256:" + "d" * 64) == ref


# --- hostile forms


def manifest() -> dict[str, Any]:
    return dict(json.loads(oci.manifest_bytes(CHECKPOINT, 0)))


def layer(**changed: Any) -> dict[str, Any]:
    return dict(manifest()["layers"][0]) | changed


def named(path: str) -> dict[str, Any]:
    return layer(annotations={oci.PATH_KEY: path})


def code_of(content: bytes) -> str:
    with pytest.raises(IntegrityError) as refused:
        oci.read_manifest(content)
    return refused.value.code


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "a\\b",
        "a\nb",
        "a\x1b[2Jb",
        "a\u202eb",
        "a\0b",
        "x" * 256,
        "/".join("abcdefgh" * 5),
        "é" * 600,
        "\ud800",
    ],
)
def test_a_path_that_leads_out_or_cannot_be_shown_is_refused(path: str) -> None:
    assert code_of(json.dumps(manifest() | {"layers": [named(path)]}).encode()) == "carried_path_unsafe"


@pytest.mark.parametrize(
    "paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")], ids=["twice", "file and folder", "folder and file"]
)
def test_paths_that_cannot_stand_beside_each_other_are_refused(paths: tuple[str, ...]) -> None:
    content = json.dumps(manifest() | {"layers": [named(path) for path in paths]}).encode()
    assert code_of(content) == "carried_path_unsafe"


def test_too_many_files_are_refused() -> None:
    """Small ones, so that the manifest itself is not too large."""
    layers = [named(f"{number}") for number in range(file_names.MAX_FILES + 1)]
    assert code_of(json.dumps(manifest() | {"layers": layers}, separators=(",", ":")).encode()) == "carried_path_unsafe"


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (put("schemaVersion", 1), "manifest_malformed"),
        (put("layers", {}), "manifest_malformed"),
        (put("layers", []), "manifest_malformed"),
        (put("layers", [7]), "manifest_malformed"),
        (put("layers", [layer(digest="sha512:" + "0" * 128)]), "manifest_malformed"),
        (put("layers", [layer(digest="sha256:" + "A" * 64)]), "manifest_malformed"),
        (put("layers", [layer(digest="sha256:../../x")]), "manifest_malformed"),
        (put("layers", [layer(size=-1)]), "manifest_malformed"),
        (put("layers", [layer(size=True)]), "manifest_malformed"),
        (put("layers", [layer(size=1e3)]), "manifest_malformed"),
        (put("layers", [layer(size=2**53)]), "manifest_malformed"),
        (put("layers", [layer(urls=["http://127.0.0.1/"])]), "manifest_malformed"),
        (put("layers", [layer(data="YWJj")]), "manifest_malformed"),
        (put("layers", [layer(annotations=[1])]), "manifest_malformed"),
        (put("layers", [layer(annotations={oci.PATH_KEY: 7})]), "manifest_malformed"),
        (put("layers", [layer(), named("b") | {"size": 4}]), "manifest_malformed"),
        (put("layers", [layer(), *[layer(mediaType=oci.GOLDEN_TYPE)] * 2]), "manifest_malformed"),
        (put("layers", [layer(), layer(mediaType=oci.GOLDEN_TYPE, size=2**40)]), "carried_too_large"),
        (put("layers", [layer(mediaType="application/vnd.cncf.model.weight.v1.tar")]), "media_type_refused"),
        (put("layers", [layer(mediaType="application/vnd.kitops.modelkit.model.v1.tar")]), "media_type_refused"),
        (put("config", None), "manifest_malformed"),
        (put("config", {"mediaType": "application/vnd.oci.image.config.v1+json"}), "media_type_refused"),
        (put("artifactType", "application/vnd.kitops.modelkit.manifest.v1+json"), "media_type_refused"),
        (put("mediaType", oci.INDEX_TYPE), "media_type_refused"),
        (put("manifests", []), "media_type_refused"),
        (put("annotations", {oci.STATE_KEY: "zz"}), "manifest_malformed"),
        (put("annotations", "x"), "manifest_malformed"),
    ],
)
def test_a_manifest_of_another_form_is_refused(change: Callable[[dict[str, Any]], None], code: str) -> None:
    document = manifest()
    change(document)
    assert code_of(json.dumps(document).encode()) == code


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"7", b"[" * 100_000, b'{"schemaVersion":2,"schemaVersion":2}', b'{"a":' * 50_000],
)
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    assert code_of(content) == "manifest_malformed"


def test_a_manifest_that_is_too_large_is_refused_unread() -> None:
    assert code_of(b"{" + b" " * oci.MAX_MANIFEST_BYTES) == "manifest_too_large"
