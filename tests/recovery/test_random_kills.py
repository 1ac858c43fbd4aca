"""A hundred kills at random instants, under real traffic: nothing lost, nothing doubled.

The seed is printed and kept in the result, so that a bad series can be played again: `REARGUARD_KILL_SEED`.
With `REARGUARD_KILL_RESULT=FILE` the result is written there as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from stage import ENV, SERVICE, Clients, Policy, Server, Stage, wait_until

from rearguard.database import DATABASE_NAME
from rearguard.model.run import RunState
from rearguard.officer import checkpoints, reporting

SetStage = Callable[..., Stage]

KILLS = int(os.environ.get("REARGUARD_KILLS", "100"))
SEED = int(os.environ.get("REARGUARD_KILL_SEED", "20261124"))
LADDER_SHARE = 0.25
"""Of the rounds: the version before the bad one is bad as well."""
ONCE = (
    "incident_opened",
    "rollback_started",
    "target_selected",
    "rollback_finished",
    "incident_closed",
    "rollback_closed",
)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_kills_at_random_instants_lose_nothing_and_double_nothing(
    own_server: Server, set_stage: SetStage
) -> None:
    chance = random.Random(SEED)
    compliance = "compliance: {drop_points: 2, baseline: 95}"
    policy = Policy(compliance=compliance, recovery_s=1, deadline_s=600, brakes="{cool_down: 0 s, max_rollbacks: 1000}")
    stage = set_stage(own_server, policy=policy, versions="v0,v1,v2")
    stage.deploy("v1")
    stage.arm()
    clients = stage.send_traffic()
    rounds, kills, hit = 0, 0, Counter[str]()
    while kills < KILLS:
        rounds += 1
        ladder = chance.random() < LADDER_SHARE
        if ladder:
            stage.deploy("v0")
        stage.deploy("v2")
        run_id = stage.force_breach()
        wanted = min(chance.randint(2, 6), KILLS - kills)
        for _ in range(wanted):
            watcher = stage.watch()
            wait_for_instant(stage, run_id, chance, ladder)
            done = stage.done_steps(run_id)
            os.kill(watcher.process.pid, signal.SIGKILL)
            watcher.process.wait(10)
            kills += 1
            hit[done[-1] if done else "not begun"] += 1
            if "close.record" in stage.done_steps(run_id):
                break
        finish(stage, run_id)
        assert_once(stage, run_id, ladder)
        assert_serves_v1(stage, clients)
        for version in ("v2", "v0") if ladder else ("v2",):
            with stage.office() as office:
                checkpoints.release(office, service=SERVICE, version=version, env=ENV, reason="next round", by="test")
    with stage.office(write=False) as office:
        assert reporting.verify_evidence(office).ok
    assert len(stage.runs()) == rounds
    result = {"seed": SEED, "kills": kills, "rollbacks": rounds, "lost": 0, "doubled": 0, "last_step_done": dict(hit)}
    print(json.dumps(result))  # noqa: T201 - what a person who ran it wants to keep
    if os.environ.get("REARGUARD_KILL_RESULT"):
        Path(os.environ["REARGUARD_KILL_RESULT"]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def wait_for_instant(stage: Stage, run_id: str, chance: random.Random, ladder: bool) -> None:
    """Half of the instants are uniform over an officer's first seconds, its start included; the steps before the window
    take but a tenth of a second of these, so the other half lie at random within or just after a random step."""
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0.3, 5.0 if ladder else 3.5))
        return
    notes = chance.randint(1, 29 if ladder else 18)
    after_s = chance.uniform(0, 0.02)
    database = sqlite3.connect(f"file:{stage.state / DATABASE_NAME}?mode=ro", uri=True, timeout=5)
    end_s = time.monotonic() + 8
    with contextlib.closing(database), contextlib.suppress(sqlite3.Error):
        count = "SELECT COUNT(*) FROM operation_outputs WHERE workflow_uuid = ?"
        while database.execute(count, (run_id,)).fetchone()[0] < notes and time.monotonic() < end_s:
            time.sleep(0.002)
    time.sleep(after_s)


def finish(stage: Stage, run_id: str) -> None:
    """One officer that nobody kills."""
    watcher = stage.watch_alive()
    wait_until(lambda: "close.record" in stage.done_steps(run_id), "the run ends", 90)
    assert watcher.end() == 0


def assert_once(stage: Stage, run_id: str, ladder: bool) -> None:
    kinds = stage.kinds(run_id)
    assert {kind: kinds[kind] for kind in ONCE} == dict.fromkeys(ONCE, 1), f"seed {SEED}: {kinds}"
    assert (kinds["traffic_switched"], kinds["rung_lost"]) == ((2, 1) if ladder else (1, 0)), f"seed {SEED}: {kinds}"
    assert next(r for r in stage.runs() if r.id == run_id).state is RunState.SUCCEEDED, f"seed {SEED}"
    assert stage.open_run() is None


def assert_serves_v1(stage: Stage, clients: Clients) -> None:
    ended_ns = time.monotonic_ns()
    wait_until(lambda: len(clients.since(ended_ns)) >= 5, "clients go on")
    assert {(a.status, a.digest) for a in clients.since(ended_ns)} == {(200, stage.digest("v1"))}
