"""Does the registry stay quick with ten thousand checkpoints of one service, and as many deployments?

Four things are timed in this process, on a state directory of its own for each size: register one more checkpoint (a row and its
record, committed), look up the best rollback target, export `checkpoint_registry.yaml`, and read and compare such a file
as an import does before it asks. The sizes take turns within each round, so that load on a shared machine hits them all.
Beside them PyYAML writes the same document, with its own emitter and with the one in C. Goal: the look-up at the
largest size takes at most twice as long as at 1,000 (below 16 targets it has less to load, so ten are no measure).

    python benchmarks/registry.py [--rounds 7] [--reads 7]
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from _record import ROOT, record
from rearguard.checkpoints import registry, registry_file
from rearguard.checkpoints.registry_reading import read_registry_file
from rearguard.database import Database, open_database, sql
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint, CheckpointFile, CheckpointPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.recovery.candidates import candidates
from rearguard.rules.registry_import import Held, Known, compare

SIZES = (10, 1_000, 10_000)
GOAL = 2.0
FEWEST_ROUNDS = 7
LOOKS = 20
"""Look-ups a round; the median of all counts."""
PLACE = Place(service="fraud", env="prod")
NOW = Instant(wall_ns=1_800_000_000 * 10**9, mono_ns=10**15, boot_id="boot")


def checkpoint(number: int) -> Checkpoint:
    """A checkpoint of three files; the bytes are nowhere, nothing here reads them."""

    def sha256(what: str) -> str:
        return hashlib.sha256(f"{what} {number}".encode()).hexdigest()

    digest = Digest(f"sha256:{sha256('digest')}")
    files = tuple(
        CheckpointFile(path=name, sha256=sha256(name), size_bytes=1_000_000 + number)
        for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    )
    return Checkpoint(
        digest=digest,
        service=PLACE.service,
        version=f"2027.{number}",
        format="onnx",
        files=files,
        golden_sha256=sha256("golden"),
        added_at=NOW,
        verified_at=None,
        load_ms=None,
        failure="",
        oci_manifest=digest,
    )


class Stage:
    """A state directory with so many proven checkpoints, each deployed once, the last one active."""

    def __init__(self, folder: Path, size: int) -> None:
        self.state = folder / str(size)
        self.database: Database = open_database(self.state)
        self.added = size
        with self.database.transaction() as connection:
            for number in range(size):
                one = checkpoint(number)
                registry.insert(connection, one)
                connection.execute(
                    sql(
                        "UPDATE checkpoints SET verified_at = :at, load_ms = 41, verified_record = 1 WHERE digest = :digest"
                    ),
                    {"at": registry.encode_instant(NOW), "digest": one.digest},
                )
                connection.execute(
                    sql(
                        "INSERT INTO deployments (service, env, digest, version, source, state, started_at) "
                        "VALUES (:service, :env, :digest, :version, 'benchmark', :state, :at)"
                    ),
                    {
                        "service": PLACE.service,
                        "env": PLACE.env,
                        "digest": one.digest,
                        "version": one.version,
                        "state": "active" if number == size - 1 else "ended",
                        "at": registry.encode_instant(NOW),
                    },
                )
        self.active = checkpoint(size - 1).digest
        self.handed = self.state / "handed.yaml"
        self.handed.write_bytes(registry_file.render(self.document()))

    def document(self) -> dict[str, Any]:
        """What an export says."""
        with self.database.reading() as connection:
            found: dict[str, Any] = registry_file.document(connection)
        return found

    def add(self) -> None:
        """Register one more, as `checkpoint add` does once the bytes are in."""
        one = checkpoint(self.added)
        self.added += 1
        with self.database.transaction() as connection:
            registry.insert(connection, one)
            append(connection, now=NOW, kind="checkpoint_added", body={"digest": one.digest}, run_id="run_benchmark")

    def look_up(self) -> None:
        """The best target; it must be the one that served before the active one."""
        with self.database.reading() as connection:
            found = candidates(connection, PLACE, active=self.active, policy=CheckpointPolicy(), now=NOW).candidates
        served = int(found[0].checkpoint.version.partition(".")[2])
        if checkpoint(served + 1).digest != self.active:
            sys.exit(f"the look-up found {found[0].checkpoint.version}")

    def export(self) -> None:
        """Write the file; the one before is taken away, as an equal one is not written again."""
        (self.state / registry_file.EXPORT_NAME).unlink(missing_ok=True)
        registry_file.export(self.database, self.state)

    def compare(self) -> None:
        """Read a file that says what is registered, and find no difference."""
        listed = read_registry_file(self.handed)
        with self.database.reading() as connection:
            known = Known(
                checkpoints={c.digest: c for c in registry.list_all(connection)},
                retired={},
                held=frozenset[Held](),
                services=frozenset({PLACE.service}),
            )
        found = compare(listed, known)
        if found.changes or found.refusals:
            sys.exit("the file differs from what it was written from")


def run_ms(work: Callable[[], object]) -> float:
    """Wall milliseconds of one call."""
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1e6


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and greatest value, and how many there are."""
    return {
        "min": round(min(values), 3),
        "median": round(median(values), 3),
        "max": round(max(values), 3),
        "n": len(values),
    }


def dumps(document: dict[str, Any], dumper: type) -> Callable[[], object]:
    """PyYAML writing the same document."""
    return lambda: yaml.dump(document, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)


def measure(stages: dict[int, Stage], rounds: int, reads: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds by what was done and by size."""
    found: dict[str, dict[int, list[float]]] = {}

    def note(what: str, size: int, work: Callable[[], object]) -> None:
        found.setdefault(what, {}).setdefault(size, []).append(run_ms(work))

    for stage in stages.values():
        stage.look_up()  # once unmeasured
        stage.export()
    for number in range(rounds):
        for size, stage in list(stages.items())[:: 1 if number % 2 else -1]:
            for _ in range(LOOKS):
                note("look_up", size, stage.look_up)
            note("export", size, stage.export)
            document = stage.document()
            note("render", size, lambda document=document: registry_file.render(document))  # type: ignore[misc]
            note("pyyaml_c_dump", size, dumps(document, yaml.CSafeDumper))
            note("pyyaml_dump", size, dumps(document, yaml.SafeDumper))
            if number < reads:
                note("import_compare", size, stage.compare)
            note("add", size, stage.add)
    return found


def main() -> None:
    """Measure, write the JSON, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS, help=f"at least {FEWEST_ROUNDS}")
    parser.add_argument("--reads", type=int, default=FEWEST_ROUNDS, help="rounds that read a file; the slowest part")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.reads) < FEWEST_ROUNDS:
        parser.error(f"--rounds and --reads must be at least {FEWEST_ROUNDS}")
    folder = Path(tempfile.mkdtemp())
    try:
        stages = {size: Stage(folder, size) for size in SIZES}
        found = measure(stages, arguments.rounds, arguments.reads)
        sizes_bytes = {size: stage.handed.stat().st_size for size, stage in stages.items()}
    finally:
        shutil.rmtree(folder)
    middle = {what: {size: median(values) for size, values in of.items()} for what, of in found.items()}
    largest = SIZES[-1]
    flat = middle["look_up"][largest] / middle["look_up"][1_000]
    answer = {
        "checkpoints": list(SIZES),
        "deployments": list(SIZES),
        "file_bytes": {str(size): count for size, count in sizes_bytes.items()},
        "ms": {what: {str(size): spread(values) for size, values in of.items()} for what, of in found.items()},
        "ratio_to_the_smallest": {
            what: {str(size): round(value / of[SIZES[0]], 2) for size, value in of.items()}
            for what, of in middle.items()
        },
        "look_up_10000_to_1000": round(flat, 2),
        "pyyaml_to_ours_at_10000": {
            "c": round(middle["pyyaml_c_dump"][largest] / middle["render"][largest], 1),
            "python": round(middle["pyyaml_dump"][largest] / middle["render"][largest], 1),
        },
        "goal_look_up_10000_to_1000": GOAL,
        "met": flat <= GOAL,
    }
    path = record("registry", "Does the registry stay quick with ten thousand checkpoints of one service?", answer)
    for what, of in middle.items():
        print(f"{what:<16}" + "".join(f"{of[size]:>12.2f} ms" for size in SIZES))
    print(f"look-up at 10,000 to 1,000: {flat:.2f}; goal <= {GOAL:g}: {'met' if answer['met'] else 'missed'}")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
