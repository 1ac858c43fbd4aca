"""Where a place's best rollback target lies, beside where its service lies (R18). What follows is `rules.storage`."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from rearguard.checkpoints import copies
from rearguard.checkpoints.storage import domain_of
from rearguard.database import Connection
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.settings import PlaceSettings
from rearguard.officer.office import Office
from rearguard.rules.storage import SAME_STORAGE_DOMAIN, Standing, judge


def standing(office: Office, connection: Connection, settings: PlaceSettings, target: Checkpoint) -> Standing:
    """The storage domains of a checkpoint's copies, that in the store included, beside the service's."""
    held = [copy.domain for copy in copies.of_checkpoint(connection, target.digest) if copy.holds]
    return judge([domain_of(office.state), *held], service_domain(office, settings))


def service_domain(office: Office, settings: PlaceSettings) -> str:
    """What the service's own storage is: as declared, or the state directory's when it serves from there; else empty.

    A target that is reached over loopback, and a command that is handed a local path, read the views of this store.
    """
    if settings.storage_domain:
        return settings.storage_domain
    here = settings.target.adapter == "command" or _is_loopback(str(settings.target.options.get("url", "")))
    return domain_of(office.state) if here else ""


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def words(found: Standing, version: str) -> str:
    """One sentence for people."""
    domains = ", ".join(found.domains) or "storage that is not known"
    if not found.code:
        return f"{version} lies on {domains}" + (
            f", the service on {found.service_domain}" if found.service_domain else ""
        )
    if found.code == SAME_STORAGE_DOMAIN:
        return f"every copy of {version} lies on {domains}, as does what the service reads: one disk takes both"
    return f"{version} lies on {domains} alone, and where the service's storage is, is not known"


HINT = "keep a second copy on another disk (checkpoints.mirror), or say where the service's storage is (storage_domain)"
"""What to do about either warning."""
