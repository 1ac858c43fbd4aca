"""The state directory as an OCI image layout (ADR 0009): `oci-layout`, `index.json`, and a manifest and config a checkpoint.

All of it follows from the database and the golden blobs: manifests and configs are blobs that are written at
registration, `index.json` is written anew after each change. Nothing here is believed when a model is restored; an edit
is told by `check` and undone by `write`. `docs/reference/store-layout.md` is normative.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from rearguard.checkpoints import faults, registry
from rearguard.checkpoints.store import ContentStore
from rearguard.database import Connection, Database, sql
from rearguard.errors import IntegrityError
from rearguard.evidence.files import replace_file
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest
from rearguard.rules import oci

INDEX_NAME = "index.json"
LAYOUT_NAME = "oci-layout"


def keep(store: ContentStore, checkpoint: Checkpoint) -> Checkpoint:
    """Store manifest and config of a checkpoint whose golden set is stored; returns it with its `oci_manifest`.

    A second call changes nothing, and mends what was altered. Raises `IntegrityError` `blob_*` of the golden set,
    `DependencyError` `store_not_written`.
    """
    golden_bytes = len(store.get_bytes(checkpoint.golden_sha256)) if checkpoint.golden_sha256 else 0
    store.put_bytes(oci.config_bytes(checkpoint))
    manifest = oci.manifest_bytes(checkpoint, golden_bytes)
    digest = store.put_bytes(manifest)
    return replace(checkpoint, oci_manifest=f"sha256:{digest}", oci_manifest_bytes=len(manifest))


def blobs_of(checkpoint: Checkpoint) -> frozenset[str]:
    """sha256 of every blob that this checkpoint needs."""
    own = {checkpoint.golden_sha256, checkpoint.oci_manifest.removeprefix("sha256:")} - {""}
    config = oci.sha256_of(oci.config_bytes(checkpoint))
    return frozenset({*(file.sha256 for file in checkpoint.files), *own, config})


def write(database: Database, store: ContentStore) -> None:
    """Write the layout anew; a second call changes nothing.

    A manifest that is not there is made first, with its config, so what an older release registered is exported too; one whose
    golden set is gone has to wait for it. To be called under the lock of `registry_file.export`: one process writes at a time
    and reads the database while it holds it, so the index never goes back in time.
    Raises `DependencyError` `file_not_written`, `store_not_written`.
    """
    state = store.state
    _complete(database, store)
    with database.reading() as connection:
        found = files(connection)
    for name, wanted in found.items():
        for left in state.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)  # under the lock, so its writer is dead
        if _content(state / name) == wanted:
            continue
        faults.reach("layout", "before_index")
        replace_file(state / name, wanted)
        faults.reach("layout", "index_written")


def files(connection: Connection) -> dict[str, bytes]:
    """What makes a folder with the blobs an OCI layout, by name: whatever is registered, in its index."""
    return {LAYOUT_NAME: oci.LAYOUT_BYTES, INDEX_NAME: oci.index_bytes(_rows(connection))}


def _complete(database: Database, store: ContentStore) -> None:
    """Make the manifests and configs that are not there, and note those that were never noted."""
    with database.reading() as connection:
        rows = connection.execute(sql("SELECT digest, oci_manifest, oci_manifest_bytes FROM checkpoints")).all()
        absent = [
            Digest(row.digest)
            for row in rows
            if not row.oci_manifest_bytes or not store.holds(row.oci_manifest.removeprefix("sha256:"))
        ]
        found = registry.get_many(connection, absent) if absent else ()
    made = []
    for checkpoint in found:
        with contextlib.suppress(IntegrityError):  # the golden set: `checkpoint verify` tells that
            made.append(keep(store, checkpoint))
    if not made:
        return
    with database.transaction() as connection:
        for checkpoint in made:
            registry.note_manifest(connection, checkpoint)


def _rows(connection: Connection) -> list[oci.Listed]:
    found = connection.execute(
        sql(
            "SELECT digest, service, version, oci_manifest, oci_manifest_bytes FROM checkpoints "
            "WHERE oci_manifest <> '' ORDER BY rowid"
        )
    )
    return [
        oci.Listed(
            manifest=row.oci_manifest,
            size_bytes=row.oci_manifest_bytes,
            ref=oci.ref_name(row.service, row.version, row.digest),
        )
        for row in found
    ]


def check(
    database: Database, store: ContentStore, checkpoints: Iterable[Checkpoint], sleep: Callable[[float], None]
) -> tuple[IntegrityError, ...]:
    """What of the layout is not as it would be written now: index, marker, and manifest and config of `checkpoints`.

    Changes nothing. Codes: `layout_altered`, `index_altered`, `manifest_altered`, `config_altered`. What was never
    written is not altered: the next change writes it. While somebody is between a change and its index the index is
    behind: that is waited for, a second.
    """
    found: list[IntegrityError] = []
    for look in range(_LOOKS):
        if look:
            sleep(_LOOK_EVERY_S)
        found = _check_files(database, store.state)
        if not found:
            break
    for checkpoint in checkpoints:
        if checkpoint.oci_manifest:
            found += _check_blobs(store, checkpoint)
    return tuple(found)


def _check_files(database: Database, state: Path) -> list[IntegrityError]:
    found = []
    with database.reading() as connection:
        rows = _rows(connection)
        wanted = {LAYOUT_NAME: oci.LAYOUT_BYTES, INDEX_NAME: oci.index_bytes(rows)}
        for name, code in ((LAYOUT_NAME, "layout_altered"), (INDEX_NAME, "index_altered")):
            content = _content(state / name)
            if content != wanted[name] and (content is not None or rows):
                what = "is missing" if content is None else "is not what the database says"
                found.append(IntegrityError(code, f"{state / name} {what}", AGAIN))
    return found


_LOOKS = 5
_LOOK_EVERY_S = 0.2
"""Chosen: an index follows its change within a second."""
AGAIN = "find out who writes into the store; `rearguard registry export` writes the layout anew"


def _check_blobs(store: ContentStore, checkpoint: Checkpoint) -> list[IntegrityError]:
    found = []
    config = oci.sha256_of(oci.config_bytes(checkpoint))
    for what, sha256 in (("manifest", checkpoint.oci_manifest.removeprefix("sha256:")), ("config", config)):
        try:
            store.get_bytes(sha256)
        except IntegrityError as error:
            message = f"the {what} of {checkpoint.service} {checkpoint.version}: {error.message}"
            found.append(IntegrityError(f"{what}_altered", message, AGAIN))
    return found


def mend(database: Database, store: ContentStore) -> None:
    """As `write`, and every manifest and config is read: one that was altered is written anew. Raises as `write`."""
    with database.reading() as connection:
        registered = registry.list_all(connection)
    for checkpoint in registered:
        if checkpoint.oci_manifest and _check_blobs(store, checkpoint):
            with contextlib.suppress(IntegrityError):
                keep(store, checkpoint)
    write(database, store)


def _content(path: Path) -> bytes | None:
    """None: missing, or not to be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
