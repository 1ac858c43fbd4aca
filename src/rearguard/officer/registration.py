"""How a checkpoint comes in: taken by sha256, proven, registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rearguard.checkpoints import golden, registry, verification
from rearguard.checkpoints.store import checkpoint_digest, list_sources
from rearguard.database import Connection
from rearguard.errors import ConflictError, NotFoundError, UsageError
from rearguard.evidence.log import append
from rearguard.loaders.detection import detect
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Place
from rearguard.officer.checkpoints import verify
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation


@operation(Effect.COMMIT)
def add(
    office: Office,
    path: Path,
    *,
    service: str,
    version: str,
    golden_file: Path | None,
    on_finding: Callable[[str], None] = lambda _line: None,
) -> Checkpoint:
    """Take a model in by sha256, prove that it loads, is and answers the same twice, register and verify it.

    `golden_file` may be None for a format whose loader tells the state. `on_finding` is told each line that the advisory
    scan of a format that runs code has to say.
    Raises `UsageError` (path, golden file, unknown format), `RefusedError` (`unsafe_format`, `untrusted_types`),
    `ConflictError` `checkpoint_exists`, `IntegrityError` (`load_failed`, `not_reproducible`, ...). Nothing is registered
    unless the proof holds.
    """
    _declared(office, service)
    if not version or len(version) > 64 or not all(c.isalnum() or c in "._-+" for c in version):
        raise UsageError(
            "version_malformed", f"{version!r} is no version", "letters, digits and . _ - + only, at most 64"
        )
    sources = list_sources(path)  # first: it opens nothing, so a pipe or a device cannot hold us
    policy = office.settings.checkpoints
    found = detect(path, policy.unsafe_formats)
    format_name = found.name
    requests = golden.requests_for(found, golden_file)
    files = tuple(office.store.put_file(source) for source in sources)
    staged = checkpoint_digest(format=format_name, files=files, golden_sha256="")
    folder = office.store.view(staged, files)
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
    with office.database.transaction() as connection:
        _refuse_known(connection, checkpoint)
        registry.insert(connection, checkpoint)
        body = {
            "digest": checkpoint.digest,
            "version": version,
            "format": format_name,
            "size_bytes": checkpoint.size_bytes,
            "files": [asdict(f) for f in files],
            "golden_requests": len(requests),
            "state_sha256": checkpoint.state_sha256,
            "reproducible": checkpoint.reproducible,
        }
        append(
            connection,
            now=checkpoint.added_at,
            kind="checkpoint_added",
            body=body,
            place=Place(service=service, env=""),
            run_id=office.ids.run_id(),
        )
    return verify(office, checkpoint)


def _declared(office: Office, service: str) -> None:
    declared = sorted({p.place.service for p in office.settings.places})
    if service not in declared:
        raise NotFoundError(
            "service_unknown",
            f"no service {service!r} in {office.settings.file}; declared: {', '.join(declared)}",
            f"--service {declared[0]}" if len(declared) == 1 else "name one of them, or declare it there first",
        )


def _refuse_known(connection: Connection, checkpoint: Checkpoint) -> None:
    same = registry.get(connection, checkpoint.digest)
    if same is not None:
        raise ConflictError(
            "checkpoint_exists",
            f"these bytes are registered already as {same.service} {same.version}",
            f"use that version, or `rearguard checkpoint verify --service {same.service} --version {same.version}`",
        )
    if registry.find(connection, service=checkpoint.service, version=checkpoint.version) is not None:
        raise ConflictError(
            "checkpoint_exists",
            f"{checkpoint.service} {checkpoint.version} is registered with other bytes",
            "a version is immutable: choose a new one",
        )
