"""What a collection of the store would free, looked at now and then; nothing is collected by itself."""

from __future__ import annotations

from rearguard.officer import retention
from rearguard.officer.office import Office


class StoreLook:
    """The housekeeping job; `freeable_bytes` may be read by any thread."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self.freeable_bytes: int | None = None
        """None before the first look."""

    def turn(self) -> None:
        """Look once. Raises as `retention.plan`."""
        self.freeable_bytes = retention.plan(self._office).swept.freed_bytes
