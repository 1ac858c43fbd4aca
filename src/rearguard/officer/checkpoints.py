"""Operations on checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rearguard.checkpoints import registry, verification
from rearguard.checkpoints.verification import Verification
from rearguard.database import sql
from rearguard.errors import ConflictError, IntegrityError, NotFoundError, RefusedError
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint
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
