"""`checkpoint_registry.yaml`: the readable export of the registry, written anew after each change (R1).

Owns the form of the file; `docs/reference/checkpoint-registry.md` is normative. The bytes follow from the database
alone, so an export that was edited is found by writing it again. The emitter is our own: the shape is fixed, and a
general one takes seconds for ten thousand checkpoints, after each of them. Its law: any YAML reader reads back exactly
the document that was given.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rearguard.checkpoints import copies, faults, registry
from rearguard.checkpoints.copies import Copy
from rearguard.database import Connection, Database, sql
from rearguard.errors import DependencyError, IntegrityError
from rearguard.evidence.files import replace_file
from rearguard.evidence.log import newest_id
from rearguard.evidence.projection import projected_id
from rearguard.model.checkpoint import Checkpoint

EXPORT_NAME = "checkpoint_registry.yaml"
EXPORT_FORMAT = "rearguard/checkpoint-registry/1"
LOCK_NAME = "registry.lock"
BEHIND_NAME, TAKEN_NAME = "registry.behind", "registry.behind.taken"
"""Notes that somebody's change may not be in the export yet: one that nobody has begun to export, and one that somebody has."""

_HEADER = (
    "# Exported by Rearguard after each change; the database is the truth. To change it: rearguard registry import\n"
)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./#+-]*(?::[A-Za-z0-9_./#+-]+)*")
"""What every YAML reader takes for text as it stands, but for the words below. A digit in front could be a number."""
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""Truth values and nothing, of YAML 1.1 and 1.2."""
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
"""What JSON lets stand in quotes and YAML does not, or takes for the end of a line (YAML 1.2.2, 5.1 and 5.4)."""


def document(connection: Connection) -> dict[str, Any]:
    """What the export says, as values; the order is that of registration, so equal databases give equal documents."""
    proofs = connection.execute(sql("SELECT digest, verified_record FROM checkpoints")).all()
    records = {row.digest: row.verified_record for row in proofs}
    second = copies.by_checkpoint(connection)
    held = connection.execute(sql("SELECT service, env, digest, run_id FROM quarantine ORDER BY service, env, digest"))
    standing = connection.execute(
        sql("SELECT service, env, digest, version, state, reason FROM standbys ORDER BY service, env")
    )
    return {
        "format": EXPORT_FORMAT,
        "checkpoints": [
            _entry(c, records.get(c.digest), second.get(c.digest, ())) for c in registry.list_all(connection)
        ],
        "quarantine": [dict(row._mapping) for row in held],
        "standbys": [{**row._mapping, "reason": row.reason or None} for row in standing],
    }


def _entry(c: Checkpoint, record: int | None, second: Iterable[Copy]) -> dict[str, Any]:
    return {
        "digest": c.digest,
        "service": c.service,
        "version": c.version,
        "kind": "model",
        "format": c.format,
        "warm_start": True,
        "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in c.files],
        "golden_sha256": c.golden_sha256 or None,
        "state_sha256": c.state_sha256 or None,
        "oci_manifest": c.oci_manifest or None,
        "added_at": c.added_at.rfc3339(),
        "validated": c.verified_at is not None and not c.failure,
        "verified_at": c.verified_at.rfc3339() if c.verified_at else None,
        "verified_by": f"rollback_log.json#{record}" if record else None,
        "reproducible": c.reproducible or None,
        "load_ms": c.load_ms,
        "peak_rss_bytes": c.peak_rss_bytes,
        "failure": c.failure or None,
        "copies": [
            {"domain": copy.domain or None, "verified_at": copy.verified_at.rfc3339()}
            for copy in second
            if copy.holds and copy.verified_at is not None
        ],
    }


def render(document: Mapping[str, Any]) -> bytes:
    """The bytes of an export. `yaml.safe_load(render(document)) == document` for every document of its shape."""
    lines = [_HEADER]
    for key, value in document.items():
        _emit(lines, f"{key}:", "", value)
    return "".join(lines).encode("utf-8")


def _emit(lines: list[str], lead: str, indent: str, value: Any) -> None:
    """Append `lead` and a value: a scalar on the same line, a list of mappings in the lines below, at `indent`."""
    if not isinstance(value, list):
        lines.append(f"{lead} {_scalar(value)}\n")
        return
    lines.append(f"{lead}\n" if value else f"{lead} []\n")
    inner = f"{indent}  "
    for item in value:
        before = f"{indent}- "
        for key, content in item.items():
            _emit(lines, f"{before}{key}:", inner, content)
            before = inner


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    return "null" if value is None else str(value).lower()


def export(database: Database, state: Path, before: Callable[[], None] = lambda: None) -> bool:
    """Write `checkpoint_registry.yaml`: temporary name, sync, rename, sync of the folder. A second call changes nothing.

    `before` is called first each time, under the same lock: what else is derived from the registry and never goes back.

    One process exports at a time and reads the database while it holds the lock, so the file never goes back in time.
    Nobody waits for it: False when another process exports now. It then exports once more, or, if it hangs or dies, the next
    one who asks `is_behind` does; no change is lost. Raises `DependencyError` `file_not_written`.
    """
    behind, taken = state / BEHIND_NAME, state / TAKEN_NAME
    handle = _opened(state / LOCK_NAME)
    try:
        while True:
            # Noted before the look at the lock: whoever holds it then sees the note after letting go.
            os.close(_opened(behind))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            os.replace(behind, taken)  # before the database is read: a later change notes itself again
            before()
            _write(database, state)
            taken.unlink(missing_ok=True)
            fcntl.flock(handle, fcntl.LOCK_UN)
            if not behind.exists():
                return True
    except OSError as error:
        raise DependencyError(
            "file_not_written", f"cannot export to {state}: {error.strerror}", "make the state directory writable"
        ) from error
    finally:
        os.close(handle)


def is_behind(state: Path) -> bool:
    """Whether a change may not be in the export yet: it failed, or was left to somebody who may hang or have died."""
    return (state / BEHIND_NAME).exists() or (state / TAKEN_NAME).exists()


def _write(database: Database, state: Path) -> None:
    with database.reading() as connection:
        content = render(document(connection))
    path = state / EXPORT_NAME
    for left in state.glob(f".{EXPORT_NAME}.*.tmp"):
        left.unlink(missing_ok=True)  # we hold the lock, so its writer is dead
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    faults.reach("export", "before_write")
    replace_file(path, content)
    faults.reach("export", "written")


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DependencyError(
            "file_not_written", f"cannot open {path}: {error.strerror}", "make the state directory writable"
        ) from error


def check(database: Database, state: Path, sleep: Callable[[float], None]) -> int:
    """Compare the export with the database; returns how many checkpoints both hold.

    Raises `IntegrityError` `registry_altered` when the file is missing or is not what would be written now. Writes
    nothing. While somebody is between a change and its export the file is behind: that is waited for, a few seconds.
    """
    path = state / EXPORT_NAME
    found, expected, held = None, b"", False
    for look in range(_LOOKS):
        found = _content(path)
        with database.reading() as connection:
            expected = render(document(connection))
            count = int(connection.execute(sql("SELECT COUNT(*) FROM checkpoints")).scalar_one())
            behind = projected_id(connection) < newest_id(connection)
        if found == expected:
            return count
        held = is_behind(state) or _is_locked(state)
        if look and not behind and not held:
            break
        sleep(_LOOK_EVERY_S)
    again = "`rearguard registry export` writes it anew"
    if held:
        again = f"another process may hang in its export: `fuser {state / LOCK_NAME}`; then {again}"
    if found is None:
        raise IntegrityError("registry_altered", f"{path} is missing", again)
    raise IntegrityError(
        "registry_altered",
        f"{path}:{_first_difference(found, expected)}: not what the database says",
        f"`rearguard registry diff {path}` shows what it would change; {again}",
    )


_LOOKS = 10
_LOOK_EVERY_S = 0.2
"""Chosen: an export follows its change within a second."""


def _is_locked(state: Path) -> bool:
    """Whether somebody exports now."""
    try:
        handle = os.open(state / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IntegrityError(
            "registry_altered", f"{path} cannot be read: {error.strerror}", "mend its rights, or export it anew"
        ) from error


def _first_difference(found: bytes, expected: bytes) -> int:
    """Number of the first line that differs."""
    pairs = zip(found.split(b"\n"), expected.split(b"\n"), strict=False)
    return next(
        (number for number, (a, b) in enumerate(pairs, 1) if a != b), min(found.count(b"\n"), expected.count(b"\n")) + 1
    )
