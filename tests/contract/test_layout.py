"""The state directory is an OCI image layout: it follows from the database, and every edit of it is told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from one_place import MODEL, REQUEST, SETTINGS

from rearguard.checkpoints import collection, layout, registry
from rearguard.config.templates import playbook_template
from rearguard.database import sql
from rearguard.model.checkpoint import Checkpoint
from rearguard.officer import checkpoints, registration
from rearguard.officer import registry as registries
from rearguard.officer.office import Office, open_office
from rearguard.rules import oci


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with two proven checkpoints. Read it, never change it."""
    folder = tmp_path_factory.mktemp("layout")
    state = folder / "home"
    state.mkdir()
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    (folder / "golden.jsonl").write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    with open_office(state) as office:
        for version in ("v1", "v2"):
            (folder / version).mkdir()
            shutil.copy(MODEL, folder / version / "model.onnx")
            (folder / version / "note.txt").write_text(version, encoding="utf-8")
            golden_file = folder / "golden.jsonl"
            registration.add(office, folder / version, service="fraud", version=version, golden_file=golden_file)
    return state


@pytest.fixture
def office(home: Path, tmp_path: Path) -> Iterator[Office]:
    shutil.copytree(home, tmp_path / "state", symlinks=True)
    with open_office(tmp_path / "state") as found:
        yield found


def registered(office: Office) -> tuple[Checkpoint, ...]:
    with office.database.reading() as connection:
        return registry.list_all(connection)


def codes(office: Office) -> list[str]:
    found = layout.check(office.database, office.store, registered(office), lambda _s: None)
    return [error.code for error in found]


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def blob(office: Office, digest: str) -> Path:
    return office.store.blobs / digest.removeprefix("sha256:")


def test_every_checkpoint_is_in_the_index_under_its_labels(office: Office) -> None:
    index = json.loads((office.state / "index.json").read_bytes())
    assert [m["annotations"]["org.opencontainers.image.ref.name"] for m in index["manifests"]] == [
        "fraud/v1",
        "fraud/v2",
    ]
    assert [m["digest"] for m in index["manifests"]] == [c.oci_manifest for c in registered(office)]
    assert (office.state / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'


def test_every_descriptor_names_the_size_and_digest_of_its_blob(office: Office) -> None:
    index = json.loads((office.state / "index.json").read_bytes())
    for entry in index["manifests"]:
        said = json.loads(blob(office, entry["digest"]).read_bytes())
        for descriptor in (entry, said["config"], *said["layers"]):
            content = blob(office, descriptor["digest"]).read_bytes()
            assert (len(content), "sha256:" + hashlib.sha256(content).hexdigest()) == (
                descriptor["size"],
                descriptor["digest"],
            )


def test_a_layout_that_nobody_touched_is_as_it_would_be_written(office: Office) -> None:
    assert codes(office) == []


def test_writing_it_again_changes_nothing(office: Office) -> None:
    names = ("index.json", "oci-layout")
    before = [(office.state / name).stat().st_ino for name in names]
    layout.write(office.database, office.store)
    assert [(office.state / name).stat().st_ino for name in names] == before


def test_every_blob_of_the_store_is_referenced_and_every_reference_is_a_blob(office: Office) -> None:
    with office.database.reading() as connection:
        assert collection.referenced(connection) == {path.name for path in office.store.blobs.iterdir()}


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "checkpoint_registry.yaml"])
def test_what_a_writer_that_died_left_of_a_file_is_removed_by_the_next(office: Office, name: str) -> None:
    left = office.state / f".{name}.999.tmp"
    left.write_bytes(b"half of i")
    office.publish(registry_changed=True)
    assert not left.exists()


# --- edits


def edit_index(office: Office) -> str:
    path = office.state / "index.json"
    path.write_bytes(path.read_bytes().replace(b"fraud/v1", b"fraud/v9"))
    return "index_altered"


def remove_index(office: Office) -> str:
    (office.state / "index.json").unlink()
    return "index_altered"


def swap_manifests_in_the_index(office: Office) -> str:
    path = office.state / "index.json"
    one, two = (c.oci_manifest.encode() for c in registered(office))
    path.write_bytes(path.read_bytes().replace(one, b"#").replace(two, one).replace(b"#", two))
    return "index_altered"


def edit_marker(office: Office) -> str:
    (office.state / "oci-layout").write_bytes(b'{"imageLayoutVersion":"2.0.0"}')
    return "layout_altered"


def edit_manifest(office: Office) -> str:
    path = blob(office, registered(office)[0].oci_manifest)
    rewrite(path, path.read_bytes().replace(b"note.txt", b"etc.text"))
    return "manifest_altered"


def remove_manifest(office: Office) -> str:
    blob(office, registered(office)[1].oci_manifest).unlink()
    return "manifest_altered"


def link_manifest(office: Office) -> str:
    path = blob(office, registered(office)[0].oci_manifest)
    path.rename(office.state / "aside")
    path.symlink_to(office.state / "aside")
    return "manifest_altered"


def edit_config(office: Office) -> str:
    path = blob(office, oci.sha256_of(oci.config_bytes(registered(office)[0])))
    rewrite(path, path.read_bytes().replace(b"onnx", b"gguf"))
    return "config_altered"


def manifest_is_a_pipe(office: Office) -> str:
    path = blob(office, registered(office)[0].oci_manifest)
    path.unlink()
    os.mkfifo(path)
    return "manifest_altered"


EDITS = [
    edit_index,
    remove_index,
    swap_manifests_in_the_index,
    edit_marker,
    edit_manifest,
    remove_manifest,
    link_manifest,
    edit_config,
    manifest_is_a_pipe,
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_told_by_its_code(office: Office, edit: Callable[[Office], str]) -> None:
    code = edit(office)
    assert codes(office) == [code]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_that_was_told_is_undone(home: Path, office: Office, edit: Callable[[Office], str]) -> None:
    code = edit(office)
    assert [e.code for e in checkpoints.settle_layout(office, registered(office))] == [code]
    assert codes(office) == []
    assert (office.state / "index.json").read_bytes() == (home / "index.json").read_bytes()
    for path in (home / "blobs" / "sha256").iterdir():
        assert (office.store.blobs / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("edit", EDITS)
def test_an_export_writes_the_layout_anew(office: Office, edit: Callable[[Office], str]) -> None:
    edit(office)
    registries.export(office)
    assert codes(office) == []


def test_the_command_verify_tells_an_edited_manifest_once_and_ends_with_65(office: Office) -> None:
    edit_manifest(office)
    words = [
        sys.executable,
        "-m",
        "rearguard.interfaces.cli",
        "checkpoint",
        "verify",
        "--quick",
        "--state",
        str(office.state),
    ]
    first, second = (subprocess.run(words, capture_output=True, text=True, timeout=60, check=False) for _ in range(2))
    assert (first.returncode, second.returncode) == (65, 0)
    assert "[manifest_altered]" in first.stderr
    assert "FAILED" not in first.stdout


# --- other states


def test_what_an_older_release_registered_gets_its_manifest(home: Path, office: Office) -> None:
    with office.database.transaction() as connection:
        connection.execute(sql("UPDATE checkpoints SET oci_manifest = '', oci_manifest_bytes = 0"))
    for name in ("index.json", "oci-layout"):
        (office.state / name).unlink()
    for checkpoint in registered_at(home):
        blob(office, checkpoint.oci_manifest).unlink()
    assert codes(office) == []  # never written is not altered
    layout.write(office.database, office.store)
    assert registered(office) == registered_at(home)
    assert (office.state / "index.json").read_bytes() == (home / "index.json").read_bytes()


def registered_at(state: Path) -> tuple[Checkpoint, ...]:
    with open_office(state, write=False) as office:
        return registered(office)


def test_one_whose_golden_set_is_gone_waits_and_keeps_no_other_waiting(office: Office) -> None:
    with office.database.transaction() as connection:
        connection.execute(sql("UPDATE checkpoints SET oci_manifest = '', oci_manifest_bytes = 0 WHERE version = 'v1'"))
        connection.execute(sql("UPDATE checkpoints SET golden_sha256 = :none WHERE version = 'v1'"), {"none": "0" * 64})
    layout.write(office.database, office.store)
    index = json.loads((office.state / "index.json").read_bytes())
    assert [m["annotations"][oci.REF_KEY] for m in index["manifests"]] == ["fraud/v2"]
