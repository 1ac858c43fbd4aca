"""Operations on checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rearguard.checkpoints import copies, layout, registry, retired, verification
from rearguard.checkpoints.copies import Copy
from rearguard.checkpoints.hashing import AT_ONCE, Reading
from rearguard.checkpoints.verification import BytesChecked, Verification
from rearguard.database import Connection, sql
from rearguard.errors import ConflictError, IntegrityError, NotFoundError, RefusedError
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.handoffs.checkpoint_messages import failure_cause, tell_fault
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.ports import Message
from rearguard.rules.selection import is_stale

RETIRED = "checkpoint_retired"
_VERSIONS_NAMED = 20
"""Chosen: what a person can still read in one message."""


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
    copies: tuple[Copy, ...] = ()
    """Its second copies, beside the bytes in the store."""


@operation(Effect.COMMIT)
def prove(office: Office, checkpoint: Checkpoint, reading: Reading = AT_ONCE) -> Verification:
    """Hash every byte, load cold, repeat the golden predictions, and record the outcome, whichever it is.

    Somebody is paged when that takes a proof away. Raises `ConflictError` and `DependencyError` as `verification.verify`;
    then nothing is recorded.
    """
    outcome = verification.verify(checkpoint, office.store, office.settings.checkpoints, office.clock, reading)
    _record(office, checkpoint, outcome)
    return outcome


@operation(Effect.COMMIT)
def check_bytes(office: Office, checkpoint: Checkpoint, reading: Reading = AT_ONCE) -> BytesChecked:
    """Hash every byte and load nothing. What was not proven stays so; what is found at fault is recorded.

    Raises `IntegrityError` with the code of what is at fault; the registry then holds the failure. `ConflictError`
    `hash_stopped` as `prove`.
    """
    try:
        return verification.check_bytes(checkpoint, office.store, office.clock, reading)
    except IntegrityError as error:
        _record(office, checkpoint, verification.failed(error))
        raise


@operation(Effect.COMMIT)
def settle_layout(office: Office, wanted: Sequence[Checkpoint]) -> tuple[IntegrityError, ...]:
    """What of the OCI layout was altered: marker, index, manifests and configs of `wanted`; all of it is then written anew.

    A second call finds nothing. No proof is taken away: a restore reads none of it.
    """
    found = layout.check(office.database, office.store, wanted, office.clock.sleep)
    if found:
        office.export_registry(mend=True)
    return found


@operation(Effect.COMMIT)
def verify(office: Office, checkpoint: Checkpoint, reading: Reading = AT_ONCE) -> Checkpoint:
    """As `prove`; returns the checkpoint as it is registered then.

    Raises `IntegrityError` with the verification's code when it fails; the registry then holds the failure.
    """
    outcome = prove(office, checkpoint, reading)
    if not outcome.ok:
        raise IntegrityError(
            outcome.code,
            f"{checkpoint.service} {checkpoint.version}: {outcome.message}",
            "it is no rollback target any more; `rearguard checkpoint verify` says what mends it, or add it again from its source",
        )
    with office.database.reading() as connection:
        found = registry.get(connection, checkpoint.digest)
    assert found is not None
    return found


def _record(office: Office, checkpoint: Checkpoint, outcome: Verification) -> None:
    with office.database.transaction() as connection:
        now = office.clock.now()
        if registry.get(connection, checkpoint.digest) is None:
            raise ConflictError(
                RETIRED,
                f"{checkpoint.service} {checkpoint.version} was retired while it was verified",
                "`rearguard checkpoint list` names what is registered",
            )
        tell_fault(connection, checkpoint, outcome, now)
        registry.note_verification(connection, checkpoint, outcome, now=now, run_id=office.ids.run_id())
        if outcome.ok:
            _resolve(connection, checkpoint, now)
    office.publish(registry_changed=True)


def shown(progress: Callable[[int], None]) -> Reading:
    """As fast as the machine can, and `progress` is given the bytes read since its last call, in the caller's thread."""
    return Reading(progress=progress)


def _resolve(connection: Connection, checkpoint: Checkpoint, now: Instant) -> None:
    """Whoever was told that it went bad is told that it is proven again."""
    cause = failure_cause(checkpoint)
    newest = connection.execute(
        sql("SELECT action FROM outbox WHERE cause = :cause ORDER BY id DESC LIMIT 1"), {"cause": cause}
    ).scalar()
    if newest not in (None, "resolve"):
        message = Message(
            key=f"{cause}:{now.wall_ns}:proven",
            title=f"{checkpoint.service} {checkpoint.version}: proven again",
            fields={"service": checkpoint.service, "version": checkpoint.version, "digest": checkpoint.digest},
            cause=cause,
            action="resolve",
        )
        outbox.post(connection, message, now)


@operation(Effect.READ)
def list_checkpoints(office: Office, service: str | None = None) -> tuple[CheckpointRow, ...]:
    """All registered checkpoints with their standing."""
    now = office.clock.now()
    with office.database.reading() as connection:
        found = registry.list_all(connection, service)
        held = connection.execute(sql("SELECT service, env, digest FROM quarantine ORDER BY env")).all()
        second = copies.by_checkpoint(connection)
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
        rows.append(
            CheckpointRow(
                checkpoint=checkpoint,
                age_s=age_s,
                state=state,
                quarantined_at=quarantined,
                copies=second.get(checkpoint.digest, ()),
            )
        )
    return tuple(rows)


@operation(Effect.READ)
def find(office: Office, *, service: str, version: str) -> Checkpoint:
    """One checkpoint by version or by digest (a prefix of at least 8 hex digits will do).

    Raises `NotFoundError` `checkpoint_unknown`, or `checkpoint_retired` for one that retention took away.
    """
    known, gone = "", None
    with office.database.reading() as connection:
        found = registry.find(connection, service=service, version=version)
        if found is None:
            prefix = version if version.startswith("sha256:") else f"sha256:{version}"
            found = registry.find_prefix(connection, service=service, prefix=prefix) if len(prefix) >= 15 else None
        if found is None:
            gone = retired.find(connection, service=service, version=version)
            newest = registry.newest(connection, service, _VERSIONS_NAMED)
            more = registry.count(connection, service) - len(newest)
            known = ", ".join(label for _, label in reversed(newest)) + (f", and {more} older" if more else "")
    if gone is not None:
        raise NotFoundError(
            RETIRED,
            f"{service} {version} ({gone.digest[7:19]}) was retired, its bytes are gone; registered: {known or 'none'}",
            "add its files again, under a new version",
        )
    if found is None:
        raise NotFoundError(
            "checkpoint_unknown",
            f"{service} has no checkpoint {version}; registered: {known or 'none'}",
            f"rearguard checkpoint add PATH --service {service} --version {version} --golden FILE",
        )
    return found


@operation(Effect.COMMIT)
def release(office: Office, *, service: str, version: str, env: str, reason: str, by: str) -> str:
    """Lift the quarantine of a checkpoint at one environment, recorded with its reason; returns the version it is known by.

    What stands in the table can be lifted, whether or not its environment is declared and its digest registered (any
    more): an import may have brought it, and a whole digest then names it. Raises `RefusedError` `reason_missing`,
    `ConflictError` `not_quarantined`.
    """
    place = Place(service=service, env=env)
    with office.database.reading() as connection:
        held = registry.quarantined(connection, place)
    if not held:
        place = office.place(service, env).place
    if not reason.strip():
        raise RefusedError(
            "reason_missing", "a release needs a reason", "say why the checkpoint is fit again: --reason TEXT"
        )
    whole = Digest(version if version.startswith("sha256:") else f"sha256:{version}")
    if whole in held:
        with office.database.reading() as connection:
            known = registry.get(connection, whole)
        digest, label = whole, known.version if known is not None else version
    else:
        checkpoint = find(office, service=service, version=version)
        digest, label = checkpoint.digest, checkpoint.version
    with office.database.transaction() as connection:
        gone = connection.execute(
            sql("DELETE FROM quarantine WHERE service = :service AND env = :env AND digest = :digest"),
            {"service": service, "env": place.env, "digest": digest},
        )
        if not gone.rowcount:
            raise ConflictError(
                "not_quarantined", f"{service} {version} is not quarantined at {place.env}", "nothing to lift"
            )
        body = {"digest": digest, "version": label, "reason": reason[:500], "by": by}
        append(
            connection,
            now=office.clock.now(),
            kind="quarantine_released",
            body=body,
            place=place,
            run_id=office.ids.run_id(),
        )
    office.publish(registry_changed=True)
    return label


@operation(Effect.COMMIT)
def verify_if_older(office: Office, checkpoint: Checkpoint, max_age_s: int) -> Checkpoint:
    """Verify unless the last proof is at most `max_age_s` old (R14)."""
    if checkpoint.verified_at is not None and not checkpoint.failure:
        age = elapsed(checkpoint.verified_at, office.clock.now())
        if 0 <= age.ns <= max_age_s * NS_PER_S:
            return checkpoint
    return verify(office, checkpoint)
