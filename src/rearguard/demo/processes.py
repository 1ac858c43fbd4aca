"""The demo's child processes: started, watched, and always ended, also on Ctrl-C or when the demo itself is killed."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Runs in the child before exec: the kernel ends it when the demo dies, whatever kills the demo."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Children:
    """Children by name; their process ids stand in `pids.json` in the state directory."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: Sequence[str], *, out: Path) -> None:
        """Start `python ARGUMENTS` with its output in a file."""
        with out.open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._running[name] = process
        pids = {n: p.pid for n, p in self._running.items()} | {"demo": os.getpid()}
        (self._state / "pids.json").write_text(json.dumps(pids) + "\n", encoding="utf-8")

    def alive(self, name: str) -> bool:
        """True while the child runs."""
        return self._running[name].poll() is None

    def wait(self, name: str, timeout_s: float) -> int:
        """Its exit code; raises `subprocess.TimeoutExpired`."""
        return self._running[name].wait(timeout_s)

    def end(self, name: str, *, patience_s: float = 10.0) -> None:
        """Ask it to end, then make it; its whole process group."""
        process = self._running[name]
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def end_all(self) -> None:
        """Newest first, so that clients stop before the server does."""
        for name in reversed(tuple(self._running)):
            self.end(name)
