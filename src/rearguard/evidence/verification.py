"""`log verify`, first form: the chain in the database, and the files beside it.

Never projects: a file that was tampered with must not be healed before it was seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.database import Database
from rearguard.errors import IntegrityError
from rearguard.evidence.log import read
from rearguard.evidence.projection import DRILLS_NAME, FILES, LOG_NAME, entries_of, projected_id, render
from rearguard.rules.chain import GENESIS, record_fields, verify_chain


@dataclass(frozen=True, slots=True, kw_only=True)
class LogVerification:
    """What was found."""

    ok: bool
    records: int
    head: str
    file: str
    """File or `database` in which the first bad record stands; empty when all is well."""
    id: int
    """Id of the first bad record, 0 when all is well or a file as a whole is bad."""
    code: str
    message: str


def verify_log(database: Database, state: Path) -> LogVerification:
    """Check the chain and that each named file holds exactly what the chain says, up to where it was projected."""
    entries: list[dict[str, Any]] = []
    unreadable = ""
    with database.reading() as connection:
        projected = projected_id(connection)
        try:
            entries.extend(record_fields(record) for record in read(connection))
        except IntegrityError as error:
            if error.code != "record_unreadable":
                raise
            unreadable = error.message
    head = entries[-1]["hash"] if entries else GENESIS

    def bad(file: str, record_id: int, code: str, message: str) -> LogVerification:
        return LogVerification(
            ok=False, records=len(entries), head=head, file=file, id=record_id, code=code, message=message
        )

    finding = verify_chain(entries)
    if finding is not None:
        return bad("database", finding.id, finding.code, finding.message)
    if unreadable:
        return bad("database", len(entries) + 1, "record_unreadable", unreadable)
    if projected > len(entries):
        return bad("database", len(entries) + 1, "tail_dropped", f"the files once reached record {projected}")
    for name in FILES:
        problem = _compare_file(state / name, name, entries, projected)
        if problem is not None:
            return bad(name, *problem)
    return LogVerification(ok=True, records=len(entries), head=head, file="", id=0, code="", message="")


def _compare_file(path: Path, name: str, entries: list[dict[str, Any]], projected: int) -> tuple[int, str, str] | None:
    if projected == 0 and not path.exists():
        return None
    expected = entries_of(name, entries)
    try:
        content = path.read_bytes()
        found = _parse(name, content.decode("utf-8"))
    except FileNotFoundError:
        return 0, "file_missing", f"{name} was projected up to record {projected} and is gone"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return 0, "file_unreadable", f"{name}: {error}"
    # A file may be up to a second behind the database, never shorter than what was once projected, never ahead.
    must = [e for e in expected if e["id"] <= projected]
    for index, entry in enumerate(found):
        if index >= len(expected):
            unknown = entry.get("id") if isinstance(entry, dict) else None
            record_id = unknown if isinstance(unknown, int) else 0
            return record_id, "record_unknown", f"{name} holds a record that the database does not"
        if entry != expected[index]:
            return int(expected[index]["id"]), "record_differs", f"{name} differs from the database here"
    if len(found) < len(must):
        return int(must[len(found)]["id"]), "tail_dropped", f"{name} once held this record"
    if content != render(name, expected[: len(found)]):
        return 0, "file_differs", f"{name} holds the right records, but its head or its form was changed"
    return None


def _parse(name: str, text: str) -> list[Any]:
    if name == LOG_NAME:
        return list(json.loads(text)["entries"])
    if name == DRILLS_NAME:
        return list(json.loads(text)["drills"])
    return [json.loads(line) for line in text.split("\n") if line]
