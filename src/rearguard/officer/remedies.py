"""What brings a checkpoint, or a place's way back, into order again: one command, for every command that names one."""

from __future__ import annotations

from collections.abc import Sequence

from rearguard.checkpoints import copies, registry
from rearguard.database import Connection
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Place
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.repairs import REPAIRABLE
from rearguard.recovery.candidates import serving
from rearguard.rules.selection import Rejected


def repair_command(office: Office, connection: Connection, checkpoint: Checkpoint, failure: str = "") -> str:
    """The command that mends a checkpoint from the second copy; empty when its failure is none of bytes, or none holds.

    `failure` is asked of instead of the one that is registered.
    """
    folder = office.settings.checkpoints.mirror
    if not folder or (failure or checkpoint.failure) not in REPAIRABLE:
        return ""
    copy = copies.of_folder(connection, folder).get(checkpoint.digest)
    if copy is None or not copy.holds:
        return ""
    return f"rearguard checkpoint repair --service {checkpoint.service} --version {checkpoint.version}"


def of_place(office: Office, connection: Connection, place: Place, rejected: Sequence[Rejected]) -> str:
    """What to do where nothing can be rolled back to: mend what served here, or else what gives a new way back."""
    served = serving(connection, place, tuple(r.digest for r in rejected))
    # What served here first: mended, it is the way back.
    for found in sorted(rejected, key=lambda r: r.digest not in served):
        if found.reason == "verification_failed":
            checkpoint = registry.get(connection, found.digest)
            repair = repair_command(office, connection, checkpoint) if checkpoint is not None else ""
            if repair:
                return repair
    at = f"--service {place.service} --version"
    for found in rejected:
        if found.reason in ("verification_failed", "never_verified") and found.digest in served:
            again = f"its files again: rearguard checkpoint add PATH {at} {found.version} --golden FILE"
            return f"rearguard checkpoint verify {at} {found.version}; if that fails take in {again}"
    for found in rejected:
        if found.reason == "quarantined":
            release = f"rearguard checkpoint release {at} {found.version} --env {place.env} --reason TEXT"
            return f"deploy a further version, or, when {found.version} is fit again: {release}"
    if any(found.reason == "never_served" for found in rejected):
        return "deploy one of those that never served here: what serves now is its way back then"
    return f"rearguard checkpoint add PATH {at} VERSION --golden FILE"


@operation(Effect.READ)
def of_checkpoint(office: Office, checkpoint: Checkpoint, failure: str) -> str:
    """The command that mends a checkpoint which was just found at fault, or empty."""
    with office.database.reading() as connection:
        return repair_command(office, connection, checkpoint, failure) if failure else ""
