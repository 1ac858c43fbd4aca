"""What people are told of a checkpoint that was proven and is found at fault, whoever found it."""

from __future__ import annotations

from rearguard.checkpoints import copies, registry
from rearguard.checkpoints.verification import VIEW_ALTERED, Verification
from rearguard.database import Connection
from rearguard.handoffs import outbox
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.time import Instant
from rearguard.ports import Message


def failure_cause(checkpoint: Checkpoint) -> str:
    """What messages about a checkpoint that went bad are about."""
    return f"checkpoint:{checkpoint.digest}"


def tell_fault(connection: Connection, checkpoint: Checkpoint, outcome: Verification, now: Instant) -> None:
    """Post a page when `outcome`, which is to be noted next, takes a proof away; nothing when there was none to take.

    An altered view is told as what it is, and takes no proof away in the end: it is built anew, and proven again.
    """
    known = registry.get(connection, checkpoint.digest)
    if outcome.ok or known is None:
        return
    rebuilt = outcome.code == VIEW_ALTERED
    if known.failure != VIEW_ALTERED and (known.failure or known.verified_at is None):
        return
    if rebuilt and known.failure:
        return
    cause = f"view:{checkpoint.digest}" if rebuilt else failure_cause(checkpoint)
    words = f"--service {checkpoint.service} --version {checkpoint.version}"
    held = any(copy.holds for copy in copies.of_checkpoint(connection, checkpoint.digest))
    mend = f"take it in again, then rearguard checkpoint verify {words}"
    if held and outcome.code.startswith("blob_"):
        mend = f"rearguard checkpoint repair {words}"
    what = "its view was altered and is built anew" if rebuilt else f"no rollback target any more, {outcome.code}"
    message = Message(
        key=f"{cause}:{now.wall_ns}",
        title=f"{checkpoint.service} {checkpoint.version}: {what}",
        fields={
            "service": checkpoint.service,
            "version": checkpoint.version,
            "digest": checkpoint.digest,
            "code": outcome.code,
            "message": outcome.message[:500],
            "next": "find out who writes into the store" if rebuilt else mend,
        },
        cause=cause,
        severity="page",
    )
    outbox.post(connection, message, now)
