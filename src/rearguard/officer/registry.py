"""The registry as a file: exported, compared, handed over and taken in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rearguard.checkpoints import faults, golden, layout, registry, registry_file, verification
from rearguard.checkpoints.blob_folder import BlobFolder, size_of
from rearguard.checkpoints.registry_reading import read_registry_file
from rearguard.checkpoints.store import SourceFile, checkpoint_digest
from rearguard.database import Connection, sql
from rearguard.errors import (
    ConfigError,
    ConflictError,
    DependencyError,
    IntegrityError,
    NotFoundError,
    RearguardError,
    RefusedError,
    UsageError,
)
from rearguard.evidence.log import append
from rearguard.loaders import get_format
from rearguard.loaders.detection import detect
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.registry_file import ListedCheckpoint, RegistryFile
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.officer import checkpoints
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.registration import refuse_bombs
from rearguard.rules.registry_import import Difference, Held, Known, Refusal, compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An export that is what the database says."""

    path: Path
    checkpoints: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What an import would do; `file` is kept, so that exactly what was shown is taken."""

    difference: Difference
    listed: RegistryFile
    blobs: Path | None

    @property
    def exit_code(self) -> int:
        """What an import of it would end with: 0, or the exit code of its first refusal."""
        refusals = self.difference.refusals
        return _KINDS.get(refusals[0].code, IntegrityError).exit_code if refusals else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """The outcome of one verification after an import."""

    service: str
    version: str
    digest: Digest
    ok: bool
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did."""

    added: int
    quarantined: int
    verified: tuple[Proven, ...]


@operation(Effect.COMMIT)
def export(office: Office) -> Exported:
    """Write `checkpoint_registry.yaml` and the OCI layout anew. A second call changes nothing.

    Raises `DependencyError` `file_not_written`, `store_not_written`.
    """
    office.export_registry(mend=True)
    return verify(office)


@operation(Effect.READ)
def verify(office: Office) -> Exported:
    """Compare the export with the database. Raises `IntegrityError` `registry_altered`: missing, edited, or not ours."""
    count = registry_file.check(office.database, office.state, office.clock.sleep)
    return Exported(path=office.state / registry_file.EXPORT_NAME, checkpoints=count)


@operation(Effect.PROPOSE)
def diff(office: Office, path: Path, blobs: Path | None = None) -> Proposal:
    """What importing the registry file at `path` would change; changes nothing and hashes nothing.

    The reasons why it would be refused stand in the difference. Raises `ConfigError` for a file that is not accepted
    as it stands, `UsageError` `blobs_missing`.
    """
    listed = read_registry_file(path)
    folder = BlobFolder(blobs) if blobs is not None else None
    with office.database.reading() as connection:
        difference = compare(listed, _known(office, connection))
    missing = [refusal for entry in difference.added for refusal in _unfounded(office, entry, folder)]
    refusals = tuple(sorted((*difference.refusals, *missing), key=lambda r: r.line))
    return Proposal(difference=replace(difference, refusals=refusals), listed=listed, blobs=blobs)


@operation(Effect.COMMIT)
def take_in(
    office: Office, proposal: Proposal, *, by: str, progress: Callable[[str], None] = lambda _line: None
) -> Imported:
    """Import what `diff` proposed: bytes first, then all rows at once, then a proof of each new checkpoint.

    All of it is registered or nothing. A second call registers nothing and verifies what was never verified, so an
    import that was killed is completed by repeating it. Raises as the refusals say, `IntegrityError` (`blob_*`,
    `registry_address_wrong`, `golden_malformed`) for bytes that are not what the file says, `RefusedError`
    `unsafe_format`.
    """
    _raise_first(proposal.difference)
    folder = BlobFolder(proposal.blobs) if proposal.blobs is not None else None
    faults.reach("import", "read")
    with office.store.ingesting():
        office.store.sweep()
        for number, entry in enumerate(proposal.difference.added, 1):
            progress(f"taking in {entry.name} ({number} of {len(proposal.difference.added)})")
            _bring(office, proposal.listed.file, entry, folder)
        for entry in proposal.difference.unproven if folder is not None else ():
            _bring(office, proposal.listed.file, entry, folder)
        faults.reach("import", "before_register")
        difference = _register(office, proposal, by)
        faults.reach("import", "registered")
    office.publish(registry_changed=True)
    proven = []
    waiting = (*difference.added, *difference.unproven)
    for number, entry in enumerate(waiting, 1):
        progress(f"verifying {entry.name} ({number} of {len(waiting)})")
        proven.append(_prove(office, entry))
    return Imported(added=len(difference.added), quarantined=len(difference.quarantined), verified=tuple(proven))


def _known(office: Office, connection: Connection) -> Known:
    retired = connection.execute(sql("SELECT service, version, digest FROM retired"))
    held = connection.execute(sql("SELECT service, env, digest FROM quarantine"))
    return Known(
        checkpoints={c.digest: c for c in registry.list_all(connection)},
        retired={(row.service, row.version): Digest(row.digest) for row in retired},
        held=frozenset(Held(place=Place(service=row.service, env=row.env), digest=Digest(row.digest)) for row in held),
        services=frozenset(p.place.service for p in office.settings.places),
    )


def _blobs_of(entry: ListedCheckpoint) -> tuple[CheckpointFile, ...]:
    """Everything that must be here: the files, and the golden set, whose size the file does not tell."""
    if not entry.golden_sha256:
        return entry.files
    return (*entry.files, CheckpointFile(path="golden set", sha256=entry.golden_sha256, size_bytes=-1))


def _unfounded(office: Office, entry: ListedCheckpoint, folder: BlobFolder | None) -> tuple[Refusal, ...]:
    """Why a new entry cannot be taken in: bytes that are nowhere, or a digest that is not their address."""
    hint = "name a folder that has it: --blobs FOLDER (blobs, an OCI layout, or the other state directory)"
    for blob in _blobs_of(entry):
        size = size_of(office.store.blobs / blob.sha256)
        right = size is not None and blob.size_bytes in (-1, size)
        there = folder.find(blob.sha256) if folder is not None and not right else None
        if there is not None:
            size = size_of(there)
        if size is None:
            message = f"{entry.name}: the bytes of {blob.path} ({blob.sha256[:12]}) are not here"
            return (Refusal(code="blob_missing", line=entry.line, message=message, hint=hint),)
        if blob.size_bytes not in (-1, size):
            message = f"{entry.name}: {blob.path} ({blob.sha256[:12]}) has {size} of {blob.size_bytes} bytes"
            return (Refusal(code="blob_truncated", line=entry.line, message=message, hint=hint),)
    if not entry.golden_sha256 and not _tells_state(entry.format):
        message = (
            f"{entry.name} has no golden set, and {entry.format} tells no state: nothing would show that it restores"
        )
        hint = "add the model itself: rearguard checkpoint add --golden FILE"
        return (Refusal(code="golden_missing", line=entry.line, message=message, hint=hint),)
    if _address(entry) != entry.digest:
        return (
            Refusal(
                code="registry_address_wrong",
                line=entry.line,
                message=f"{entry.name}: {entry.digest[7:19]} is not the address of its files, format and golden set",
                hint="take the entry as it was exported, or add the model itself with `rearguard checkpoint add`",
            ),
        )
    return ()


def _tells_state(format: str) -> bool:
    """Also True for a format that is not installed: that is refused by its own name, once its files are here."""
    try:
        return get_format(format).tells_state
    except ConfigError:
        return True


def _address(entry: ListedCheckpoint) -> Digest:
    return checkpoint_digest(format=entry.format, files=entry.files, golden_sha256=entry.golden_sha256)


_KINDS: dict[str, type[RearguardError]] = {
    "registry_two_entries": ConfigError,
    "service_unknown": NotFoundError,
    "registry_label_taken": ConflictError,
    "golden_missing": RefusedError,
}
"""What the reader can do about a refusal; the others say that something is not what was recorded."""


def _raise_first(difference: Difference) -> None:
    if not difference.refusals:
        return
    first, more = difference.refusals[0], len(difference.refusals) - 1
    also = f" (and {more} more; `rearguard registry diff` names them)" if more else ""
    kind = _KINDS.get(first.code, IntegrityError)
    raise kind(first.code, f"{difference.file}:{first.line}: {first.message}{also}; nothing was imported", first.hint)


def _bring(office: Office, file: str, entry: ListedCheckpoint, folder: BlobFolder | None) -> None:
    """Take the blobs of an entry into the store, hashed on the way, and look at what they are before anything loads them."""
    for blob in _blobs_of(entry):
        there = folder.find(blob.sha256) if folder is not None else None
        if there is None:
            continue  # the verification reads every byte of it
        # Copied only where the stored one is not intact: a stored blob at fault is mended by one that is right.
        taken = office.store.put_file(SourceFile(path=blob.path, source=there))
        if taken.sha256 != blob.sha256:
            raise IntegrityError(
                "blob_altered",
                f"{file}:{entry.line}: {there} is not what its name says; nothing was imported",
                "copy it again from where it came",
            )
    if entry.golden_sha256:
        _golden_requests(office, file, entry)
    refuse_bombs(office, entry.files)
    found = detect(office.store.view(entry.digest, entry.files), office.settings.checkpoints.unsafe_formats).name
    if found != entry.format:
        raise UsageError(
            "unknown_format",
            f"{file}:{entry.line}: {entry.name} is said to be {entry.format}, its files are {found}; nothing was imported",
            "take the entry as it was exported",
        )


def _golden_requests(office: Office, file: str, entry: ListedCheckpoint) -> int:
    """How many requests the golden set has; it may come from anywhere."""
    content = office.store.get_bytes(entry.golden_sha256)
    try:
        return len(golden.decode(content).requests)
    except IntegrityError as error:
        message = f"{file}:{entry.line}: {entry.name}: {error.message}; nothing was imported"
        raise IntegrityError(error.code, message, "take it from where the checkpoint was exported") from error


def _register(office: Office, proposal: Proposal, by: str) -> Difference:
    """All rows and records in one transaction, compared again in it: somebody may have registered meanwhile."""
    now, run_id = office.clock.now(), office.ids.run_id()
    with office.database.transaction() as connection:
        found = compare(proposal.listed, _known(office, connection))
        _raise_first(found)
        if not {e.digest for e in found.added} <= {e.digest for e in proposal.difference.added}:
            raise ConflictError("registry_changed", "the registry changed meanwhile; nothing was imported", "repeat it")
        if not found.changes:
            return found
        for entry in found.added:
            _insert(office, connection, proposal.listed.file, entry, now, run_id)
        for hold in found.quarantined:
            connection.execute(
                sql(
                    "INSERT INTO quarantine (service, env, digest, run_id, since) VALUES (:service, :env, :digest, :run, "
                    ":since) ON CONFLICT (service, env, digest) DO NOTHING"
                ),
                {
                    "service": hold.place.service,
                    "env": hold.place.env,
                    "digest": hold.digest,
                    "run": hold.run_id,
                    "since": registry.encode_instant(now),
                },
            )
        body = {
            "file_sha256": found.sha256,
            "added": len(found.added),
            "quarantined": [
                {"service": h.place.service, "env": h.place.env, "digest": h.digest} for h in found.quarantined
            ],
            "unchanged": found.unchanged,
            "by": by,
        }
        append(connection, now=now, kind="registry_imported", body=body, run_id=run_id)
    return found


def _insert(
    office: Office, connection: Connection, file: str, entry: ListedCheckpoint, now: Instant, run_id: str
) -> None:
    checkpoint = Checkpoint(
        digest=entry.digest,
        service=entry.service,
        version=entry.version,
        format=entry.format,
        files=entry.files,
        golden_sha256=entry.golden_sha256,
        added_at=now,
        verified_at=None,
        load_ms=None,
        failure="",
        state_sha256=entry.state_sha256,
    )
    registry.insert(connection, layout.keep(office.store, checkpoint))
    body = {
        "digest": entry.digest,
        "version": entry.version,
        "format": entry.format,
        "size_bytes": entry.size_bytes,
        "files": [asdict(f) for f in entry.files],
        "golden_requests": _golden_requests(office, file, entry) if entry.golden_sha256 else 0,
    }
    place = Place(service=entry.service, env="")
    append(connection, now=now, kind="checkpoint_added", body=body, place=place, run_id=run_id)


def _prove(office: Office, entry: ListedCheckpoint) -> Proven:
    """Verify what was registered; a failure is recorded, and the import goes on to the next.

    What the surroundings kept from being proven is told and not recorded: a second import proves it.
    """
    try:
        outcome = checkpoints.prove(office, checkpoints.find(office, service=entry.service, version=entry.version))
    except (ConflictError, DependencyError) as error:
        outcome = verification.failed(error)
    return Proven(
        service=entry.service,
        version=entry.version,
        digest=entry.digest,
        ok=outcome.ok,
        code=outcome.code,
        message=outcome.message,
    )
