"""An officer that is frozen is replaced, and changes nothing when it wakes up."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stage import Policy, Server, Stage, Watcher, wait_until

from rearguard.database import DATABASE_NAME, LEASE_S
from rearguard.model.run import RunState

SetStage = Callable[..., Stage]
LEFT_ALONE = ("rollback_log.json", "incident_telemetry.log", "checkpoint_registry.yaml")


def state_of(pid: int) -> str:
    """`T` is stopped (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def frozen_at(stage: Stage, point: str) -> Watcher:
    """A watcher that stopped itself at a fault point of the run."""
    watcher = stage.watch(fault=f"{point}:freeze")
    wait_until(lambda: state_of(watcher.process.pid) == "T", "the officer is frozen", 30)
    return watcher


def others_can_write(stage: Stage) -> bool:
    raw = sqlite3.connect(stage.state / DATABASE_NAME, timeout=0.5, isolation_level=None)
    try:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        raw.close()
    return True


def successor(stage: Stage) -> Watcher:
    """A watcher that takes the office as soon as the lease of the frozen one has ended; before that it is refused."""
    refused = 0
    end = time.monotonic() + 3 * LEASE_S
    while time.monotonic() < end:
        watcher = stage.watch()
        wait_until(lambda w=watcher: w.events("watch_started") or w.process.poll() is not None, "it starts or ends", 30)
        if watcher.process.poll() is None:
            assert refused > 0, "the office was taken from an officer whose lease had not ended"
            return watcher
        assert watcher.process.returncode == 75
        refused += 1
        time.sleep(0.5)
    raise AssertionError("nobody took over")


@pytest.mark.parametrize(
    "point",
    [
        "activate:before_effect",
        pytest.param("window:before_effect", marks=pytest.mark.long),
        pytest.param("record:after_record", marks=pytest.mark.long),
    ],
)
def test_a_frozen_officer_that_wakes_after_its_run_was_finished_changes_nothing(
    own_server: Server, set_stage: SetStage, point: str
) -> None:
    for _ in range(8):  # one that is frozen in the midst of a transaction is ended instead: see the next test
        stage = set_stage(own_server, policy=Policy(recovery_s=1, deadline_s=60), versions="v0,v1,v2")
        stage.deploy("v1")
        stage.arm()
        stage.deploy("v2")
        stage.force_breach()
        frozen = frozen_at(stage, point)
        if others_can_write(stage):
            break
        stage.strike()
    clients = stage.send_traffic()

    second = successor(stage)
    run = stage.wait_for_end(60)
    assert second.end() == 0
    assert (len(stage.runs()), run.state) == (1, RunState.SUCCEEDED)
    stage.deploy("v0")  # the place moves on while the old officer sleeps
    before = (stage.records(), stage.server.serves(), [(stage.state / name).read_bytes() for name in LEFT_ALONE])
    told = stage.messages()

    woken_ns = time.monotonic_ns()
    os.kill(frozen.process.pid, signal.SIGCONT)
    assert frozen.process.wait(30) == 75
    wait_until(lambda: len(clients.since(woken_ns)) >= 20, "clients go on")

    after = (stage.records(), stage.server.serves(), [(stage.state / name).read_bytes() for name in LEFT_ALONE])
    assert after == before
    assert stage.messages() == told
    assert {(a.status, a.digest) for a in clients.since(woken_ns)} == {(200, stage.digest("v0"))}


@pytest.mark.long
def test_an_officer_frozen_in_the_midst_of_a_transaction_is_ended_by_its_successor(
    own_server: Server, set_stage: SetStage, tmp_path: Path
) -> None:
    """SQLite has one writer: a process that is frozen while it writes keeps everybody out for as long as it lives."""
    stage = set_stage(own_server, policy=Policy(recovery_s=1, deadline_s=60))
    stage.deploy("v1")
    stage.arm()
    stage.deploy("v2")
    program = tmp_path / "writer.py"
    program.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from rearguard.database import OfficerLock, open_database, sql\n"
        "from rearguard.edge import SystemClock\n"
        "state = Path(sys.argv[1])\n"
        "OfficerLock(state).acquire(SystemClock().now())\n"
        "with open_database(state).transaction() as connection:\n"
        "    connection.execute(sql(\"INSERT INTO meta VALUES ('half', 'written')\"))\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n",
        encoding="utf-8",
    )
    holder = stage.processes.start([str(program), str(stage.state)], out=tmp_path / "writer.out")
    wait_until(lambda: state_of(holder.pid) == "T", "the writer is frozen", 30)

    successor(stage)
    assert holder.wait(10) == -signal.SIGKILL
    stage.force_breach()
    assert stage.wait_for_end(60).state is RunState.SUCCEEDED
