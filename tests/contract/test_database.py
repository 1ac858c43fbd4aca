"""The database: one chain whoever appends, readers that need no rights, and refusals that say what is wrong."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rearguard.database import DATABASE_NAME, Database, OfficerLock, officer_alive, open_database, open_read_only
from rearguard.edge import SystemClock
from rearguard.errors import ConflictError, DependencyError, IntegrityError, NotFoundError
from rearguard.evidence.log import append, read
from rearguard.model.time import Instant
from rearguard.rules.chain import record_fields, verify_chain

NOBODY = 65_534

APPEND = """
import sys
from pathlib import Path
from rearguard.database import open_database
from rearguard.evidence.log import append
from rearguard.model.time import Instant

database = open_database(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    with database.transaction() as connection:
        now = Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=number, boot_id="boot")
        append(connection, now=now, kind="test", body={"by": sys.argv[2], "number": number})
    print(number, flush=True)
"""


def now(number: int = 0) -> Instant:
    return Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=number, boot_id="boot")


def add(database: Database, count: int) -> None:
    for number in range(count):
        with database.transaction() as connection:
            append(connection, now=now(number), kind="test", body={"number": number})


def script(text: str, *arguments: object, preamble: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", preamble + text, *(str(a) for a in arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def records_as_another_user(state: Path) -> str:
    """What a process without any right to write says of the log: the number of its records, or its error."""
    text = """
import os, sys
from pathlib import Path
from rearguard.database import open_read_only, officer_alive
from rearguard.errors import RearguardError
from rearguard.evidence.log import newest_id
state = Path(sys.argv[1])
with open_read_only(state).reading() as connection:
    pass  # everything is imported now; without root's rights the packages might not be readable
if os.getuid() == 0:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try:
    with open_read_only(state).reading() as connection:
        print(newest_id(connection), officer_alive(state))
except RearguardError as error:
    print(error.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", text, str(state), str(NOBODY)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    (folder / "state").chmod(0o755)
    shutil.rmtree(folder)


# --- appending


def test_two_processes_that_append_at_once_make_one_chain_without_gaps(tmp_path: Path) -> None:
    writers = [script(APPEND, tmp_path, name, 60) for name in ("a", "b")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    with open_read_only(tmp_path).reading() as connection:
        records = list(read(connection))
    assert verify_chain(record_fields(r) for r in records) is None
    assert sorted((r.body["by"], r.body["number"]) for r in records) == [(n, i) for n in "ab" for i in range(60)]


def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:  # noqa: PT012
        append(connection, now=now(), kind="test", body={})
        raise ZeroDivisionError
    with database.reading() as connection:
        assert list(read(connection)) == []


def test_a_writer_killed_in_the_middle_leaves_what_it_acknowledged_and_a_sound_chain(tmp_path: Path) -> None:
    writer = script(APPEND, tmp_path, "a", 100_000)
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write("go\n")
    writer.stdin.flush()
    said = [writer.stdout.readline() for _ in range(20)]
    writer.kill()
    rest, _ = writer.communicate(timeout=30)
    acknowledged = int([*said, *rest.splitlines()][-1])
    with open_read_only(tmp_path).reading() as connection:
        records = list(read(connection))
    assert verify_chain(record_fields(r) for r in records) is None
    assert len(records) - (acknowledged + 1) in (0, 1)  # one more may have been committed and not said


# --- readers


def test_a_folder_that_the_reader_may_not_write_is_read(public: Path) -> None:
    state = public / "state"
    database = open_database(state)
    add(database, 3)
    database.close()
    state.chmod(0o555)
    assert records_as_another_user(state) == "3 False"


def test_a_reader_without_rights_sees_the_newest_record_of_a_living_writer(public: Path) -> None:
    """The newest records are in the write-ahead log, which another user's officer holds open."""
    state = public / "state"
    database = open_database(state)
    lock = OfficerLock(state)
    lock.acquire(SystemClock().now())
    add(database, 3)
    assert (state / f"{DATABASE_NAME}-wal").stat().st_size > 0
    assert records_as_another_user(state) == "3 True"
    lock.release()
    database.close()


@pytest.mark.parametrize("name", ["with space", "100%", "a#b", "what?", "ä"])
def test_a_folder_of_any_name_is_written_and_read(tmp_path: Path, name: str) -> None:
    state = tmp_path / name
    add(open_database(state), 1)
    with open_read_only(state).reading() as connection:
        assert len(list(read(connection))) == 1
    assert DATABASE_NAME in {path.name for path in state.iterdir()}


def test_a_reader_neither_waits_for_a_writer_nor_sees_what_is_not_committed(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    add(database, 1)
    with database.transaction() as writer:
        append(writer, now=now(1), kind="test", body={})
        with database.reading() as reader:  # with a write lock this would time out after 30 s
            assert [record.id for record in read(reader)] == [1]
    database.close()


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    with pytest.raises(DependencyError) as refused, open_read_only(tmp_path).transaction() as connection:
        append(connection, now=now(), kind="test", body={})
    assert refused.value.code == "database_unavailable"


def test_reading_where_there_is_no_state_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as refused:
        open_read_only(tmp_path / "absent")
    assert refused.value.code == "state_absent"
    assert not (tmp_path / "absent").exists()


# --- refusals


@pytest.mark.parametrize("opening", [open_database, open_read_only])
def test_a_newer_schema_is_refused_by_writers_and_readers(tmp_path: Path, opening: object) -> None:
    open_database(tmp_path).close()
    raw = sqlite3.connect(tmp_path / DATABASE_NAME)
    raw.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    raw.commit()
    raw.close()
    with pytest.raises(IntegrityError) as refused:
        opening(tmp_path)  # type: ignore[operator]
    assert refused.value.code == "schema_newer"
    assert refused.value.hint == "run the release that wrote it, or a newer one"


@pytest.mark.parametrize("opening", [open_database, open_read_only])
def test_a_file_that_is_no_database_is_named_as_damaged(tmp_path: Path, opening: object) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"these are no pages" * 1000)
    with pytest.raises(IntegrityError) as refused:
        opening(tmp_path)  # type: ignore[operator]
    assert refused.value.code == "database_damaged"


def test_damaged_pages_are_named_when_they_are_read(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    add(database, 100)
    database.close()
    path = tmp_path / DATABASE_NAME
    content = bytearray(path.read_bytes())
    content[8 * 4096 :] = os.urandom(len(content) - 8 * 4096)
    path.write_bytes(content)
    with pytest.raises(IntegrityError) as refused, open_read_only(tmp_path).reading() as connection:
        list(read(connection))
    assert refused.value.code == "database_damaged"


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder", encoding="utf-8")
    with pytest.raises(DependencyError) as refused:
        open_database(tmp_path / "state")
    assert refused.value.code == "state_not_writable"


# --- a full disk


FILL = """
import resource, sys
from pathlib import Path
from rearguard.database import open_database
from rearguard.errors import DependencyError
from rearguard.evidence.log import append
from rearguard.model.time import Instant

state, limit = Path(sys.argv[1]), int(sys.argv[2])
database = open_database(state)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
done = 0
try:
    while done < 10_000:
        with database.transaction() as connection:
            now = Instant(wall_ns=1_800_000_000_000_000_000, mono_ns=done, boot_id="boot")
            append(connection, now=now, kind="test", body={"text": "x" * 4000})
        done += 1
except DependencyError as error:
    print(error.code, done)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file system of 2 MiB where one may be mounted; else a folder and a limit of that size on files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield folder, 2 << 20
        return
    yield folder, 0
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_and_keeps_every_acknowledged_record(small_disk: tuple[Path, int]) -> None:
    folder, limit = small_disk
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(folder), str(limit)], capture_output=True, text=True, timeout=60, check=False
    )
    code, acknowledged = done.stdout.split()
    assert code == "database_unavailable"
    database = open_read_only(folder)
    with database.reading() as connection:
        records = list(read(connection))
    database.close()
    assert len(records) == int(acknowledged) > 0
    assert verify_chain(record_fields(r) for r in records) is None


# --- the officer's lock


HOLD = """
import sys
from pathlib import Path
from rearguard.database import OfficerLock
from rearguard.edge import SystemClock

OfficerLock(Path(sys.argv[1])).acquire(SystemClock().now())
print("held", flush=True)
sys.stdin.readline()
"""


def test_the_officers_lock_dies_with_its_process(tmp_path: Path) -> None:
    holder = script(HOLD, tmp_path, preamble="")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    alive = officer_alive(tmp_path)
    holder.kill()
    holder.communicate(timeout=30)
    assert (alive, officer_alive(tmp_path)) == (True, False)


def test_a_second_officer_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    first = OfficerLock(tmp_path)
    first.acquire(SystemClock().now())
    with pytest.raises(ConflictError) as refused:
        OfficerLock(tmp_path).acquire(SystemClock().now())
    assert refused.value.code == "officer_alive"
    assert f"process {os.getpid()}" in refused.value.message
    first.release()


def test_a_lock_that_was_released_can_be_taken(tmp_path: Path) -> None:
    for _ in range(2):
        lock = OfficerLock(tmp_path)
        lock.acquire(SystemClock().now())
        lock.release()


def test_somebody_who_looks_is_not_taken_for_an_officer(tmp_path: Path) -> None:
    """Two `status` at once: while one shares the lock, the other still sees no officer."""
    import fcntl

    lock = OfficerLock(tmp_path)
    lock.acquire(SystemClock().now())
    lock.release()
    with (tmp_path / "officer.lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not officer_alive(tmp_path)


def test_looking_for_an_officer_creates_nothing(tmp_path: Path) -> None:
    assert not officer_alive(tmp_path)
    assert list(tmp_path.iterdir()) == []
