"""Pages of an officer that cannot write its records: straight to every channel, past the outbox."""

from __future__ import annotations

import contextlib

from rearguard.errors import RearguardError
from rearguard.handoffs.courier import CRY_EVERY_S, Couriers
from rearguard.model.time import NS_PER_S
from rearguard.officer.housekeeping import Notify
from rearguard.officer.office import Office

CANNOT_WRITE = "Rearguard cannot write its records"
DAMAGED = "Rearguard ends: its records are damaged, and nothing is rolled back"
_NOTE = "damage.told"


def cry(office: Office, couriers: Couriers, title: str, error: RearguardError) -> None:
    """Page about the database; returns at once."""
    fields = {"state": str(office.state), "error": error.message, "next": error.hint}
    couriers.cry(title, fields, cause="database")


def cry_damaged(office: Office, notify: Notify, error: RearguardError) -> None:
    """Page before this officer ends, and give the channels time to take it.

    At most once in `CRY_EVERY_S` and state directory, of this boot: the service manager starts it again, to end the same way.
    """
    now, note = office.clock.now(), office.state / _NOTE
    with contextlib.suppress(OSError, ValueError):
        boot_id, mono_ns = note.read_text("ascii").split()
        if boot_id == now.boot_id and 0 <= now.mono_ns - int(mono_ns) < CRY_EVERY_S * NS_PER_S:
            return
    with contextlib.suppress(OSError):  # a page too many is better than none
        note.write_text(f"{now.boot_id} {now.mono_ns}", "ascii")
    couriers = Couriers(office.database, office.clock, office.channels(), notify)
    cry(office, couriers, DAMAGED, error)
    couriers.await_cries()
