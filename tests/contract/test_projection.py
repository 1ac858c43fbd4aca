"""The named files are projections of the log: whole at every instant, and no change to them or to the log goes unseen."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rearguard.database import DATABASE_NAME, Database, open_database, open_read_only
from rearguard.errors import DependencyError
from rearguard.evidence.files import replace_file
from rearguard.evidence.log import append
from rearguard.evidence.projection import FILES, project
from rearguard.evidence.verification import LogVerification, verify_log
from rearguard.model.time import Instant
from rearguard.rules.chain import record_hash, verify_chain

KINDS = ("incident_opened", "rollback_started", "telemetry_silent", "incident_closed", "rollback_finished")
"""Records 1, 3 and 4 stand in incident_telemetry.log as well."""


def add(database: Database, *kinds: str) -> None:
    for kind in kinds:
        with database.transaction() as connection:
            now = Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=1, boot_id="boot")
            append(connection, now=now, kind=kind, body={"note": "naïve\u2028€", "n": 1})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Five records, projected."""
    database = open_database(tmp_path)
    add(database, *KINDS)
    project(database, tmp_path)
    database.close()
    return tmp_path


def verified(state: Path) -> LogVerification:
    database = open_read_only(state)
    try:
        return verify_log(database, state)
    finally:
        database.close()


def found(state: Path) -> tuple[str, int, str]:
    result = verified(state)
    assert result.ok is (result.code == "")
    return result.file, result.id, result.code


def change_log(state: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit rollback_log.json as a careful forger would, form kept."""
    path = state / "rollback_log.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    lines = ",\n".join(json.dumps(e, sort_keys=True, ensure_ascii=False) for e in document["entries"])
    head = {k: v for k, v in document.items() if k != "entries"}
    path.write_text(f'{json.dumps(head)[:-1]}, "entries": [\n{lines}\n]}}\n', encoding="utf-8")


def change_database(state: Path, statement: str) -> None:
    raw = sqlite3.connect(state / DATABASE_NAME)
    raw.execute(statement)
    raw.commit()
    raw.close()


def change_lines(state: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = state / "incident_telemetry.log"
    lines = [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n") if line]
    path.write_text("".join(change(lines)), encoding="utf-8")


# --- what the files hold


def test_the_log_file_is_one_json_document_with_the_whole_chain(state: Path) -> None:
    document = json.loads((state / "rollback_log.json").read_text(encoding="utf-8"))
    assert document["format"] == "rearguard/rollback-log/1"
    assert [e["kind"] for e in document["entries"]] == list(KINDS)
    assert (document["size"], document["head"]) == (5, document["entries"][-1]["hash"])
    assert verify_chain(document["entries"]) is None


def test_a_line_file_holds_the_records_of_its_kinds_with_the_same_ids(state: Path) -> None:
    text = (state / "incident_telemetry.log").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.split("\n") if line]
    assert [(e["id"], e["kind"]) for e in entries] == [
        (1, "incident_opened"),
        (3, "telemetry_silent"),
        (4, "incident_closed"),
    ]


def test_without_drills_their_files_are_there_and_empty(state: Path) -> None:
    assert json.loads((state / "recovery_test.json").read_text()) == {
        "format": "rearguard/recovery-test/1",
        "drills": [],
    }
    assert (state / "weekly_validation.log").read_bytes() == b""


def test_projecting_again_writes_nothing(state: Path) -> None:
    before = {name: (state / name).stat().st_ino for name in FILES}
    project(open_database(state), state)
    assert {name: (state / name).stat().st_ino for name in FILES} == before


def test_a_deleted_file_is_projected_again(state: Path) -> None:
    whole = (state / "rollback_log.json").read_bytes()
    (state / "rollback_log.json").unlink()
    project(open_database(state), state)
    assert (state / "rollback_log.json").read_bytes() == whole


# --- whole at every instant


WRITE = """
import sys
from pathlib import Path
from rearguard.database import open_database
from rearguard.evidence.log import append
from rearguard.evidence.projection import project
from rearguard.model.time import Instant

state = Path(sys.argv[1])
database = open_database(state)
print("ready", flush=True)
while True:
    with database.transaction() as connection:
        now = Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=1, boot_id="boot")
        append(connection, now=now, kind="incident_opened", body={"text": "x" * 2000})
    project(database, state)
"""


def test_a_reader_beside_writers_that_are_killed_never_sees_a_part(tmp_path: Path) -> None:
    """R2, C13: eight writers die by SIGKILL, one after the other, while every read parses and verifies."""
    reads, longest = 0, 0
    for round_number in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        end = time.monotonic() + 0.15 + 0.013 * round_number
        while time.monotonic() < end:
            if not (tmp_path / "rollback_log.json").exists():
                continue
            document = json.loads((tmp_path / "rollback_log.json").read_text(encoding="utf-8"))
            assert document["size"] == len(document["entries"]) >= longest
            assert document["head"] == document["entries"][-1]["hash"]
            reads, longest = reads + 1, document["size"]
        writer.kill()
        writer.communicate(timeout=30)
        assert found(tmp_path) == ("", 0, "")
    assert reads > 20


def test_a_projection_after_a_writer_was_killed_reaches_the_newest_record(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.1)
    writer.kill()
    writer.communicate(timeout=30)
    database = open_database(tmp_path)
    add(database, "incident_closed")
    newest = project(database, tmp_path)
    assert json.loads((tmp_path / "rollback_log.json").read_text())["size"] == newest == verified(tmp_path).records


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.json"
    replace_file(path, b"old")
    (
        tmp_path / "folder" / f".file.json.{os.getpid()}.{threading.get_ident()}.tmp"
    ).mkdir()  # the temporary name cannot be opened
    with pytest.raises(DependencyError) as refused:
        replace_file(path, b"new")
    assert (refused.value.code, path.read_bytes()) == ("file_not_written", b"old")


def test_a_file_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(DependencyError) as refused:
        replace_file(tmp_path / "file" / "below" / "file.json", b"new")
    assert refused.value.code == "file_not_written"


# --- verification


def test_what_was_projected_verifies(state: Path) -> None:
    result = verified(state)
    assert (result.ok, result.records) == (True, 5)
    assert result.head == json.loads((state / "rollback_log.json").read_text())["head"]


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    result = verified(tmp_path)
    assert (result.ok, result.records, result.head) == (True, 0, "0" * 64)


@pytest.mark.parametrize("record", [1, 3, 5])
def test_an_edited_entry_of_the_file_is_named(state: Path, record: int) -> None:
    change_log(state, lambda d: d["entries"][record - 1].update(ts="2020-01-01T00:00:00Z"))
    assert found(state) == ("rollback_log.json", record, "record_differs")


def test_a_rewritten_file_whose_chain_is_sound_in_itself_is_named(state: Path) -> None:
    def forge(document: dict[str, Any]) -> None:
        document["entries"][4]["body"]["n"] = 2
        document["entries"][4]["hash"] = document["head"] = record_hash(document["entries"][4])

    change_log(state, forge)
    assert verify_chain(json.loads((state / "rollback_log.json").read_text())["entries"]) is None
    assert found(state) == ("rollback_log.json", 5, "record_differs")


@pytest.mark.parametrize("record", [1, 3])
def test_an_entry_deleted_from_the_file_is_named(state: Path, record: int) -> None:
    change_log(state, lambda d: d["entries"].pop(record - 1))
    assert found(state) == ("rollback_log.json", record, "record_differs")


def test_an_entry_cut_off_the_files_end_is_named(state: Path) -> None:
    change_log(state, lambda d: d["entries"].pop())
    assert found(state) == ("rollback_log.json", 5, "tail_dropped")


def test_an_entry_appended_to_the_file_is_named(state: Path) -> None:
    change_log(state, lambda d: d["entries"].append({**d["entries"][4], "id": 6}))
    assert found(state) == ("rollback_log.json", 6, "record_unknown")


@pytest.mark.parametrize("foreign", [1, "text", None, [], {"no": "id"}, {"id": "6"}])
def test_something_that_is_no_entry_is_named(state: Path, foreign: object) -> None:
    change_log(state, lambda d: d["entries"].append(foreign))
    assert found(state) == ("rollback_log.json", 0, "record_unknown")


@pytest.mark.parametrize(("name", "value"), [("size", 4), ("head", "0" * 64), ("format", "other"), ("extra", 1)])
def test_a_changed_head_of_the_file_is_named(state: Path, name: str, value: object) -> None:
    change_log(state, lambda d: d.update({name: value}))
    assert found(state) == ("rollback_log.json", 0, "file_differs")


def test_a_number_of_another_type_is_named(state: Path) -> None:
    """`1 == 1.0 == true` in Python, not in the file."""
    path = state / "rollback_log.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"id": 2,', '"id": 2.0,'), encoding="utf-8")
    assert found(state) == ("rollback_log.json", 0, "file_differs")


def test_a_field_written_twice_is_named(state: Path) -> None:
    """Parsers disagree about which of the two counts."""
    path = state / "rollback_log.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"id": 2,', '"id": 9, "id": 2,'), encoding="utf-8")
    assert found(state) == ("rollback_log.json", 0, "file_differs")


@pytest.mark.parametrize("size", [0, 1, 200, -2])
def test_a_truncated_file_is_named(state: Path, size: int) -> None:
    path = state / "rollback_log.json"
    path.write_bytes(path.read_bytes()[:size])
    assert found(state) == ("rollback_log.json", 0, "file_unreadable")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"{}", b'{"entries": 1}', b"[" * 100_000])
def test_a_file_that_is_something_else_is_named(state: Path, content: bytes) -> None:
    (state / "rollback_log.json").write_bytes(content)
    assert found(state) == ("rollback_log.json", 0, "file_unreadable")


@pytest.mark.parametrize("name", FILES)
def test_a_projected_file_that_is_gone_is_named(state: Path, name: str) -> None:
    (state / name).unlink()
    assert found(state) == (name, 0, "file_missing")


def test_a_line_edited_in_a_line_file_is_named(state: Path) -> None:
    change_lines(state, lambda lines: [lines[0], lines[1].replace("silent", "loud"), lines[2]])
    assert found(state) == ("incident_telemetry.log", 3, "record_differs")


def test_a_line_deleted_from_a_line_file_is_named(state: Path) -> None:
    change_lines(state, lambda lines: [lines[0], lines[2]])
    assert found(state) == ("incident_telemetry.log", 3, "record_differs")


def test_a_line_cut_off_a_line_file_is_named(state: Path) -> None:
    change_lines(state, lambda lines: lines[:2])
    assert found(state) == ("incident_telemetry.log", 4, "tail_dropped")


def test_a_line_appended_to_a_line_file_is_named(state: Path) -> None:
    change_lines(state, lambda lines: [*lines, lines[2]])
    assert found(state) == ("incident_telemetry.log", 4, "record_unknown")


def test_a_drill_written_into_the_drills_file_by_hand_is_named(state: Path) -> None:
    path = state / "recovery_test.json"
    path.write_text('{"format": "rearguard/recovery-test/1", "drills": [{"id": 7}]}', encoding="utf-8")
    assert found(state) == ("recovery_test.json", 7, "record_unknown")


@pytest.mark.parametrize(
    ("statement", "record", "code"),
    [
        ("UPDATE evidence SET body = '{\"n\":2}' WHERE id = 3", 3, "hash_mismatch"),
        ("UPDATE evidence SET ts = '2020-01-01T00:00:00Z' WHERE id = 1", 1, "hash_mismatch"),
        ("UPDATE evidence SET kind = 'rollback_failed' WHERE id = 5", 5, "hash_mismatch"),
        ("UPDATE evidence SET hash = 'ab' WHERE id = 2", 2, "hash_mismatch"),
        ("UPDATE evidence SET prev = 'ab' WHERE id = 2", 2, "prev_mismatch"),
        ("UPDATE evidence SET run_id = x'ff' WHERE id = 2", 2, "not_canonical"),
        ("UPDATE evidence SET body = '{\"n\":1.5}' WHERE id = 2", 2, "not_canonical"),
        ("UPDATE evidence SET body = '{' WHERE id = 4", 4, "record_unreadable"),
        ("UPDATE evidence SET body = x'ff' WHERE id = 4", 4, "record_unreadable"),
        ("DELETE FROM evidence WHERE id = 2", 2, "gap"),
        ("DELETE FROM evidence WHERE id = 1", 1, "gap"),
        ("DELETE FROM evidence WHERE id = 5", 5, "tail_dropped"),
        ("DELETE FROM evidence WHERE id > 2", 3, "tail_dropped"),
        ("DELETE FROM evidence", 1, "tail_dropped"),
        ("UPDATE evidence SET id = 7 WHERE id = 5", 5, "gap"),
        ("INSERT INTO evidence SELECT 6, ts, '2', boot_id, run_id, service, env, kind, body, hash, prev "
         "FROM evidence WHERE id = 5", 6, "hash_mismatch"),
    ],
)  # fmt: skip
def test_a_change_in_the_database_is_named(state: Path, statement: str, record: int, code: str) -> None:
    change_database(state, statement)
    assert found(state) == ("database", record, code)


def test_verifying_mends_nothing(state: Path) -> None:
    """A file that was tampered with must not be healed before it was seen, nor by having been seen."""
    change_log(state, lambda d: d["entries"][1].update(kind="forged"))
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    assert found(state) == found(state) == ("rollback_log.json", 2, "record_differs")
    assert {name: (state / name).read_bytes() for name in FILES} == {name: before[name] for name in FILES}


def test_verifying_projects_nothing(state: Path) -> None:
    add(open_database(state), "incident_opened")
    before = (state / "rollback_log.json").read_bytes()
    verified(state)
    assert (state / "rollback_log.json").read_bytes() == before


# --- files and database apart


def test_files_behind_the_database_verify(state: Path) -> None:
    """A record commits first and is projected a moment later."""
    add(open_database(state), "incident_opened")
    result = verified(state)
    assert (result.ok, result.records) == (True, 6)


def test_files_ahead_of_their_own_mark_verify(state: Path) -> None:
    """A crash after the files were replaced and before that was noted."""
    change_database(state, "UPDATE meta SET value = '3' WHERE key = 'projected_id'")
    assert found(state) == ("", 0, "")


def test_files_ahead_of_the_database_are_named(state: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The database was put back from an older copy; what the files know since is not in it."""
    older = tmp_path_factory.mktemp("older")
    shutil.copy(state / DATABASE_NAME, older / DATABASE_NAME)
    database = open_database(state)
    add(database, "rollback_refused")
    project(database, state)
    database.close()
    for path in state.glob(f"{DATABASE_NAME}*"):
        path.unlink()
    shutil.copy(older / DATABASE_NAME, state / DATABASE_NAME)
    assert found(state) == ("rollback_log.json", 6, "record_unknown")
