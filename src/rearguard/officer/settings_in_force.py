"""Whether the officer in office works with the files as they are now, or with what it read before they were edited.

An officer reads its settings and its playbook once, when it takes office. Who looks at it from outside reads them anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rearguard.database import officer_presence, sql
from rearguard.errors import RefusedError
from rearguard.model.time import Instant
from rearguard.officer.office import Office

CHANGED = "settings were changed after the officer started: restart it"
HINT = "restart the officer (`systemctl restart rearguard`); its runs are durable"


def changed(office: Office, now: Instant) -> bool:
    """True when somebody is in office and read other settings, or another playbook, than the files hold now.

    False without an officer, of one that hangs (its successor reads them anew), and of one that did not tell.
    """
    presence = officer_presence(office.state, now)
    if not presence.held or presence.hung:
        return False
    with office.database.reading() as connection:
        row = connection.execute(sql("SELECT pid, settings_sha256, playbook_sha256 FROM officer")).first()
    # The lock is taken a moment before the row is written: until then it is that of an officer before.
    if row is None or not row.settings_sha256 or presence.pid not in (None, row.pid):
        return False
    return (row.settings_sha256, row.playbook_sha256) != (office.settings.sha256, _playbook_sha256(office))


def refuse_changed(office: Office, run_id: str) -> None:
    """Raises `RefusedError` `settings_changed` when the officer that will do the run has other settings than this file."""
    if changed(office, office.clock.now()):
        raise RefusedError(
            "settings_changed",
            f"the officer that will do {run_id} works with other settings than {office.settings.file} and its playbook hold",
            f"{HINT}, then approve again: rearguard approve {run_id} --key FILE",
        )


def _playbook_sha256(office: Office) -> str:
    """Of the file's bytes, also of one that does not read: that is a change too."""
    try:
        return hashlib.sha256(Path(office.settings.playbook_path).read_bytes()).hexdigest()
    except OSError:
        return ""
