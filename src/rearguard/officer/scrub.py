"""The background scrub: each candidate is proven again before its proof is too old, slowly, and one after the other.

What is due is decided by `rules.scrub` from what the database says, so a restart loses nothing. It reads past the page
cache at the pace of `checkpoints.scrub_mib_s`, so that what serves does not feel it, and stops between two reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rearguard.checkpoints import copies, registry
from rearguard.checkpoints.hashing import HashMode, Pace, Reading
from rearguard.checkpoints.verification import Verification
from rearguard.errors import ConflictError
from rearguard.handoffs import outbox
from rearguard.model.checkpoint import Checkpoint
from rearguard.officer import checkpoints
from rearguard.officer.office import Office
from rearguard.ports import Message
from rearguard.rules import scrub

SCRUB_LOOK_S = 60.0
"""Between two looks at what is due."""
VIEW_ALTERED = "view_altered"


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

    def stop(self) -> None:
        """Read no more; what was read of a checkpoint is read again by the next officer."""
        self._stop.set()

    def turn(self) -> None:
        """Prove again what is due, the oldest proof first, until nothing is."""
        while not self._stop.is_set() and self._allowed():
            due = next_due(self._office)
            if due is None:
                return
            try:
                self._prove(due)
            except ConflictError as error:
                if error.code == checkpoints.RETIRED:
                    continue
                if error.code != "hash_stopped":
                    raise
                return

    def _prove(self, checkpoint: Checkpoint) -> None:
        outcome = checkpoints.prove(self._office, checkpoint, self._reading())
        if outcome.code == VIEW_ALTERED:
            # The view has been built anew; the bytes and the load are still to be proven, or a target would be lost.
            self._tell(checkpoint, outcome, cause=f"view:{checkpoint.digest}")
            outcome = checkpoints.prove(self._office, checkpoint, self._reading())
        if not outcome.ok:
            self._tell(checkpoint, outcome, cause=checkpoints.failure_cause(checkpoint))

    def _reading(self) -> Reading:
        pace = Pace(
            self._office.settings.checkpoints.scrub_bytes_s,
            now_ns=lambda: self._office.clock.now().mono_ns,
            wait=self._stop.wait,
        )
        return Reading(mode=HashMode.DIRECT, pace=pace, stop=self._stop)

    def _tell(self, checkpoint: Checkpoint, outcome: Verification, *, cause: str) -> None:
        now = self._office.clock.now()
        label = {"service": checkpoint.service, "version": checkpoint.version}
        self._notify("checkpoint_failed", {**label, "code": outcome.code})
        rebuilt = outcome.code == VIEW_ALTERED
        words = f"--service {checkpoint.service} --version {checkpoint.version}"
        with self._office.database.reading() as connection:
            held = any(copy.holds for copy in copies.of_checkpoint(connection, checkpoint.digest))
        mend = f"take it in again, then rearguard checkpoint verify {words}"
        if held and outcome.code.startswith("blob_"):
            mend = f"rearguard checkpoint repair {words}"
        message = Message(
            key=f"{cause}:{now.wall_ns}",
            title=f"{checkpoint.service} {checkpoint.version}: "
            + ("its view was altered and is built anew" if rebuilt else f"no rollback target any more, {outcome.code}"),
            fields={
                **label,
                "digest": checkpoint.digest,
                "code": outcome.code,
                "message": outcome.message[:500],
                "next": "find out who writes into the store" if rebuilt else mend,
            },
            cause=cause,
            severity="page",
        )
        with self._office.database.transaction() as connection:
            outbox.post(connection, message, now)


def next_due(office: Office) -> Checkpoint | None:
    """The checkpoint whose proof is to be renewed now; None while there is none. Never proven ones are not renewed."""
    interval_s = office.settings.checkpoints.reverify_every_s
    with office.database.reading() as connection:
        digest = scrub.next_due(registry.proofs(connection), interval_s=interval_s, now=office.clock.now())
        return registry.get(connection, digest) if digest is not None else None
