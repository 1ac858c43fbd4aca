"""What a model server is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """One server serves one model of one service in one environment."""

    name: str
    """Model name in the protocol's paths."""
    service: str
    env: str
    host: str
    port: int
    """0: the kernel chooses; the address is logged."""
    log: Path
    """Request log, appended, one JSON line a request."""
    state_dir: Path
    """Folder of this server alone: highest epoch, last key, what is active."""
    standby: int = 1
    """Loaded versions kept warm beside the active one; chosen 1: the one a rollback goes to."""
    standby_memory_mib: int | None = None
    """A standby whose resident memory is above this is ended and reported; the active version never. None: no limit."""
    infer_timeout_s: float = 30.0
    """A worker that takes longer for one answer is hung and killed; the active one is restarted. Chosen."""
    load_timeout_s: float = 120.0
    """A worker that is not ready by then is killed and the load fails. Chosen: four times the limit of R16."""
    drain_s: float = 3.0
    """In-flight requests get this long at the end."""
