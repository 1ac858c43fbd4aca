"""A registry file that was handed over: what it may add, what refuses it as a whole, and that nothing of it is believed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from one_place import MODEL, REQUEST, SETTINGS

from rearguard.checkpoints import faults, golden
from rearguard.checkpoints import registry as rows
from rearguard.checkpoints.registry_file import render
from rearguard.checkpoints.store import ContentStore
from rearguard.config.templates import playbook_template
from rearguard.database import sql
from rearguard.errors import ConfigError, ConflictError, RearguardError
from rearguard.model.checkpoint import Checkpoint
from rearguard.officer import checkpoints, registration, registry
from rearguard.officer.office import Office, open_office
from rearguard.officer.registry import Imported
from rearguard.rules.golden import GoldenSet

Document = dict[str, Any]


def write_settings(state: Path) -> Path:
    state.mkdir(parents=True)
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    return state


@dataclass(frozen=True)
class Handed:
    """Another state directory, and what its export says."""

    state: Path
    document: Document


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Handed:
    """Read it, never change it."""
    folder = tmp_path_factory.mktemp("other")
    state = write_settings(folder / "state")
    model = folder / "model"
    model.mkdir()
    shutil.copy(MODEL, model / "model.onnx")
    (folder / "golden.jsonl").write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    with open_office(state) as office:
        registration.add(office, model, service="fraud", version="v1", golden_file=folder / "golden.jsonl")
    return Handed(state=state, document=yaml.safe_load((state / "checkpoint_registry.yaml").read_bytes()))


@pytest.fixture
def document(other: Handed) -> Document:
    """What the other one exported, to change."""
    copied: Document = json.loads(json.dumps(other.document))
    return copied


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(write_settings(tmp_path / "state")) as opened:
        yield opened


def hand(tmp_path: Path, document: Document) -> Path:
    path = tmp_path / "handed.yaml"
    path.write_bytes(render(document))
    return path


def take(office: Office, path: Path, blobs: Path | None = None) -> Imported:
    return registry.take_in(office, registry.diff(office, path, blobs), by="ops")


def refused(office: Office, path: Path, blobs: Path | None = None) -> RearguardError:
    """The error of an import, which must leave registry, quarantine and evidence as they were."""
    before = contents(office)
    with pytest.raises(RearguardError) as told:
        take(office, path, blobs)
    assert contents(office) == before
    return told.value


def contents(office: Office) -> list[Any]:
    with office.database.reading() as connection:
        tables = ("checkpoints", "quarantine", "evidence")
        return [connection.execute(sql(f"SELECT * FROM {table}")).all() for table in tables]


def kinds(office: Office) -> list[str]:
    with office.database.reading() as connection:
        return [row.kind for row in connection.execute(sql("SELECT kind FROM evidence ORDER BY id"))]


def registered(office: Office) -> tuple[Checkpoint, ...]:
    with office.database.reading() as connection:
        return rows.list_all(connection)


def held(office: Office) -> list[tuple[str, str, str]]:
    with office.database.reading() as connection:
        found = connection.execute(sql("SELECT service, env, digest FROM quarantine ORDER BY digest")).all()
    return [tuple(row) for row in found]


def line_of(path: Path, text: str, times: int = 1) -> int:
    """The line where `text` stands for the n-th time, counted from 1."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if text in line][times - 1]


# --- what it adds


def test_a_checkpoint_is_taken_in_from_another_state_and_proven_here(
    office: Office, other: Handed, document: Document, tmp_path: Path
) -> None:
    done = take(office, hand(tmp_path, document), other.state)
    (one,) = registered(office)
    assert (one.digest, one.version) == (document["checkpoints"][0]["digest"], "v1")
    assert one.verified_at is not None
    assert [p.ok for p in done.verified] == [True]
    assert kinds(office) == ["checkpoint_added", "registry_imported", "checkpoint_verified"]


@pytest.mark.parametrize("shape", ["blobs/sha256", "sha256", "."])
def test_the_bytes_are_found_in_a_state_in_a_layout_and_in_a_plain_folder(
    office: Office, other: Handed, document: Document, tmp_path: Path, shape: str
) -> None:
    folder = tmp_path / "handed"
    shutil.copytree(other.state / "blobs" / "sha256", folder / shape, dirs_exist_ok=True)
    assert registry.diff(office, hand(tmp_path, document), folder).difference.refusals == ()


def test_the_import_is_recorded_with_the_sha256_of_the_file(
    office: Office, other: Handed, document: Document, tmp_path: Path
) -> None:
    path = hand(tmp_path, document)
    take(office, path, other.state)
    with office.database.reading() as connection:
        found = connection.execute(sql("SELECT body FROM evidence WHERE kind = 'registry_imported'")).scalar_one()
    digest = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert json.loads(found) == {"file_sha256": digest, "added": 1, "quarantined": [], "unchanged": 0, "by": "ops"}


def test_a_second_import_changes_nothing(office: Office, other: Handed, document: Document, tmp_path: Path) -> None:
    path = hand(tmp_path, document)
    take(office, path, other.state)
    before = contents(office)
    done = take(office, path, other.state)
    assert (done.added, done.quarantined, done.verified) == (0, 0, ())
    assert contents(office) == before


def test_our_own_export_changes_nothing(office: Office, other: Handed, document: Document, tmp_path: Path) -> None:
    take(office, hand(tmp_path, document), other.state)
    assert not registry.diff(office, office.state / "checkpoint_registry.yaml").difference.changes


def broken(tmp_path: Path, *, content: bytes = b"no model", golden_set: bytes | None = None) -> tuple[Document, Path]:
    """A file and a folder of blobs that belong together and hold no model, said to be validated."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    answers = (({"name": "Y", "data": [1]},),)
    golden_set = golden.encode(GoldenSet(requests=(REQUEST,), answers=answers)) if golden_set is None else golden_set
    names = []
    for blob in (content, golden_set):
        names.append(hashlib.sha256(blob).hexdigest())
        (folder / names[-1]).write_bytes(blob)
    entry = {
        "service": "fraud",
        "version": "v1",
        "format": "onnx",
        "files": [{"path": "model.onnx", "sha256": names[0], "size_bytes": len(content)}],
        "golden_sha256": names[1],
        "validated": True,
        "verified_at": "2026-11-24T00:42:33Z",
        "verified_by": "rollback_log.json#2",
        "load_ms": 1,
    }
    return with_address(entry), folder


def with_address(entry: Document) -> Document:
    """The entry in a file, under the address of its content as the reference page says (written out here again)."""
    files = [{"path": f["path"], "sha256": f["sha256"], "size": f["size_bytes"]} for f in entry["files"]]
    manifest = {"files": files, "format": entry["format"], "golden": entry["golden_sha256"]}
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    entry = {"digest": "sha256:" + hashlib.sha256(canonical).hexdigest(), **entry}
    return {"format": "rearguard/checkpoint-registry/1", "checkpoints": [entry], "quarantine": []}


def test_a_claimed_proof_is_not_believed(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    path = hand(tmp_path, document)
    assert registry.diff(office, path, folder).difference.proofs_ignored == 1
    done = take(office, path, folder)
    (one,) = registered(office)
    assert (one.verified_at, one.load_ms) == (None, None)
    assert one.failure
    assert [p.ok for p in done.verified] == [False]


def test_a_quarantine_is_taken_over(office: Office, document: Document, other: Handed, tmp_path: Path) -> None:
    digest = document["checkpoints"][0]["digest"]
    document["quarantine"] = [{"service": "fraud", "env": "prod", "digest": digest, "run_id": "run_there"}]
    assert take(office, hand(tmp_path, document), other.state).quarantined == 1
    assert held(office) == [("fraud", "prod", digest)]


# --- what it never takes away


def test_a_quarantine_that_is_missing_in_the_file_is_not_lifted(
    office: Office, document: Document, other: Handed, tmp_path: Path
) -> None:
    with office.database.transaction() as connection:
        connection.execute(sql("INSERT INTO quarantine VALUES ('fraud', 'prod', 'sha256:x', 'run_1', '')"))
    found = registry.diff(office, hand(tmp_path, document), other.state).difference
    assert [str(h.digest) for h in found.still_held] == ["sha256:x"]
    take(office, hand(tmp_path, document), other.state)
    assert held(office) == [("fraud", "prod", "sha256:x")]


def test_a_checkpoint_that_is_missing_in_the_file_stays(
    office: Office, document: Document, other: Handed, tmp_path: Path
) -> None:
    take(office, hand(tmp_path, document), other.state)
    document["checkpoints"] = []
    path = hand(tmp_path, document)
    assert len(registry.diff(office, path).difference.not_listed) == 1
    take(office, path)
    assert len(registered(office)) == 1


# --- bytes


def test_bytes_that_are_nowhere_are_missed_in_the_line_of_the_entry(
    office: Office, document: Document, tmp_path: Path
) -> None:
    path = hand(tmp_path, document)
    error = refused(office, path)
    assert (error.code, error.exit_code) == ("blob_missing", 65)
    assert f"handed.yaml:{line_of(path, '- digest')}:" in error.message
    assert "--blobs" in error.hint


def test_altered_bytes_are_refused(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    blob = folder / document["checkpoints"][0]["files"][0]["sha256"]
    blob.write_bytes(blob.read_bytes()[::-1])
    assert refused(office, hand(tmp_path, document), folder).code == "blob_altered"


def spoil(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


@pytest.mark.parametrize("content", [b"short", None])
def test_a_stored_blob_at_fault_is_taken_from_the_folder_that_has_it(
    office: Office, other: Handed, document: Document, tmp_path: Path, content: bytes | None
) -> None:
    """Of another size, and of the right one."""
    (file,) = document["checkpoints"][0]["files"]
    office.store.blobs.mkdir(parents=True, exist_ok=True)
    (office.store.blobs / file["sha256"]).write_bytes(b"x" * file["size_bytes"] if content is None else content)
    assert [p.ok for p in take(office, hand(tmp_path, document), other.state).verified] == [True]


def test_a_second_import_mends_what_was_found_at_fault(
    office: Office, other: Handed, document: Document, tmp_path: Path
) -> None:
    path = hand(tmp_path, document)
    take(office, path, other.state)
    (one,) = registered(office)
    spoil(office.store.blobs / one.files[0].sha256, b"?")
    checkpoints.prove(office, one)
    assert [p.ok for p in take(office, path, other.state).verified] == [True]


def test_an_imported_quarantine_can_be_lifted_whatever_is_declared_and_registered(
    office: Office, document: Document, tmp_path: Path
) -> None:
    digest = "sha256:" + "1" * 64
    document["checkpoints"] = []
    document["quarantine"] = [{"service": "fraud", "env": "elsewhere", "digest": digest, "run_id": "run_there"}]
    take(office, hand(tmp_path, document))
    checkpoints.release(office, service="fraud", version=digest, env="elsewhere", reason="not ours", by="ops")
    assert held(office) == []


def test_an_altered_golden_set_is_refused(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    blob = folder / document["checkpoints"][0]["golden_sha256"]
    blob.write_bytes(blob.read_bytes() + b" ")
    assert refused(office, hand(tmp_path, document), folder).code == "blob_altered"


def test_truncated_bytes_are_refused(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    blob = folder / document["checkpoints"][0]["files"][0]["sha256"]
    blob.write_bytes(blob.read_bytes()[:-1])
    assert refused(office, hand(tmp_path, document), folder).code == "blob_truncated"


def link(blob: Path) -> None:
    blob.rename(blob.with_suffix(".aside"))
    blob.symlink_to(blob.with_suffix(".aside"))


def pipe(blob: Path) -> None:
    blob.unlink()
    os.mkfifo(blob)


def folder_instead(blob: Path) -> None:
    blob.unlink()
    blob.mkdir()


@pytest.mark.parametrize("change", [link, pipe, folder_instead])
def test_a_blob_that_is_no_regular_file_is_not_taken(
    office: Office, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    document, folder = broken(tmp_path)
    change(folder / document["checkpoints"][0]["files"][0]["sha256"])
    assert refused(office, hand(tmp_path, document), folder).code == "blob_missing"


def test_a_pickle_under_the_name_of_a_safe_format_is_refused(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path, content=pickle.dumps({"weights": 1}))
    error = refused(office, hand(tmp_path, document), folder)
    assert (error.code, error.exit_code) == ("unsafe_format", 30)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"requests":[],"answers":[]}'])
def test_a_golden_set_that_is_none_is_refused(office: Office, tmp_path: Path, content: bytes) -> None:
    document, folder = broken(tmp_path, golden_set=content)
    assert refused(office, hand(tmp_path, document), folder).code == "golden_malformed"


def test_an_entry_that_nothing_would_prove_is_refused_before_it_is_registered(office: Office, tmp_path: Path) -> None:
    """ONNX tells no state, and there is no golden set."""
    document, folder = broken(tmp_path)
    (entry,) = document["checkpoints"]
    del entry["digest"]
    document = with_address({**entry, "golden_sha256": ""})
    document["checkpoints"][0]["golden_sha256"] = None
    assert registry.diff(office, hand(tmp_path, document), folder).exit_code == 30
    assert refused(office, hand(tmp_path, document), folder).code == "golden_missing"


def test_a_digest_that_is_not_the_address_of_its_content_is_refused(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    document["checkpoints"][0]["digest"] = "sha256:" + "0" * 64
    path = hand(tmp_path, document)
    error = refused(office, path, folder)
    assert error.code == "registry_address_wrong"
    assert f"handed.yaml:{line_of(path, '- digest')}:" in error.message


# --- what contradicts the registry


CHANGES: dict[str, Callable[[Document], Any]] = {
    "version": lambda row: row.update(version="v2"),
    "format": lambda row: row.update(format="sklearn-skops"),
    "golden_sha256": lambda row: row.update(golden_sha256="0" * 64),
    "path of a file": lambda row: row["files"][0].update(path="other.onnx"),
    "sha256 of a file": lambda row: row["files"][0].update(sha256="0" * 64),
    "size of a file": lambda row: row["files"][0].update(size_bytes=7),
    "one file more": lambda row: row["files"].append({"path": "z", "sha256": "0" * 64, "size_bytes": 1}),
}


@pytest.fixture
def imported(office: Office, tmp_path: Path) -> Document:
    """An office that has registered one checkpoint, and the file that says the same."""
    document, folder = broken(tmp_path)
    take(office, hand(tmp_path, document), folder)
    return document


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_fact_of_a_known_checkpoint_is_refused(
    office: Office, imported: Document, tmp_path: Path, change: str
) -> None:
    CHANGES[change](imported["checkpoints"][0])
    path = hand(tmp_path, imported)
    error = refused(office, path)
    assert (error.code, error.exit_code) == ("registry_fact_changed", 65)
    assert f"handed.yaml:{line_of(path, '- digest')}:" in error.message
    assert error.hint


def test_another_proof_of_a_known_checkpoint_is_neither_taken_nor_refused(
    office: Office, imported: Document, tmp_path: Path
) -> None:
    before = contents(office)
    imported["checkpoints"][0].update(validated=True, verified_by="rollback_log.json#7", load_ms=9)
    assert take(office, hand(tmp_path, imported)).added == 0
    assert contents(office) == before


def test_a_known_version_with_other_bytes_is_refused(office: Office, imported: Document, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    document, folder = broken(tmp_path / "more", content=b"other bytes")
    error = refused(office, hand(tmp_path, document), folder)
    assert (error.code, error.exit_code) == ("registry_label_taken", 75)


def test_a_retired_version_with_other_bytes_is_refused(office: Office, tmp_path: Path) -> None:
    with office.database.transaction() as connection:
        connection.execute(
            sql("INSERT INTO retired (service, version, digest, retired_at) VALUES ('fraud', 'v1', 'sha256:x', '')")
        )
    document, folder = broken(tmp_path)
    assert refused(office, hand(tmp_path, document), folder).code == "registry_label_taken"


@pytest.mark.parametrize("same", ["digest", "version"])
def test_two_entries_of_one_checkpoint_or_version_are_refused(office: Office, tmp_path: Path, same: str) -> None:
    document, folder = broken(tmp_path)
    second = json.loads(json.dumps(document["checkpoints"][0]))
    second.update({"version": "v2"} if same == "digest" else {"digest": "sha256:" + "0" * 64})
    document["checkpoints"].append(second)
    path = hand(tmp_path, document)
    error = refused(office, path, folder)
    assert (error.code, error.exit_code) == ("registry_two_entries", 78)
    assert f"handed.yaml:{line_of(path, '- digest', 2)}:" in error.message


@pytest.mark.parametrize("part", ["checkpoints", "quarantine"])
def test_a_service_that_is_not_declared_is_refused(office: Office, tmp_path: Path, part: str) -> None:
    document, folder = broken(tmp_path)
    digest = document["checkpoints"][0]["digest"]
    if part == "checkpoints":
        document["checkpoints"][0]["service"] = "pricing"
    else:
        document["quarantine"] = [{"service": "pricing", "env": "prod", "digest": digest}]
    assert refused(office, hand(tmp_path, document), folder).code == "service_unknown"


def test_one_refused_entry_refuses_the_whole_file(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    digest = document["checkpoints"][0]["digest"]
    document["quarantine"] = [{"service": s, "env": "prod", "digest": digest} for s in ("fraud", "pricing")]
    assert refused(office, hand(tmp_path, document), folder).code == "service_unknown"


def test_every_refusal_is_shown_by_the_diff(office: Office, tmp_path: Path) -> None:
    document, _ = broken(tmp_path)
    document["quarantine"] = [{"service": "pricing", "env": "prod", "digest": document["checkpoints"][0]["digest"]}]
    found = registry.diff(office, hand(tmp_path, document)).difference
    assert [r.code for r in found.refusals] == ["blob_missing", "service_unknown"]


def test_what_was_registered_between_diff_and_import_is_seen(office: Office, tmp_path: Path) -> None:
    """Compared again in the transaction that registers."""
    document, folder = broken(tmp_path)
    proposal = registry.diff(office, hand(tmp_path, document), folder)
    (tmp_path / "more").mkdir()
    rival, more = broken(tmp_path / "more", content=b"other bytes")
    take(office, hand(tmp_path / "more", rival), more)
    with pytest.raises(RearguardError) as told:
        registry.take_in(office, proposal, by="ops")
    assert told.value.code == "registry_label_taken"
    assert [c.digest for c in registered(office)] == [rival["checkpoints"][0]["digest"]]


# --- forms


FORMS: dict[str, tuple[str, str, str]] = {
    "another format": ("format: rearguard/checkpoint-registry/1", "format: other/1", "config_value"),
    "an unknown key": ("load_ms: 1", "load_m: 1", "config_unknown_key"),
    "a digest in capitals": ("digest: sha256:", "digest: SHA256:", "config_value"),
    "no version": ("  version: v1\n", "", "config_missing_key"),
    "a version with a slash": ("version: v1", "version: a/b", "config_value"),
    "an absolute path": ("path: model.onnx", "path: /etc/passwd", "config_value"),
    "a path that leads out": ("path: model.onnx", "path: a/../../b", "config_value"),
    "an empty part of a path": ("path: model.onnx", "path: a//b", "config_value"),
    "a path with a backslash": ("path: model.onnx", "path: 'a\\b'", "config_value"),
    "a path with a line break": ("path: model.onnx", 'path: "a\\nb"', "config_value"),
    "a path of 33 levels": ("path: model.onnx", "path: " + "a/" * 32 + "b", "config_value"),
    "a version of dots": ("version: v1", "version: ..", "config_value"),
    "a negative size": ("size_bytes: 8", "size_bytes: -8", "config_value"),
    "a size of no number": ("size_bytes: 8", "size_bytes: 8e3", "config_value"),
    "a size too large": ("size_bytes: 8", "size_bytes: 99999999999999999999", "config_value"),
    "a truth value in words": ("validated: true", "validated: yes", "config_value"),
    "another kind": ("format: onnx", "format: onnx\n  kind: dataset", "config_value"),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_not_of_the_form_is_refused_with_its_line(office: Office, tmp_path: Path, name: str) -> None:
    old, new, code = FORMS[name]
    document, folder = broken(tmp_path)
    path = hand(tmp_path, document)
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    line = line_of(path, old.strip()) if new else line_of(path, "- digest")
    path.write_text(text.replace(old, new), encoding="utf-8")
    error = refused(office, path, folder)
    assert isinstance(error, ConfigError)
    assert (error.code, error.line) == (code, line + ("\n" in new))


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "x", "a/b"), ("a", "a-b", "a/c")])
def test_files_that_could_not_lie_beside_each_other_are_refused(
    office: Office, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    document, folder = broken(tmp_path)
    file = document["checkpoints"][0]["files"][0]
    document["checkpoints"][0]["files"] = [{**file, "path": path} for path in paths]
    assert refused(office, hand(tmp_path, document), folder).code == "config_value"


def test_an_entry_without_files_is_refused(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    document["checkpoints"][0]["files"] = []
    assert refused(office, hand(tmp_path, document), folder).code == "config_value"


def test_nothing_is_collected_while_bytes_come_in(office: Office, tmp_path: Path) -> None:
    document, folder = broken(tmp_path)
    told: list[str] = []

    def collect(line: str) -> None:
        if not line.startswith("taking in"):
            return
        with pytest.raises(ConflictError) as refused, ContentStore(office.state).collecting():
            pass
        told.append(refused.value.code)

    registry.take_in(office, registry.diff(office, hand(tmp_path, document), folder), by="ops", progress=collect)
    assert told == ["store_busy"]
    with ContentStore(office.state).collecting():
        pass


# --- kill -9

IMPORTER = """
import sys
from pathlib import Path
from rearguard.officer import registry
from rearguard.officer.office import open_office
with open_office(Path(sys.argv[1])) as office:
    registry.take_in(office, registry.diff(office, Path(sys.argv[2]), Path(sys.argv[3])), by="ops")
"""


@pytest.mark.parametrize("point", faults.POINTS["import"])
def test_a_killed_import_is_completed_by_a_second(
    other: Handed, document: Document, tmp_path: Path, point: str
) -> None:
    state = write_settings(tmp_path / "state")
    path = hand(tmp_path, document)
    environment = {**os.environ, faults.VARIABLE: f"import:{point}"}
    command = [sys.executable, "-c", IMPORTER, str(state), str(path), str(other.state)]
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL
    with open_office(state) as office:
        assert len(registered(office)) == (1 if point == "registered" else 0)
        assert [p.ok for p in take(office, path, other.state).verified] == [True]
        assert kinds(office) == ["checkpoint_added", "registry_imported", "checkpoint_verified"]
        assert registry.verify(office).checkpoints == 1


def test_an_import_that_fails_its_proof_is_not_proven_again_by_repeating_it(
    office: Office, imported: Document, tmp_path: Path
) -> None:
    assert take(office, hand(tmp_path, imported)).verified == ()
