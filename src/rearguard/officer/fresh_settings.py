"""The settings of a standby: read anew whenever a file changes, so that what is wrong with them is said while there is time.

Files that do not read keep nobody from taking office: an officer on the last settings that did read, which says so to everybody, is
better than none. What it works with is noted with the office, so `status` and `doctor` tell it as well.
"""

from __future__ import annotations

import os
from pathlib import Path

from rearguard.errors import ConfigError, DependencyError
from rearguard.handoffs import outbox
from rearguard.handoffs.courier import Couriers
from rearguard.officer.housekeeping import Notify
from rearguard.officer.office import Office
from rearguard.ports import Message

_Sign = tuple[int, int, int] | None


class FreshSettings:
    """Looks at the files; used by the thread that stands by."""

    def __init__(self, office: Office, notify: Notify) -> None:
        self._office = office
        self._notify = notify
        self._seen: tuple[_Sign, ...] = ()
        self.trouble: ConfigError | None = None
        """Why the files as they are now are not what this process would work with; None when they are."""

    def look(self) -> None:
        """Read the files anew if one of them has changed."""
        office = self._office
        seen = tuple(_sign(path) for path in (office.settings_path, Path(office.settings.playbook_path)))
        if seen != self._seen:
            self._seen = seen
            self.read()

    def read(self) -> None:
        """Read the files anew; told when that fails, and when it succeeds again."""
        before, self.trouble = self.trouble, None
        try:
            self._office.reread()
        except ConfigError as error:
            self.trouble = error
            if before is None or before.message != error.message:
                fields = {"code": error.code, "message": error.message, "next": error.hint}
                self._notify("settings_unreadable", fields)
        else:
            if before is not None:
                self._notify("settings_read", {"file": str(self._office.settings_path)})

    def page(self) -> None:
        """By an officer that has just come into office on settings that are not those of the files: page about it."""
        if self.trouble is None:
            return
        office, now = self._office, self._office.clock.now()
        self._notify("settings_kept", {"code": self.trouble.code, "message": self.trouble.message})
        message = Message(
            key=f"settings-kept-{now.wall_ns}",
            title="Rearguard took over on the settings that it had read before: the files do not read now",
            fields={
                "state": str(office.state),
                "error": self.trouble.message,
                "next": f"{self.trouble.hint or 'mend the file'}; then restart the officer",
            },
            cause="settings",
            severity="page",
        )
        try:
            with office.database.transaction() as connection:
                outbox.post(connection, message, now)
        except DependencyError:
            couriers = Couriers(office.database, office.clock, office.channels(), self._notify)
            couriers.cry(message.title, message.fields, cause=message.cause)


def _sign(path: Path) -> _Sign:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
