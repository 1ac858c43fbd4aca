"""Operations on the keys of people who approve: make, enroll, list, revoke (ADR 0006)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.database import DATABASE_NAME, Connection, sql
from rearguard.errors import ConflictError, NotFoundError, RearguardError, RefusedError, UsageError
from rearguard.evidence import signatures
from rearguard.evidence.log import append
from rearguard.model.time import Instant
from rearguard.officer.office import Office, find_files
from rearguard.officer.operation import Effect, operation

RESERVED_NAMES = ("auto",)
"""Who the officer itself is called in its records."""
_KEY_FILE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A public key and whose it is."""

    name: str
    public_key: str
    """PEM."""
    fingerprint: str
    """`sha256:` of the DER form."""
    enrolled_by: str
    enrolled_at: Instant
    revoked_at: Instant | None


@operation(Effect.COMMIT)
def new(name: str, *, out: Path, state: Path | None = None, settings_path: Path | None = None) -> str:
    """Write a new private key, readable by its owner only; returns the public key as PEM.

    Needs no state. Raises `UsageError` (`key_name_malformed`, `key_unwritable`), `ConflictError` `file_exists`,
    `RefusedError` `key_inside_state`: whoever can read the state could approve.
    """
    _check_name(name)
    _refuse_inside(out, state, settings_path)
    private = signatures.new_private_key()
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise ConflictError("file_exists", f"{out} exists", "name another file: a key is never overwritten") from error
    except OSError as error:
        raise UsageError("key_unwritable", f"cannot write {out}: {error.strerror}", "name a writable folder") from error
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(private)
        file.flush()
        os.fsync(file.fileno())
    return signatures.public_key_of(private)


def _check_name(name: str) -> None:
    well_formed = 0 < len(name) <= 64 and all(c.isalnum() or c in "._-@" for c in name)
    if not well_formed or name.casefold() in RESERVED_NAMES:
        raise UsageError(
            "key_name_malformed",
            f"{name!r} cannot name a key",
            "the person's name as in --by: letters, digits and . _ - @ only, at most 64, and not auto",
        )


def _refuse_inside(out: Path, state: Path | None, settings_path: Path | None) -> None:
    folder = out.absolute().parent.resolve()
    try:
        named: Path | None = find_files(state, settings_path)[0].resolve()
    except RearguardError:
        named = None
    inside = named is not None and (folder == named or named in folder.parents)
    if inside or any(_holds_state(above) for above in (folder, *folder.parents)):
        raise RefusedError(
            "key_inside_state",
            f"{out} lies inside a state directory",
            "keep a private key with its owner, where the officer cannot read it",
        )


def _holds_state(folder: Path) -> bool:
    try:
        return (folder / DATABASE_NAME).stat().st_size > 0
    except OSError:
        return False


def read_file(path: Path) -> str:
    """The text of a key file. Raises `UsageError` `key_unreadable`."""
    try:
        with path.open("rb") as file:
            return file.read(_KEY_FILE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text"
        raise UsageError("key_unreadable", f"cannot read {path}: {why}", "name a PEM file") from error


@operation(Effect.COMMIT)
def enroll(office: Office, name: str, *, public_key_file: Path, by: str) -> Key:
    """Take a public key in; from then on its owner may approve.

    A name is given once, so that an old approval always names the key that gave it. Raises `UsageError`
    (`key_name_malformed`, `key_unreadable`), `ConflictError` `key_exists` (the name, or the same key under another one).
    """
    _check_name(name)
    public_key = signatures.read_public_key(read_file(public_key_file))
    now = office.clock.now()
    with office.database.transaction() as connection:
        for known in _all(connection):
            if known.name.casefold() == name.casefold() or known.public_key == public_key:
                raise ConflictError(
                    "key_exists",
                    f"{known.name} has a key already ({known.fingerprint[:19]})"
                    if known.public_key != public_key
                    else f"this key is enrolled already as {known.name}",
                    "a name and a key are enrolled once, revoked ones included: choose a new name and a new key",
                )
        connection.execute(
            sql("INSERT INTO keys (name, public_key, enrolled_by, enrolled_at) VALUES (:name, :key, :by, :at)"),
            {"name": name, "key": public_key, "by": by, "at": encode_instant(now)},
        )
        body = {
            "name": name,
            "fingerprint": signatures.fingerprint(public_key),
            "public_key": public_key,
            "by": by,
        }
        append(connection, now=now, kind="key_enrolled", body=body, run_id=office.ids.run_id())
    office.publish()
    return show(office, name)


@operation(Effect.COMMIT)
def revoke(office: Office, name: str, *, by: str) -> Key:
    """From now on the key approves nothing; approvals that were given but not yet acted on fail too.

    Raises `NotFoundError` `key_unknown`, `ConflictError` `key_revoked`.
    """
    now = office.clock.now()
    with office.database.transaction() as connection:
        key = find(connection, name)
        if key.revoked_at is not None:
            raise ConflictError("key_revoked", f"{name} was revoked {key.revoked_at.rfc3339()}", "nothing to do")
        connection.execute(
            sql("UPDATE keys SET revoked_at = :at WHERE name = :name"), {"at": encode_instant(now), "name": name}
        )
        body = {"name": name, "fingerprint": key.fingerprint, "by": by}
        append(connection, now=now, kind="key_revoked", body=body, run_id=office.ids.run_id())
    office.publish()
    return show(office, name)


@operation(Effect.READ)
def list_keys(office: Office) -> tuple[Key, ...]:
    """All keys, revoked ones included, in the order in which they were enrolled."""
    with office.database.reading() as connection:
        return _all(connection)


def show(office: Office, name: str) -> Key:
    """One key. Raises `NotFoundError` `key_unknown`."""
    with office.database.reading() as connection:
        return find(connection, name)


def find(connection: Connection, name: str) -> Key:
    """One key. Raises `NotFoundError` `key_unknown`."""
    row = connection.execute(sql("SELECT * FROM keys WHERE name = :name"), {"name": name}).first()
    if row is None:
        raise NotFoundError("key_unknown", f"no key {name}", "see `rearguard key list`")
    return _key(row._mapping)


def find_by_public_key(connection: Connection, public_key: str) -> Key | None:
    """The key with these very bytes, if it was ever enrolled."""
    row = connection.execute(sql("SELECT * FROM keys WHERE public_key = :key"), {"key": public_key}).first()
    return _key(row._mapping) if row else None


def approvers(connection: Connection) -> tuple[Key, ...]:
    """Whoever may approve: the keys that are enrolled and not revoked."""
    return tuple(key for key in _all(connection) if key.revoked_at is None)


def _all(connection: Connection) -> tuple[Key, ...]:
    rows = connection.execute(sql("SELECT * FROM keys ORDER BY rowid"))
    return tuple(_key(row._mapping) for row in rows)


def _key(row: Any) -> Key:
    return Key(
        name=row["name"],
        public_key=row["public_key"],
        fingerprint=signatures.fingerprint(row["public_key"]),
        enrolled_by=row["enrolled_by"],
        enrolled_at=decode_instant(row["enrolled_at"]),
        revoked_at=decode_instant(row["revoked_at"]) if row["revoked_at"] else None,
    )
