"""`checkpoint_registry.yaml`: what is exported, that it is valid, durable, and that an edit is seen (R1)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it brings no types
import pytest
import yaml

from rearguard.checkpoints import faults, registry, registry_file
from rearguard.checkpoints.verification import Verification
from rearguard.database import Database, open_database, sql
from rearguard.errors import DependencyError, IntegrityError
from rearguard.evidence.files import replace_file
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.service import Digest
from rearguard.model.time import Instant

SCHEMA = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "reference" / "checkpoint-registry.schema.json").read_text("utf-8")
)
NOW = Instant(wall_ns=1_800_000_000 * 10**9, mono_ns=10**15, boot_id="boot")
"""2027-01-15T08:00:00Z, by `date -u -d @1800000000`."""


def checkpoint(letter: str, **changes: Any) -> Checkpoint:
    facts: dict[str, Any] = {
        "digest": Digest(f"sha256:{letter * 64}"),
        "service": "fraud",
        "version": f"v-{letter}",
        "format": "onnx",
        "files": (CheckpointFile(path="model.onnx", sha256="1" * 64, size_bytes=3),),
        "golden_sha256": "2" * 64,
        "added_at": NOW,
        "verified_at": None,
        "load_ms": None,
        "failure": "",
    }
    return Checkpoint(**{**facts, **changes})


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path)
    yield opened
    opened.close()


def insert(database: Database, *checkpoints: Checkpoint) -> None:
    with database.transaction() as connection:
        for one in checkpoints:
            registry.insert(connection, one)


def verified(database: Database, one: Checkpoint, *, code: str = "") -> None:
    """The outcome of a verification: it passed, or failed with `code`."""
    outcome = Verification(
        ok=not code, code=code, message="", load_ms=None if code else 41, peak_rss_bytes=None, receipt=""
    )
    with database.transaction() as connection:
        registry.note_verification(connection, one, outcome, now=NOW, run_id="run_1")


def exported(database: Database, state: Path) -> dict[str, Any]:
    registry_file.export(database, state)
    document: dict[str, Any] = yaml.safe_load((state / "checkpoint_registry.yaml").read_bytes())
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    return document


def test_an_empty_registry_is_exported(database: Database, tmp_path: Path) -> None:
    assert exported(database, tmp_path) == {
        "format": "rearguard/checkpoint-registry/1",
        "checkpoints": [],
        "quarantine": [],
        "standbys": [],
    }


def test_the_facts_of_a_checkpoint_are_exported(database: Database, tmp_path: Path) -> None:
    insert(database, checkpoint("a", oci_manifest=f"sha256:{'a' * 64}", state_sha256="3" * 64, reproducible="bitwise"))
    assert exported(database, tmp_path)["checkpoints"] == [
        {
            "digest": "sha256:" + "a" * 64,
            "service": "fraud",
            "version": "v-a",
            "kind": "model",
            "format": "onnx",
            "warm_start": True,
            "files": [{"path": "model.onnx", "sha256": "1" * 64, "size_bytes": 3}],
            "golden_sha256": "2" * 64,
            "state_sha256": "3" * 64,
            "oci_manifest": "sha256:" + "a" * 64,
            "added_at": "2027-01-15T08:00:00Z",
            "validated": False,
            "verified_at": None,
            "verified_by": None,
            "reproducible": "bitwise",
            "load_ms": None,
            "peak_rss_bytes": None,
            "failure": None,
            "copies": [],
        }
    ]


def test_a_proof_names_its_record(database: Database, tmp_path: Path) -> None:
    insert(database, checkpoint("a"))
    verified(database, checkpoint("a"))
    (row,) = exported(database, tmp_path)["checkpoints"]
    told = {key: row[key] for key in ("validated", "verified_at", "verified_by", "load_ms", "failure")}
    assert told == {
        "validated": True,
        "verified_at": "2027-01-15T08:00:00Z",
        "verified_by": "rollback_log.json#1",
        "load_ms": 41,
        "failure": None,
    }


def test_a_failed_verification_is_not_validated(database: Database, tmp_path: Path) -> None:
    insert(database, checkpoint("a"))
    verified(database, checkpoint("a"), code="blob_altered")
    (row,) = exported(database, tmp_path)["checkpoints"]
    assert (row["validated"], row["verified_at"], row["failure"]) == (False, None, "blob_altered")


def test_quarantine_and_standbys_are_exported(database: Database, tmp_path: Path) -> None:
    with database.transaction() as connection:
        digest = "sha256:" + "b" * 64
        connection.execute(sql("INSERT INTO quarantine VALUES ('fraud', 'prod', :d, 'run_1', '')"), {"d": digest})
        connection.execute(
            sql(
                "INSERT INTO standbys (service, env, digest, version, state, since) "
                "VALUES ('fraud', 'prod', :d, 'v-b', 'standing', '')"
            ),
            {"d": digest},
        )
    found = exported(database, tmp_path)
    place = {"service": "fraud", "env": "prod", "digest": digest}
    assert found["quarantine"] == [{**place, "run_id": "run_1"}]
    assert found["standbys"] == [{**place, "version": "v-b", "state": "standing", "reason": None}]


def test_the_order_is_that_of_registration(database: Database, tmp_path: Path) -> None:
    insert(database, checkpoint("c"), checkpoint("a"), checkpoint("b"))
    assert [row["version"] for row in exported(database, tmp_path)["checkpoints"]] == ["v-c", "v-a", "v-b"]


def test_equal_databases_give_equal_bytes(database: Database, tmp_path: Path) -> None:
    twin = open_database(tmp_path / "twin")
    for one in (database, twin):
        insert(one, checkpoint("c"), checkpoint("a"))
    registry_file.export(database, tmp_path)
    registry_file.export(twin, tmp_path / "twin")
    twin.close()
    name = "checkpoint_registry.yaml"
    assert (tmp_path / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()


def test_an_export_that_changes_nothing_writes_nothing(database: Database, tmp_path: Path) -> None:
    registry_file.export(database, tmp_path)
    before = (tmp_path / "checkpoint_registry.yaml").stat()
    registry_file.export(database, tmp_path)
    assert (tmp_path / "checkpoint_registry.yaml").stat().st_ino == before.st_ino


def test_a_folder_that_cannot_be_written_is_told(database: Database, tmp_path: Path) -> None:
    (tmp_path / "registry.lock").mkdir()
    with pytest.raises(DependencyError) as refused:
        registry_file.export(database, tmp_path)
    assert refused.value.code == "file_not_written"


# --- an edited export is seen


class Sleeps:
    """How long was waited for an export that might be on its way."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def __call__(self, seconds: float) -> None:
        self.slept_s += seconds


def check(database: Database, state: Path) -> int:
    return registry_file.check(database, state, Sleeps())


def test_a_fresh_export_is_what_the_database_says(database: Database, tmp_path: Path) -> None:
    insert(database, checkpoint("a"), checkpoint("b"))
    registry_file.export(database, tmp_path)
    assert check(database, tmp_path) == 2


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "a value": lambda content: content.replace(b"validated: false", b"validated: true", 1),
    "a comment": lambda content: content + b"# approved\n",
    "a missing entry": lambda content: content[: content.index(b"- digest")] + b"quarantine: []\n",
    "a cut": lambda content: content[:-1],
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "nothing left": lambda _content: b"",
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_export_is_altered(database: Database, tmp_path: Path, edit: str) -> None:
    insert(database, checkpoint("a"))
    registry_file.export(database, tmp_path)
    path = tmp_path / "checkpoint_registry.yaml"
    path.write_bytes(EDITS[edit](path.read_bytes()))
    with pytest.raises(IntegrityError) as refused:
        check(database, tmp_path)
    assert (refused.value.code, refused.value.exit_code) == ("registry_altered", 65)
    assert "registry export" in refused.value.hint


def test_the_first_line_that_was_edited_is_named(database: Database, tmp_path: Path) -> None:
    """Line 1 is the comment, 2 the format, 3 the list, 4 the digest, 5 the service, 6 the version."""
    insert(database, checkpoint("a"))
    registry_file.export(database, tmp_path)
    path = tmp_path / "checkpoint_registry.yaml"
    path.write_bytes(path.read_bytes().replace(b"v-a", b"v-9"))
    with pytest.raises(IntegrityError) as refused:
        check(database, tmp_path)
    assert "checkpoint_registry.yaml:6:" in refused.value.message


def test_a_missing_export_is_altered(database: Database, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as refused:
        check(database, tmp_path)
    assert refused.value.code == "registry_altered"


def test_an_export_on_its_way_is_waited_for_and_not_accused(database: Database, tmp_path: Path) -> None:
    registry_file.export(database, tmp_path)
    insert(database, checkpoint("a"))

    def export_meanwhile(_seconds: float) -> None:
        registry_file.export(database, tmp_path)

    assert registry_file.check(database, tmp_path, export_meanwhile) == 1


# --- kill -9

WRITER = """
import sys
from pathlib import Path
from rearguard.checkpoints import registry_file
from rearguard.database import open_database
state = Path(sys.argv[1])
registry_file.export(open_database(state), state)
"""


@pytest.mark.parametrize("point", faults.POINTS["export"])
def test_a_killed_export_leaves_the_old_file_or_the_new_one_and_a_second_completes(
    database: Database, tmp_path: Path, point: str
) -> None:
    registry_file.export(database, tmp_path)
    before = (tmp_path / "checkpoint_registry.yaml").read_bytes()
    insert(database, checkpoint("a"))
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = {**os.environ, faults.VARIABLE: f"export:{point}"}
    assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
    with database.reading() as connection:
        after = registry_file.render(registry_file.document(connection))
    assert (tmp_path / "checkpoint_registry.yaml").read_bytes() == (before if point == "before_write" else after)
    registry_file.export(database, tmp_path)
    assert check(database, tmp_path) == 1


@pytest.fixture
def other_exporter(tmp_path: Path) -> Iterator[int]:
    """Somebody who holds the lock, and perhaps never lets go; its file descriptor."""
    held = os.open(tmp_path / "registry.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    yield held
    os.close(held)


def test_nobody_waits_for_an_export_of_somebody_else(database: Database, tmp_path: Path, other_exporter: int) -> None:
    """Nothing is written meanwhile: else a slow writer puts an older registry over a newer one."""
    exporter = threading.Thread(target=registry_file.export, args=(database, tmp_path), daemon=True)
    exporter.start()
    exporter.join(timeout=10)
    assert (exporter.is_alive(), (tmp_path / "checkpoint_registry.yaml").exists()) == (False, False)


def test_an_export_that_was_left_to_somebody_who_died_is_known(
    database: Database, tmp_path: Path, other_exporter: int
) -> None:
    assert not registry_file.is_behind(tmp_path)
    assert registry_file.export(database, tmp_path) is False
    assert registry_file.is_behind(tmp_path)
    fcntl.flock(other_exporter, fcntl.LOCK_UN)
    assert registry_file.export(database, tmp_path) is True
    assert not registry_file.is_behind(tmp_path)


def test_who_exports_takes_the_changes_of_those_who_did_not_wait_with_it(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change comes after the export has read the database."""

    def change(path: Path, content: bytes) -> None:
        monkeypatch.undo()
        insert(database, checkpoint("a"))
        assert registry_file.export(database, tmp_path) is False
        replace_file(path, content)

    monkeypatch.setattr(registry_file, "replace_file", change)
    assert registry_file.export(database, tmp_path) is True
    assert check(database, tmp_path) == 1


@pytest.mark.parametrize("point", faults.POINTS["export"])
def test_an_export_that_was_killed_is_known(database: Database, tmp_path: Path, point: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    subprocess.run(command, env={**os.environ, faults.VARIABLE: f"export:{point}"}, timeout=60)
    assert registry_file.is_behind(tmp_path)


def test_many_writers_at_once_end_with_the_newest_registry(database: Database, tmp_path: Path) -> None:
    """Each exports after its own change; the file must not go back to an older one."""
    writers = [subprocess.Popen([sys.executable, "-c", ADDER, str(tmp_path), letter]) for letter in "abcdef"]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 6
    assert check(database, tmp_path) == 6


ADDER = (
    WRITER.rpartition("registry_file.export")[0]
    + """
from rearguard.checkpoints import registry
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.time import Instant
database = open_database(state)
with database.transaction() as connection:
    registry.insert(connection, Checkpoint(
        digest="sha256:" + sys.argv[2] * 64, service="fraud", version=sys.argv[2], format="onnx", files=(),
        golden_sha256="", added_at=Instant(wall_ns=0, mono_ns=0, boot_id=""), verified_at=None, load_ms=None, failure=""))
registry_file.export(database, state)
"""
)
