"""The background scrub: each candidate is proven again before its proof is too old, slowly, and one after the other.

What is due is decided by `rules.scrub` from what the database says, so a restart loses nothing. It reads past the page
cache at the pace of `checkpoints.scrub_mib_s`, so that what serves does not feel it, and stops between two reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from rearguard.checkpoints import registry
from rearguard.checkpoints.hashing import HashMode, Pace, Reading
from rearguard.checkpoints.verification import VIEW_ALTERED, Verification
from rearguard.errors import ConflictError, DependencyError
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest
from rearguard.officer import checkpoints
from rearguard.officer.office import Office
from rearguard.rules import scrub

SCRUB_LOOK_S = 60.0
"""Between two looks at what is due."""


class Scrub:
    """The housekeeping job `proofs`. `turn` is called by one thread, `stop` by any."""

    def __init__(
        self, office: Office, notify: Callable[[str, dict[str, Any]], None], allowed: Callable[[], bool] = lambda: True
    ) -> None:
        """`allowed` is asked before each checkpoint: an officer that was replaced proves nothing more."""
        self._office = office
        self._notify = notify
        self._allowed = allowed
        self._stop = threading.Event()
        self._put_off: set[Digest] = set()
        """What the surroundings kept from being proven: after the others, so that it keeps none of them waiting."""

    def stop(self) -> None:
        """Read no more; what was read of a checkpoint is read again by the next officer."""
        self._stop.set()

    def turn(self) -> None:
        """Prove again what is due, the oldest proof first, until nothing is."""
        while not self._stop.is_set() and self._allowed():
            due = next_due(self._office, self._put_off)
            if due is None:
                self._put_off.clear()
                return
            try:
                self._prove(due)
            except (ConflictError, DependencyError) as error:
                if error.code == checkpoints.RETIRED:
                    continue
                if error.code != "hash_stopped":
                    self._put_off.add(due.digest)
                    raise
                return

    def _prove(self, checkpoint: Checkpoint) -> None:
        outcome = checkpoints.prove(self._office, checkpoint, self._reading())
        if outcome.code == VIEW_ALTERED:
            # The view has been built anew; the bytes and the load are still to be proven, or a target would be lost.
            self._say(checkpoint, outcome)
            outcome = checkpoints.prove(self._office, checkpoint, self._reading())
        if not outcome.ok:
            self._say(checkpoint, outcome)

    def _say(self, checkpoint: Checkpoint, outcome: Verification) -> None:
        fields = {"service": checkpoint.service, "version": checkpoint.version, "code": outcome.code}
        self._notify("checkpoint_failed", fields)

    def _reading(self) -> Reading:
        pace = Pace(
            self._office.settings.checkpoints.scrub_bytes_s,
            now_ns=lambda: self._office.clock.now().mono_ns,
            wait=self._stop.wait,
        )
        return Reading(mode=HashMode.DIRECT, pace=pace, stop=self._stop)


def next_due(office: Office, put_off: Collection[Digest] = ()) -> Checkpoint | None:
    """The checkpoint to prove now, but for those `put_off`; None while there is none.

    First those whose proof is to be renewed, then those that failed of something that may have passed. Never proven ones
    are neither.
    """
    interval_s, now = office.settings.checkpoints.reverify_every_s, office.clock.now()
    with office.database.reading() as connection:
        proofs = [(digest, at) for digest, at in registry.proofs(connection) if digest not in put_off]
        digest = scrub.next_due(proofs, interval_s=interval_s, now=now)
        if digest is None:
            failing = [one for one in registry.failures(connection) if one.digest not in put_off]
            digest = scrub.next_retry(failing, interval_s=interval_s, now=now)
        return registry.get(connection, digest) if digest is not None else None
