"""Named fault points, derived from the step list: each step x {before_effect, after_effect, after_record}.

A process started with `REARGUARD_FAULT=<step>:<point>` kills itself with SIGKILL there, so that recovery is tested by a
process that really dies; `<step>:<point>:freeze` stops it with SIGSTOP instead, as a host that hangs does. Without the
variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal

POINTS = ("before_effect", "after_effect", "after_record")
VARIABLE = "REARGUARD_FAULT"


def reach(step: str, point: str) -> None:
    """Die, or freeze, here when the environment says so."""
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return
    if asked == f"{step}:{point}":
        os.kill(os.getpid(), signal.SIGKILL)
    elif asked == f"{step}:{point}:freeze":
        del os.environ[VARIABLE]  # once: the step may be done again after it woke up
        os.kill(os.getpid(), signal.SIGSTOP)


def fault_points(steps: tuple[str, ...]) -> tuple[str, ...]:
    """All fault points of a list of steps."""
    return tuple(f"{step}:{point}" for step in steps for point in POINTS)
