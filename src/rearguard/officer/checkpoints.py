"""Operations on checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rearguard import loaders
from rearguard.checkpoints import golden, registry, verification
from rearguard.checkpoints.store import checkpoint_digest, list_sources
from rearguard.checkpoints.verification import Verification
from rearguard.database import Connection, sql
from rearguard.errors import ConflictError, IntegrityError, NotFoundError, RefusedError, UsageError
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Place
from rearguard.model.time import NS_PER_S, elapsed
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.rules.selection import is_stale


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """A checkpoint as people list it."""

    checkpoint: Checkpoint
    age_s: int | None
    """Since the last verification that passed; None: never proven."""
    state: str
    """`verified`, `stale`, `unverified` or `failed`."""
    quarantined_at: tuple[str, ...]
    """Environments where it was rolled back and not released."""


@operation(Effect.COMMIT)
def add(office: Office, path: Path, *, service: str, version: str, golden_file: Path) -> Checkpoint:
    """Take a model in by sha256, prove that it loads and answers the same twice, register and verify it.

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
    format_name = loaders.detect(path)
    requests = golden.read_requests(golden_file)
    files = tuple(office.store.put_file(source) for source in sources)
    staged = checkpoint_digest(format=format_name, files=files, golden_sha256="")
    folder = office.store.view(staged, files)
    policy = office.settings.checkpoints
    recorded = verification.record_golden(
        folder=folder,
        format=format_name,
        requests=[r.request for r in requests],
        policy=policy,
        names=[r.where for r in requests],
    )
    golden_sha256 = office.store.put_bytes(golden.encode(recorded))
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


@operation(Effect.COMMIT)
def verify(office: Office, checkpoint: Checkpoint, progress: Callable[[int], None] | None = None) -> Checkpoint:
    """Hash every byte, load cold, repeat the golden predictions, and record the outcome.

    Raises `IntegrityError` with the verification's code when it fails; the registry then holds the failure.
    """
    outcome = verification.verify(checkpoint, office.store, office.settings.checkpoints, progress)
    _record(office, checkpoint, outcome)
    if not outcome.ok:
        raise IntegrityError(
            outcome.code,
            f"{checkpoint.service} {checkpoint.version}: {outcome.message}",
            "it is no rollback target any more; add the checkpoint again from its source",
        )
    with office.database.reading() as connection:
        found = registry.get(connection, checkpoint.digest)
    assert found is not None
    return found


def _record(office: Office, checkpoint: Checkpoint, outcome: Verification) -> None:
    with office.database.transaction() as connection:
        registry.note_verification(connection, checkpoint, outcome, now=office.clock.now(), run_id=office.ids.run_id())
    office.publish(registry_changed=True)


@operation(Effect.READ)
def list_checkpoints(office: Office, service: str | None = None) -> tuple[CheckpointRow, ...]:
    """All registered checkpoints with their standing."""
    now = office.clock.now()
    with office.database.reading() as connection:
        found = registry.list_all(connection, service)
        held = connection.execute(sql("SELECT service, env, digest FROM quarantine ORDER BY env")).all()
    rows = []
    for checkpoint in found:
        age_s = elapsed(checkpoint.verified_at, now).ns // NS_PER_S if checkpoint.verified_at else None
        if checkpoint.failure:
            state = "failed"
        elif age_s is None:
            state = "unverified"
        else:
            assert checkpoint.verified_at is not None
            state = "stale" if is_stale(checkpoint.verified_at, office.settings.checkpoints, now) else "verified"
        quarantined = tuple(q.env for q in held if q.digest == checkpoint.digest)
        rows.append(CheckpointRow(checkpoint=checkpoint, age_s=age_s, state=state, quarantined_at=quarantined))
    return tuple(rows)


@operation(Effect.READ)
def find(office: Office, *, service: str, version: str) -> Checkpoint:
    """One checkpoint by version or by digest (a prefix of at least 8 hex digits will do).

    Raises `NotFoundError` `checkpoint_unknown`.
    """
    with office.database.reading() as connection:
        found = registry.find(connection, service=service, version=version)
        if found is None:
            prefix = version if version.startswith("sha256:") else f"sha256:{version}"
            same = [
                c for c in registry.list_all(connection, service) if len(prefix) >= 15 and c.digest.startswith(prefix)
            ]
            found = same[0] if len(same) == 1 else None
        known = ", ".join(c.version for c in registry.list_all(connection, service))
    if found is None:
        raise NotFoundError(
            "checkpoint_unknown",
            f"{service} has no checkpoint {version}; registered: {known or 'none'}",
            f"rearguard checkpoint add PATH --service {service} --version {version} --golden FILE",
        )
    return found


@operation(Effect.COMMIT)
def release(office: Office, *, service: str, version: str, env: str, reason: str, by: str) -> Checkpoint:
    """Lift the quarantine of a checkpoint at one environment; recorded with its reason.

    Raises `RefusedError` `reason_missing`, `ConflictError` `not_quarantined`.
    """
    place = office.place(service, env).place
    if not reason.strip():
        raise RefusedError(
            "reason_missing", "a release needs a reason", "say why the checkpoint is fit again: --reason TEXT"
        )
    checkpoint = find(office, service=service, version=version)
    with office.database.transaction() as connection:
        gone = connection.execute(
            sql("DELETE FROM quarantine WHERE service = :service AND env = :env AND digest = :digest"),
            {"service": service, "env": place.env, "digest": checkpoint.digest},
        )
        if not gone.rowcount:
            raise ConflictError(
                "not_quarantined", f"{service} {version} is not quarantined at {place.env}", "nothing to lift"
            )
        body = {"digest": checkpoint.digest, "version": checkpoint.version, "reason": reason[:500], "by": by}
        append(
            connection,
            now=office.clock.now(),
            kind="quarantine_released",
            body=body,
            place=place,
            run_id=office.ids.run_id(),
        )
    office.publish(registry_changed=True)
    return checkpoint


@operation(Effect.COMMIT)
def verify_if_older(office: Office, checkpoint: Checkpoint, max_age_s: int) -> Checkpoint:
    """Verify unless the last proof is at most `max_age_s` old (R14)."""
    if checkpoint.verified_at is not None and not checkpoint.failure:
        age = elapsed(checkpoint.verified_at, office.clock.now())
        if 0 <= age.ns <= max_age_s * NS_PER_S:
            return checkpoint
    return verify(office, checkpoint)


def due_for_verification(office: Office) -> tuple[Checkpoint, ...]:
    """Checkpoints whose last proof is older than the policy's interval, never proven ones excluded."""
    interval_s = office.settings.checkpoints.reverify_every_s
    return tuple(
        row.checkpoint for row in list_checkpoints(office) if row.age_s is not None and row.age_s >= interval_s
    )
