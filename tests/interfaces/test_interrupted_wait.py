"""A person who stops waiting for an approval is told that the run goes on waiting, and how to end it."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from conftest_cli import ENV, SERVICE, Lived
from conftest_ready import Start, rearguard, start, until

__all__ = ["start"]


def test_an_interrupted_wait_for_approval_says_that_the_run_still_waits(guarded: Path, start: Start) -> None:
    run = start("rollback", "run", SERVICE, "--env", ENV, "--execute", "--by", "ops", "--state", guarded)
    until(lambda: "waiting for approval" in run.err.read_text(), "it waits")
    run.handle.send_signal(signal.SIGINT)
    assert run.handle.wait(30) == 130
    said = run.err.read_text()
    found = re.search(
        r"^(run_\w+) still waits for approval; to cancel it: rearguard runs cancel (run_\w+)$", said, re.M
    )
    assert found, said
    assert found[1] == found[2]
    assert rearguard("runs", "cancel", found[1], "--state", guarded).returncode == 0


def test_runs_show_has_the_rto_and_the_time_from_request_to_end(lived: Lived) -> None:
    said = rearguard("runs", "show", lived.run_id, "--state", lived.state).stdout
    assert re.search(r"^  RTO \S+ (s|min), from request to end \S+ s$", said, re.MULTILINE)
