"""How much longer than the durable engine's own steps do ours take?

A step of ours is an effect and a record: the look whether this process is still the officer, the fault points, the row of
the attempt when the effect touches something outside, the engine's note of the effect, and one transaction with the check
of the office, a record of the evidence chain, and the engine's note of the step. Beside it stands what the engine alone
does for the same promise: one plain step, then one step of its data source that inserts one row.

Both run in one workflow of one engine on one database file (WAL, synchronous FULL). A pair is a whole list of steps of a
rollback, ours and the engine's, one after the other with the order swapped each time, so that load on a shared machine
hits both; the answer is the ratio within each pair. Effects do nothing, so only what durability costs is measured. Goal: a
median of at most 1.5 on the disk; the same in memory shows the processor's share.

    python benchmarks/step_cost.py [--pairs 41] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from dbos import DBOS

from _record import ROOT, record
from cli_start import spread
from rearguard.database import Connection, open_database, sql
from rearguard.edge import SystemClock
from rearguard.engine.durable import Engine, Steps
from rearguard.evidence.log import append
from rearguard.model.run import Run, RunState
from rearguard.model.service import Digest, Place
from rearguard.recovery.effects import note_attempt
from rearguard.recovery.rollback import STEPS

GOAL = 1.5
FEWEST_PAIRS = 15
QUESTION = "How much longer than the durable engine's own steps do ours take?"
MEMORY = Path("/dev/shm")
"""A file system that costs no sync: what is left is the work of the processor."""
RUN = "run_benchmark0000000"
PLACE = Place(service="fraud", env="prod")
RESULT = {"to_digest": "sha256:" + "0" * 64, "t3": {"wall_ns": 1, "mono_ns": 2, "boot_id": "b"}}
BODY = {"digest": "sha256:" + "0" * 64, "version": "v1", "t4_proof": "full_hash", "unusable": []}


class Bench:
    """The two lists of steps, timed."""

    def __init__(self, state: Path, pairs: int) -> None:
        self.clock = SystemClock()
        self.database = open_database(state)
        self.pairs = pairs
        self.ours_ms: dict[str, list[float]] = {"list": [], "outside": [], "inside": []}
        self.engine_ms: dict[str, list[float]] = {"list": [], "outside": [], "inside": []}
        with self.database.transaction() as connection:
            connection.execute(sql("CREATE TABLE benchmark (id INTEGER PRIMARY KEY, body TEXT NOT NULL)"))
        self.context: Any = SimpleNamespace(database=self.database, clock=self.clock)
        self.run = Run(
            id=RUN,
            place=PLACE,
            incident_id=None,
            from_digest=Digest("sha256:" + "1" * 64),
            to_digest=None,
            state=RunState.RUNNING,
            reason="",
            requested_by="auto",
            requested_at=self.clock.now(),
        )

    def ours(self, steps: Steps, name: str, outside: bool) -> None:
        """One step as a rollback does it."""

        def act() -> dict[str, Any]:
            if outside:
                note_attempt(self.context, self.run, name)
            return RESULT

        def write(connection: Connection) -> dict[str, Any]:
            now = self.clock.now()
            append(connection, now=now, kind="benchmark", body=BODY, place=PLACE, run_id=RUN)
            return {}

        steps.effect(name, act)
        steps.record(name, write)

    def engines(self, steps: Steps, name: str, _outside: bool) -> None:
        """The engine's own two steps, without anything of ours."""
        datasource = steps._datasource

        def write() -> dict[str, Any]:
            connection = datasource.sql_session().connection()
            connection.execute(sql("INSERT INTO benchmark (body) VALUES (:body)"), {"body": str(BODY)})
            return {}

        DBOS.run_step({"name": f"{name}.plain"}, lambda: RESULT)
        datasource.run_tx_step({"name": f"{name}.row"}, write)

    def body(self, steps: Steps, _run_id: str) -> dict[str, Any]:
        """The workflow: one unmeasured pair, then the measured ones."""
        sides = [(self.ours, self.ours_ms), (self.engines, self.engine_ms)]
        for number in range(self.pairs + 1):
            for side, kept in sides if number % 2 else reversed(sides):
                took = self._list(side, steps)
                if number:
                    kept["list"].append(sum(ms for ms, _ in took))
                    kept["outside"].append(median(ms for ms, outside in took if outside))
                    kept["inside"].append(median(ms for ms, outside in took if not outside))
        return {}

    @staticmethod
    def _list(side: Callable[[Steps, str, bool], None], steps: Steps) -> list[tuple[float, bool]]:
        took = []
        for step in STEPS:
            start = time.perf_counter_ns()
            side(steps, step.name, step.outside)
            took.append(((time.perf_counter_ns() - start) / 1e6, step.outside))
        return took


def sync_ms(folder: Path) -> dict[str, float]:
    """What one small append with fdatasync takes there: the disk's share."""
    took = []
    with (folder / "sync").open("ab") as handle:
        for _ in range(51):
            start = time.perf_counter_ns()
            handle.write(b"x" * 4096)
            handle.flush()
            os.fdatasync(handle.fileno())
            took.append((time.perf_counter_ns() - start) / 1e6)
    return spread(took, 2)


def measure(folder: Path | None, pairs: int) -> dict[str, Any]:
    """All figures of one folder's file system."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        bench = Bench(Path(made), pairs)
        engine = Engine(bench.database, Path(made), bench.body, threading.Event(), bench.clock.now)
        engine.start()
        engine.submit(RUN)
        engine.wait(RUN)
        engine.stop()
        disk_ms = sync_ms(Path(made))
        bench.database.close()
    ratios = {
        kind: spread([ours / own for ours, own in zip(bench.ours_ms[kind], bench.engine_ms[kind], strict=True)], 3)
        for kind in bench.ours_ms
    }
    return {
        "ratio": ratios["list"],
        "ratio_outside": ratios["outside"],
        "ratio_inside": ratios["inside"],
        "our_step_ms": spread([ms / len(STEPS) for ms in bench.ours_ms["list"]], 2),
        "engine_step_ms": spread([ms / len(STEPS) for ms in bench.engine_ms["list"]], 2),
        "append_and_fdatasync_4_kib_ms": disk_ms,
    }


def main() -> None:
    """Measure, write the JSON, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=41, help=f"at least {FEWEST_PAIRS}")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the database is made; default: the temporary one"
    )
    words = parser.parse_args()
    if words.pairs < FEWEST_PAIRS:
        parser.error(f"--pairs must be at least {FEWEST_PAIRS}")
    on_disk = measure(words.folder, words.pairs)
    answer = {
        "pairs": words.pairs,
        "steps_in_a_list": len(STEPS),
        "of_which_outside": sum(step.outside for step in STEPS),
        **on_disk,
        "in_memory": measure(MEMORY, words.pairs) if MEMORY.is_dir() else None,
        "goal_ratio_median": GOAL,
        "met": on_disk["ratio"]["median"] <= GOAL,
    }
    path = record("step_cost", QUESTION, answer)
    r, met = on_disk["ratio"], "met" if answer["met"] else "missed"
    print(f"ratio min {r['min']} median {r['median']} max {r['max']} over {words.pairs} pairs; goal <= {GOAL:g}: {met}")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
