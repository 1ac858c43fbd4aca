"""No process that loads a model outlives the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent (Linux: its thread that started us) dies; exit at once when it has.

    To be called before anything of a model is loaded. The sandbox keeps it, and denies taking it back.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
