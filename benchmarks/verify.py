"""How fast is every byte of a sharded model verified, beside what the machine and other tools can do?

A model of four equal shards of random bytes lies in a content store. Our side is `verification.check_bytes`, what a
rollback and `checkpoint verify` do with the bytes. Everything is measured in one run, in turns:

- hot, the pages cached: ours and as many bare threads, each with `hashlib.file_digest` over one shard, as a pair whose order is
  swapped each time; the ratio is taken within a pair. Goal: a median of at least 0.9 of the bare threads' rate;
- cold, the shards' pages dropped before each: ours through the page cache, and past it as the background scrub reads. The
  limit is the smaller of the disk's rate and the bare threads' of the same turn. The disk's is the better of two that only
  read: sixteen threads with O_DIRECT and 1 MiB, and a thread a shard through the page cache; on some virtual disks the
  first is the slower one. Goal: a median of at least 0.6 of it for the first;
- the peers, which check one file after the other: `openssl dgst -sha256`, the platform's `sha256sum`, and `model-signing`
  (given the Python of an environment that has it and pyopenssl), each with the start of its process, as is ours
  in a row of its own.

How much really came from the disk is read from the kernel's count for this process. CPU seconds are user and system.

    python benchmarks/verify.py [--size-mb 4096] [--pairs 7] [--model-signing PYTHON] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from _record import ROOT, record
from cli_start import spread
from rearguard.checkpoints import hashing, verification
from rearguard.checkpoints.store import ContentStore, SourceFile
from rearguard.edge import SystemClock
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest

QUESTION = "How fast is every byte of a sharded model verified, beside what the machine and other tools can do?"
SHARDS = 4
FEWEST_PAIRS = 7
PEER_ROUNDS = 3
"""Of the peers, some of which take ten times as long."""
HOT_GOAL = 0.9
COLD_GOAL = 0.6
BLOCK = 1 << 20
DISK_READERS = 16
DIRECT = hashing.Reading(mode=hashing.HashMode.DIRECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run took."""

    wall_s: float
    cpu_s: float
    disk_bytes: int
    """Read from the disk by this process; its children's are not counted."""


def cpu_s(who: int) -> float:
    """User and system seconds so far."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def disk_bytes() -> int:
    """What the kernel fetched from the disk for this process so far."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("read_bytes:"):
            return int(line.partition(":")[2])
    return 0


def cost(act: Callable[[], object]) -> Cost:
    """Run once, children included."""
    before = cpu_s(resource.RUSAGE_SELF) + cpu_s(resource.RUSAGE_CHILDREN)
    fetched, start = disk_bytes(), time.perf_counter_ns()
    act()
    wall_s = (time.perf_counter_ns() - start) / 1e9
    after = cpu_s(resource.RUSAGE_SELF) + cpu_s(resource.RUSAGE_CHILDREN)
    return Cost(wall_s=wall_s, cpu_s=after - before, disk_bytes=disk_bytes() - fetched)


class Model:
    """Four shards in a content store."""

    def __init__(self, state: Path, size_bytes: int) -> None:
        state.mkdir()
        self.store = ContentStore(state)
        self.clock = SystemClock()
        files = []
        for number in range(SHARDS):
            source = state / f"shard-{number}"
            with source.open("wb") as writer:
                for _ in range(size_bytes // SHARDS // BLOCK):
                    writer.write(os.urandom(BLOCK))
            files.append(self.store.put_file(SourceFile(path=f"model-{number}.safetensors", source=source)))
            source.unlink()
        self.checkpoint = Checkpoint(
            digest=Digest("sha256:" + "0" * 64),
            service="benchmark",
            version="v1",
            format="safetensors",
            files=tuple(files),
            golden_sha256=self.store.put_bytes(b"{}"),
            added_at=self.clock.now(),
            verified_at=None,
            load_ms=None,
            failure="",
        )
        self.paths = [self.store.blobs / file.sha256 for file in files]

    def ours(self, reading: hashing.Reading = hashing.AT_ONCE) -> None:
        """What is measured."""
        verification.check_bytes(self.checkpoint, self.store, self.clock, reading)

    def each(self, act: Callable[[Path], object], count: int = SHARDS) -> None:
        """A bare thread a shard."""
        threads = [threading.Thread(target=act, args=(path,)) for path in self.paths[:count]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def drop(self) -> None:
        """No page of a shard stays cached."""
        for path in self.paths:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)

    def warm(self) -> None:
        """Every page of every shard is cached."""
        self.each(bare)


def bare(path: Path) -> None:
    """Read and hash, nothing else."""
    with path.open("rb") as reader:
        hashlib.file_digest(reader, "sha256").hexdigest()


def read_direct(paths: Sequence[Path]) -> None:
    """Read past the page cache, nothing else."""
    handles = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
    size = max(path.stat().st_size for path in paths)
    places = iter([(handle, offset) for offset in range(0, size, BLOCK) for handle in handles])
    lock = threading.Lock()

    def work() -> None:
        with mmap.mmap(-1, BLOCK) as block:
            while True:
                with lock:
                    place = next(places, None)
                if place is None:
                    return
                os.preadv(place[0], [block], place[1])

    threads = [threading.Thread(target=work) for _ in range(DISK_READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        os.close(handle)


def read_buffered(path: Path) -> None:
    """Read through the page cache, nothing else."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = bytearray(hashing.BUFFER_BYTES)
    while os.readv(handle, [buffer]):
        pass
    os.close(handle)


def run(words: Sequence[str]) -> Callable[[], None]:
    """A process that must succeed."""

    def act() -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return act


OURS = """
import sys
from pathlib import Path
from rearguard.checkpoints import hashing
paths = [Path(word) for word in sys.argv[1:]]
hashing.prove([hashing.Blob(name=p.name, path=p, sha256=p.name, size_bytes=p.stat().st_size) for p in paths])
"""


def peers(model: Model, folder: Path, model_signing: str | None) -> tuple[dict[str, list[str]], list[str]]:
    """By name the command that checks the shards, ours as a process among them; and the names of those left out."""
    shards = [str(path) for path in model.paths]
    found = {"rearguard_process": [sys.executable, "-c", OURS, *shards]}
    left_out = []
    for name, words in {"openssl_dgst": ["openssl", "dgst", "-sha256"], "sha256sum": ["sha256sum"]}.items():
        if shutil.which(words[0]):
            found[name] = [*words, *shards]
        else:
            left_out.append(name)
    if model_signing is None:
        return found, [*left_out, "model_signing"]
    key, public, signature = folder / "key.pem", folder / "public.pem", folder / "model.sig"
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)])()
    run(["openssl", "ec", "-in", str(key), "-pubout", "-out", str(public)])()
    signer, blobs = [model_signing, "-m", "model_signing"], str(model.store.blobs)
    run([*signer, "sign", "key", "--private_key", str(key), "--signature", str(signature), blobs])()
    found["model_signing"] = [
        *signer,
        *("verify", "key", "--public_key", str(public), "--signature", str(signature), blobs),
    ]
    return found, left_out


def measure(model: Model, commands: dict[str, list[str]], pairs: int) -> dict[str, list[Cost]]:
    """All runs, by name."""
    kept: dict[str, list[Cost]] = {}

    def note(name: str, act: Callable[[], object]) -> None:
        kept.setdefault(name, []).append(cost(act))

    sides = [("ours_hot", model.ours), ("bare_hot", lambda: model.each(bare))]
    for number in range(pairs):
        model.warm()
        for name, act in sides if number % 2 else reversed(sides):
            note(name, act)
        for name, act in (
            ("ours_cold", model.ours),
            ("ours_cold_direct", lambda: model.ours(DIRECT)),
            ("bare_cold", lambda: model.each(bare)),
            ("disk_direct", lambda: read_direct(model.paths)),
            ("disk_buffered", lambda: model.each(read_buffered)),
        ):
            model.drop()
            note(name, act)
        if number < PEER_ROUNDS:
            for name, words in commands.items():
                model.warm()
                note(f"{name}_hot", run(words))
                model.drop()
                note(f"{name}_cold", run(words))
    return kept


def summary(kept: dict[str, list[Cost]], size_bytes: int) -> dict[str, Any]:
    """Rates in GB/s, CPU seconds, and the two ratios."""
    figures = {
        name: {
            "gb_s": spread([size_bytes / 1e9 / c.wall_s for c in costs], 3),
            "wall_s": spread([c.wall_s for c in costs], 3),
            "cpu_s": spread([c.cpu_s for c in costs], 3),
            "from_disk": round(median(c.disk_bytes for c in costs) / size_bytes, 2),
            "runs": len(costs),
        }
        for name, costs in kept.items()
    }
    for name in figures:
        if name.startswith(("openssl", "sha256sum", "model_signing", "rearguard_process")):
            del figures[name]["from_disk"]  # counted for this process only
    hot = [b.wall_s / o.wall_s for o, b in zip(kept["ours_hot"], kept["bare_hot"], strict=True)]

    def of_limit(name: str) -> list[float]:
        """The limit is a rate, so the smaller one is the longer time."""
        reads = zip(kept["disk_direct"], kept["disk_buffered"], strict=True)
        disk_s = [min(direct.wall_s, buffered.wall_s) for direct, buffered in reads]
        limits = [max(b.wall_s, d) for b, d in zip(kept["bare_hot"], disk_s, strict=True)]
        return [limit / o.wall_s for limit, o in zip(limits, kept[name], strict=True)]

    cold = of_limit("ours_cold")
    return {
        "hot_of_bare_threads": spread(hot, 3),
        "cold_of_smaller_limit": spread(cold, 3),
        "cold_direct_of_smaller_limit": spread(of_limit("ours_cold_direct"), 3),
        "goal_hot_median": HOT_GOAL,
        "goal_cold_median": COLD_GOAL,
        "met": {"hot": median(hot) >= HOT_GOAL, "cold": median(cold) >= COLD_GOAL},
        "figures": figures,
    }


def main() -> None:
    """Measure, write the JSON, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=4096, help="of the whole model, in MiB; a multiple of 4")
    parser.add_argument("--pairs", type=int, default=FEWEST_PAIRS, help=f"at least {FEWEST_PAIRS}")
    parser.add_argument("--model-signing", default=None, metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the temporary one")
    words = parser.parse_args()
    if words.pairs < FEWEST_PAIRS or words.size_mb < SHARDS or words.size_mb % SHARDS:
        parser.error(f"--pairs must be at least {FEWEST_PAIRS}, --size-mb a multiple of {SHARDS}")
    size_bytes = words.size_mb * BLOCK
    with tempfile.TemporaryDirectory(dir=words.folder) as made:
        model = Model(Path(made) / "state", size_bytes)
        commands, left_out = peers(model, Path(made), words.model_signing)
        answer = {
            "size_bytes": size_bytes,
            "shards": SHARDS,
            "pairs": words.pairs,
            "peers_left_out": left_out,
            **summary(measure(model, commands, words.pairs), size_bytes),
        }
    path = record("verify", QUESTION, answer)
    for name, found in answer["figures"].items():
        print(f"{name:26} {found['gb_s']['median']:6.2f} GB/s  {found['cpu_s']['median']:7.2f} CPU-s")
    for name, met in answer["met"].items():
        key = "hot_of_bare_threads" if name == "hot" else "cold_of_smaller_limit"
        print(f"{key} median {answer[key]['median']}: {'met' if met else 'missed'}")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
