"""Named fault points of the store: what a process that dies while it takes in, exports or collects may leave behind.

A process started with `REARGUARD_STORE_FAULT=<operation>:<point>` kills itself with SIGKILL there; `<operation>:<point>:N`
at the N-th time it comes by. Tests take the points from `POINTS`, so that none is left out. Without the variable a point
costs one comparison.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "REARGUARD_STORE_FAULT"

POINTS: dict[str, tuple[str, ...]] = {
    "ingest": ("before_copy", "in_copy", "copied", "blob_kept", "manifest_kept", "before_register", "registered"),
    "layout": ("before_index", "index_written"),
    "pull": ("fetched", "blobs_kept", "registered"),
    "import": ("read", "before_register", "registered"),
    "export": ("before_write", "written"),
    "mirror": ("before_copy", "copied", "noted"),
    "gc": ("planned", "rows_gone", "index_written", "blob_unlinked", "done"),
}
"""By operation, in the order in which they are reached."""

_times: dict[str, int] = {}


def reach(operation: str, point: str) -> None:
    """Die here when the environment says so."""
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return
    name = f"{operation}:{point}"
    _times[name] = _times.get(name, 0) + 1
    if asked in (name, f"{name}:{_times[name]}"):
        os.kill(os.getpid(), signal.SIGKILL)
