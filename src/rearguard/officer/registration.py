"""How a checkpoint comes in: taken by sha256, proven, registered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Concatenate, ParamSpec

from rearguard.checkpoints import archives, faults, golden, layout, registry, retired, verification
from rearguard.checkpoints.sources import SourceFile, list_sources, open_source
from rearguard.checkpoints.store import checkpoint_digest
from rearguard.database import Connection
from rearguard.errors import ConflictError, NotFoundError, UsageError
from rearguard.evidence.log import append
from rearguard.loaders.detection import detect
from rearguard.model.checkpoint import Checkpoint, CheckpointFile
from rearguard.model.service import Place
from rearguard.officer.checkpoints import verify
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.rules.labels import VERSION_ACCEPTED, is_version

P = ParamSpec("P")


def ingesting(
    function: Callable[Concatenate[Office, P], Checkpoint],
) -> Callable[Concatenate[Office, P], Checkpoint]:
    """Hold what comes in against a collection until it is registered, and sweep what dead processes left.

    A refusal because it is registered already publishes what a killed process may not have published.
    """

    @functools.wraps(function)
    def held(office: Office, /, *arguments: P.args, **named: P.kwargs) -> Checkpoint:
        with office.store.ingesting():
            office.store.sweep()
            try:
                return function(office, *arguments, **named)
            except ConflictError:
                office.publish(registry_changed=True)
                raise

    return held


@operation(Effect.COMMIT)
@ingesting
def add(
    office: Office,
    path: Path,
    *,
    service: str,
    version: str,
    golden_file: Path | None,
    progress: Callable[[int, int], None] = lambda _count, _total: None,
    on_finding: Callable[[str], None] = lambda _line: None,
) -> Checkpoint:
    """Take a model in by sha256, prove that it loads, is and answers the same twice, register and verify it.

    `golden_file` may be None for a format whose loader tells the state. `progress` is given the bytes taken in since its
    last call, and how many there are; `on_finding` each line that the advisory scan of a format that runs code has to say.
    Raises `UsageError` (path, golden file, unknown format), `RefusedError` (`unsafe_format`, `untrusted_types`),
    `ConflictError` `checkpoint_exists`, `IntegrityError` (`load_failed`, `not_reproducible`, ...). Nothing is registered
    unless the proof holds.
    """
    refuse_labels(office, service, version)
    sources = list_sources(path)  # first: it opens nothing, so a pipe or a device cannot hold us
    policy = office.settings.checkpoints
    found = detect(path, policy.unsafe_formats)
    format_name = found.name
    requests = golden.requests_for(found, golden_file)
    files = take_in(office, sources, progress)
    staged = checkpoint_digest(format=format_name, files=files, golden_sha256="")
    folder = office.store.view(staged, files)
    refuse_stored(office, folder, files, format_name)
    recorded = verification.record(
        folder=folder,
        format=format_name,
        requests=[r.request for r in requests],
        policy=policy,
        clock=office.clock,
        names=[r.where for r in requests],
    )
    for line in recorded.load.scan:
        on_finding(line)
    golden_sha256 = office.store.put_bytes(golden.encode(recorded.golden)) if recorded.golden else ""
    checkpoint = Checkpoint(
        digest=checkpoint_digest(format=format_name, files=files, golden_sha256=golden_sha256),
        service=service,
        version=version,
        format=format_name,
        files=files,
        golden_sha256=golden_sha256,
        added_at=office.clock.now(),
        verified_at=None,
        load_ms=None,
        failure="",
        state_sha256=recorded.state_sha256,
        reproducible=recorded.reproducible,
    )
    return register(office, checkpoint, golden_requests=len(requests))


def take_in(
    office: Office, sources: Sequence[SourceFile], progress: Callable[[int, int], None]
) -> tuple[CheckpointFile, ...]:
    """Put the files into the store; what would burst when it is unpacked is refused before anything is copied.

    Raises `RefusedError` `zip_bomb`, and as `ContentStore.put_files`.
    """
    for source in sources:
        with open(open_source(source), "rb") as reader:
            archives.refuse_bomb(reader, source.path)
    total = sum(source.size_bytes for source in sources)
    return office.store.put_files(sources, lambda count: progress(count, total))


def refuse_stored(office: Office, folder: Path, files: Sequence[CheckpointFile], format_name: str) -> None:
    """Judge again what is in the store now: a source may have been exchanged between being looked at and being copied.

    Raises as `detect`, `RefusedError` `zip_bomb`, `ConflictError` `source_changed`.
    """
    refuse_bombs(office, files)
    found = detect(folder, office.settings.checkpoints.unsafe_formats).name
    if found != format_name:
        raise ConflictError("source_changed", f"the files were {format_name} and are {found} now", "repeat the command")


def refuse_bombs(office: Office, files: Sequence[CheckpointFile]) -> None:
    """Look at stored files. Raises `RefusedError` `zip_bomb`."""
    for file in files:
        with (office.store.blobs / file.sha256).open("rb") as reader:
            archives.refuse_bomb(reader, file.path)


def register(office: Office, checkpoint: Checkpoint, *, golden_requests: int, pulled_from: str = "") -> Checkpoint:
    """Register a checkpoint whose blobs are stored, and verify it. Call it while `ingesting` is held.

    `pulled_from` is the reference that it was fetched by; empty: it was added from files.
    A second call after a kill goes on with what was registered and never verified. Raises `ConflictError`
    `checkpoint_exists`, and as `checkpoints.verify`.
    """
    service, version = checkpoint.service, checkpoint.version
    checkpoint = layout.keep(office.store, checkpoint)
    faults.reach("ingest", "manifest_kept")
    faults.reach("ingest", "before_register")
    with office.database.transaction() as connection:
        waiting = _waiting(connection, checkpoint)
        if not waiting:
            refuse_known(connection, checkpoint)
            registry.insert(connection, checkpoint)
            body = {
                "digest": checkpoint.digest,
                "version": version,
                "format": checkpoint.format,
                "size_bytes": checkpoint.size_bytes,
                "files": [asdict(f) for f in checkpoint.files],
                "golden_requests": golden_requests,
                "state_sha256": checkpoint.state_sha256,
                "reproducible": checkpoint.reproducible,
            }
            place, run_id, now = Place(service=service, env=""), office.ids.run_id(), checkpoint.added_at
            append(connection, now=now, kind="checkpoint_added", body=body, place=place, run_id=run_id)
            if pulled_from:
                body = {
                    "digest": checkpoint.digest,
                    "version": version,
                    "manifest": checkpoint.oci_manifest,
                    "reference": pulled_from[:500],
                }
                append(connection, now=now, kind="checkpoint_pulled", body=body, place=place, run_id=run_id)
    faults.reach("ingest", "registered")
    if pulled_from:
        faults.reach("pull", "registered")
    return verify(office, checkpoint)


def _waiting(connection: Connection, checkpoint: Checkpoint) -> bool:
    """True when it is registered under these labels and was never verified: somebody was killed in between."""
    same = registry.get(connection, checkpoint.digest)
    labels = (checkpoint.service, checkpoint.version)
    return same is not None and (same.service, same.version) == labels and not same.verified_at and not same.failure


def refuse_labels(office: Office, service: str, version: str) -> None:
    """Raises `NotFoundError` `service_unknown`, `UsageError` `version_malformed`."""
    _declared(office, service)
    if not is_version(version):
        raise UsageError("version_malformed", f"{version!r} is no version", VERSION_ACCEPTED)


def _declared(office: Office, service: str) -> None:
    declared = sorted({p.place.service for p in office.settings.places})
    if service not in declared:
        raise NotFoundError(
            "service_unknown",
            f"no service {service!r} in {office.settings.file}; declared: {', '.join(declared)}",
            f"--service {declared[0]}" if len(declared) == 1 else "name one of them, or declare it there first",
        )


def refuse_known(connection: Connection, checkpoint: Checkpoint) -> None:
    """Raises `ConflictError` `checkpoint_exists` when these bytes or these labels are registered."""
    same = registry.get(connection, checkpoint.digest)
    if same is not None:
        raise ConflictError(
            "checkpoint_exists",
            f"these bytes are registered already as {same.service} {same.version}",
            f"use that version, or `rearguard checkpoint verify --service {same.service} --version {same.version}`",
        )
    gone = retired.find(connection, service=checkpoint.service, version=checkpoint.version)
    if gone is not None:
        raise ConflictError(
            "version_retired",
            f"{checkpoint.service} {checkpoint.version} was a checkpoint ({gone.digest[7:19]}) that retention took away",
            "a version is immutable, also after retention: choose a new one; the same bytes may come back under it",
        )
    if registry.find(connection, service=checkpoint.service, version=checkpoint.version) is not None:
        raise ConflictError(
            "checkpoint_exists",
            f"{checkpoint.service} {checkpoint.version} is registered with other bytes",
            "a version is immutable: choose a new one",
        )
