"""The named files of R1-R6 as projections of the log.

`rollback_log.json` is the whole chain as one JSON document; each other file holds the records of its kinds, one object
a line, with the same ids. All are replaced atomically, so a reader beside the writer never sees a part (R2, C13).
`recovery_test.json` and `weekly_validation.log` stay without entries until drills exist.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from rearguard.database import Connection, Database, sql
from rearguard.evidence.files import replace_file
from rearguard.evidence.log import newest_id, read
from rearguard.rules.chain import GENESIS, record_fields

LOG_NAME = "rollback_log.json"
LOG_FORMAT = "rearguard/rollback-log/1"
DRILLS_NAME = "recovery_test.json"
DRILLS_FORMAT = "rearguard/recovery-test/1"

LINE_FILES: dict[str, tuple[str, ...]] = {
    "incident_telemetry.log": (
        "incident_opened",
        "incident_attached",
        "incident_closed",
        "incident_reassessed",
        "telemetry_silent",
        "telemetry_back",
    ),
    "latency_guard.log": ("latency_guard",),
    "weekly_validation.log": ("drill_finished",),
}
"""Named file -> the kinds of record that it holds."""
FILES = (LOG_NAME, DRILLS_NAME, *LINE_FILES)


def entries_of(name: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of the whole chain that a named file holds."""
    if name == LOG_NAME:
        return entries
    kinds = ("drill_finished",) if name == DRILLS_NAME else LINE_FILES[name]
    return [e for e in entries if e["kind"] in kinds]


def render(name: str, entries: list[dict[str, Any]]) -> bytes:
    """The bytes of a named file that holds these entries."""
    if name == LOG_NAME:
        return render_log(entries)
    if name == DRILLS_NAME:
        document = {"format": DRILLS_FORMAT, "drills": entries}
        return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
    return "".join(json.dumps(e, sort_keys=True, ensure_ascii=False) + "\n" for e in entries).encode("utf-8")


def project(database: Database, state: Path) -> int:
    """Bring the named files up to the newest record; returns its id.

    Safe to call from several processes: one projects at a time, the others return at once. The database remembers how
    far the files reach (`projected_id`), so that a file which is shorter is known to have been tampered with.
    """
    handle = os.open(state / "projection.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        return _project_locked(database, state)
    finally:
        os.close(handle)


def _project_locked(database: Database, state: Path) -> int:
    with database.reading() as connection:
        newest = newest_id(connection)
        done = projected_id(connection)
        if newest == done and all((state / name).exists() for name in FILES):
            return newest
        entries = [record_fields(record) for record in read(connection)]
    newest = entries[-1]["id"] if entries else 0
    for name in FILES:
        replace_file(state / name, render(name, entries_of(name, entries)))
    with database.transaction() as connection:
        connection.execute(
            sql("INSERT INTO meta VALUES ('projected_id', :v) ON CONFLICT (key) DO UPDATE SET value = :v"),
            {"v": str(newest)},
        )
    return int(newest)


def render_log(entries: list[dict[str, Any]]) -> bytes:
    """The whole chain as one JSON document, one entry a line so that `diff` and `grep` work on it."""
    head = entries[-1]["hash"] if entries else GENESIS
    lines = ",\n".join(json.dumps(e, sort_keys=True, ensure_ascii=False) for e in entries)
    text = f'{{"format": "{LOG_FORMAT}", "size": {len(entries)}, "head": "{head}", "entries": [\n{lines}\n]}}\n'
    return text.encode("utf-8")


def projected_id(connection: Connection) -> int:
    """How far the files were brought last, 0 for never."""
    value = connection.execute(sql("SELECT value FROM meta WHERE key = 'projected_id'")).scalar()
    return int(value) if value is not None else 0
