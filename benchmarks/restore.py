"""How long until a restored model can be mapped by its server, beside backup tools and plain copies of the same bytes?

A model of four equal shards of random bytes, of several sizes. Ours lies in a content store, with the view that was built when it was
registered; each peer has the same files in a repository or a folder of its own, on the same disk. What is timed:

- *flip*: what a rollback of a checkpoint with a stat receipt does, whatever the size: ask the kernel whether the blobs are what
  was proven, look at the view, and move the link that the server reads through (`command_link`, the sync of its folder
  included). Goal: the median at the largest size at most twice that at the smallest;
- *verified*: the same with every byte read and hashed first. Then each shard is mapped at its served path and a byte of every page is
  read, which is what a loader of weights does. Goal: ahead of every verified peer, in the median within a round, at every size;
- the peers, each with the start of its process, and then mapped in the same way: `restic restore` and `borg extract` check what
  they write against their own hashes; `cp -a` and a full hash of the copy; `rsync -a` and `cp -a` check nothing.

Every side starts with its source in the page cache and, but for ours, writes into a folder that is new. Sides are run in
turns, the order rotated each round, so that load on a shared machine hits all of them.

    python benchmarks/restore.py [--sizes-mb 10,100,1024,4096] [--rounds 5] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _record import ROOT, record
from cli_start import spread
from rearguard.adapters.targets.command_link import ModelLink
from rearguard.checkpoints import hashing
from rearguard.checkpoints.store import ContentStore, SourceFile
from rearguard.model.service import Digest, Place
from rearguard.ports import Activation

QUESTION = "How long until a restored model can be mapped by its server, beside backup tools and plain copies?"
SHARDS = 4
MIB = 1 << 20
FLIPS = 101
FEWEST_ROUNDS = 3
FLIP_GROWTH_GOAL = 2.0
DIGEST = Digest("sha256:" + "a" * 64)
PASSWORD = "benchmark"
VERIFIED = ("restic_restore", "borg_extract", "cp_then_hash")
UNVERIFIED = ("rsync", "cp")
PROGRAMS = {"restic_restore": "restic", "borg_extract": "borg", "cp_then_hash": "cp", "rsync": "rsync", "cp": "cp"}


class Stage:
    """The model in our store and at each peer."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir()
        self.store = ContentStore(folder / "state")
        files = []
        for number in range(SHARDS):
            shard = self.source / f"model-{number}.safetensors"
            with shard.open("wb") as writer:
                left = size_mb * MIB // SHARDS
                while left:
                    left -= writer.write(os.urandom(min(MIB, left)))
            files.append(self.store.put_file(SourceFile(path=shard.name, source=shard)))
        self.files = tuple(files)
        self.hashes = {file.path: file.sha256 for file in files}
        self.view = self.store.view(DIGEST, self.files)
        self.receipt = self.store.receipt(self.files)
        self.served = folder / "current"
        self.link = ModelLink(Place(service="benchmark", env="here"), self.served)
        self.epoch = 0
        self.environment = {
            **os.environ,
            "RESTIC_PASSWORD": PASSWORD,
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self.environment |= {"BORG_BASE_DIR": str(folder), "RESTIC_CACHE_DIR": str(folder / "restic-cache")}

    def run(self, *words: str, cwd: Path | None = None) -> None:
        """A process that must succeed."""
        subprocess.run(
            words, check=True, cwd=cwd, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stock(self, peers: list[str]) -> None:
        """Give the backup tools their copy."""
        if "restic_restore" in peers:
            self.run("restic", "-r", str(self.folder / "restic"), "init")
            self.run("restic", "-r", str(self.folder / "restic"), "backup", ".", cwd=self.source)
        if "borg_extract" in peers:
            self.run("borg", "init", "-e", "none", str(self.folder / "borg"))
            self.run("borg", "create", f"{self.folder / 'borg'}::v1", ".", cwd=self.source)

    def flip(self) -> None:
        """What is left to do of a restore when the proof stands."""
        if self.store.receipt(self.files) != self.receipt:
            raise SystemExit("the receipt does not stand")
        folder = self.store.view(DIGEST, self.files)
        self.epoch += 1
        # To and fro: a link that leads there already would not be moved.
        path = folder if self.epoch % 2 else folder.parent
        order = Activation(
            digest=DIGEST, version="v1", format="safetensors", path=str(path), trusted_types=(), epoch=self.epoch,
            key=f"run_{self.epoch}:activate", timeout_s=1.0,
        )  # fmt: skip
        self.link.flip(order)

    def verified(self) -> None:
        """Every byte, then the flip."""
        hashing.prove(self.store.blobs_of(self.files))
        self.flip()
        if self.served.readlink() != self.view:
            self.flip()
        self.map(self.served)

    def peer(self, name: str, target: Path) -> Callable[[], None]:
        """A restore by somebody else into `target`, and the same mapping."""
        words = {
            "restic_restore": (
                "restic",
                "-r",
                str(self.folder / "restic"),
                "restore",
                "latest",
                "--target",
                str(target),
            ),
            "borg_extract": ("borg", "extract", f"{self.folder / 'borg'}::v1"),
            "cp_then_hash": ("cp", "-a", f"{self.source}/.", str(target)),
            "rsync": ("rsync", "-a", f"{self.source}/", str(target)),
            "cp": ("cp", "-a", f"{self.source}/.", str(target)),
        }[name]

        def act() -> None:
            self.run(*words, cwd=target)
            if name == "cp_then_hash":
                hashing.prove(
                    hashing.Blob(name=f.path, path=target / f.path, sha256=f.sha256, size_bytes=f.size_bytes)
                    for f in self.files
                )
            self.map(target)

        return act

    def map(self, folder: Path) -> None:
        """Read a byte of every page of every shard, through a map."""
        for file in self.files:
            with (
                (folder / file.path).open("rb") as reader,
                mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ) as pages,
            ):
                pages.madvise(mmap.MADV_WILLNEED)
                sum(pages[:: mmap.PAGESIZE])

    def warm(self) -> None:
        """Everything that a side reads from lies in the page cache, and nothing waits to be written."""
        os.sync()
        for place in (self.source, self.store.blobs, self.folder / "restic", self.folder / "borg"):
            for path in sorted(place.rglob("*")) if place.exists() else ():
                if path.is_file():
                    with path.open("rb") as reader:
                        while reader.read(MIB):
                            pass


def seconds(act: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter_ns()
    act()
    return (time.perf_counter_ns() - start) / 1e9


def measure(stage: Stage, peers: list[str], rounds: int) -> dict[str, list[float]]:
    """All runs of one size, by name."""
    stage.stock(peers)
    kept: dict[str, list[float]] = {"flip": [seconds(stage.flip) for _ in range(FLIPS)]}
    names = ["verified", *peers]
    for number in range(rounds):
        stage.warm()
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            target = stage.folder / "target"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            kept.setdefault(name, []).append(
                seconds(stage.verified if name == "verified" else stage.peer(name, target))
            )
            shutil.rmtree(target)
            os.sync()
    return kept


def summary(by_size: dict[int, dict[str, list[float]]]) -> dict[str, Any]:
    """Times, ratios within each round, and whether the goals are met."""
    found = {}
    ahead = True
    for size_mb, kept in by_size.items():
        ratios = {
            name: spread([theirs / ours for theirs, ours in zip(times, kept["verified"], strict=True)], 2)
            for name, times in kept.items()
            if name not in ("flip", "verified")
        }
        ahead = ahead and all(ratios[name]["median"] > 1 for name in VERIFIED if name in ratios)
        found[str(size_mb)] = {
            "flip_ms": spread([t * 1e3 for t in kept["flip"]], 3),
            "seconds": {name: spread(times, 3) for name, times in kept.items() if name != "flip"},
            "times_as_long_as_ours_verified": ratios,
        }
    flips = [median(kept["flip"]) for _, kept in sorted(by_size.items())]
    growth = round(flips[-1] / flips[0], 2)
    return {
        "by_size_mb": found,
        "flip_growth": growth,
        "goal_flip_growth": FLIP_GROWTH_GOAL,
        "met": {"flip": growth <= FLIP_GROWTH_GOAL, "verified": ahead},
    }


def main() -> None:
    """Measure, write the JSON, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes-mb", default="10,100,1024,4096", help="MiB of the whole model, smallest first")
    parser.add_argument("--rounds", type=int, default=5, help=f"at least {FEWEST_ROUNDS}")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the temporary one")
    words = parser.parse_args()
    sizes = sorted(int(word) for word in words.sizes_mb.split(","))
    if words.rounds < FEWEST_ROUNDS or sizes[0] < SHARDS:
        parser.error(f"--rounds must be at least {FEWEST_ROUNDS}, a size at least {SHARDS}")
    peers = [name for name in (*VERIFIED, *UNVERIFIED) if shutil.which(PROGRAMS[name])]
    by_size = {}
    for size_mb in sizes:
        with tempfile.TemporaryDirectory(dir=words.folder) as made:
            by_size[size_mb] = measure(Stage(Path(made), size_mb), peers, words.rounds)
    left_out = [name for name in (*VERIFIED, *UNVERIFIED) if name not in peers]
    answer = {"shards": SHARDS, "rounds": words.rounds, "flips": FLIPS, "left_out": left_out, **summary(by_size)}
    path = record("restore", QUESTION, answer)
    for size, found in answer["by_size_mb"].items():
        times = ", ".join(f"{name} {t['median']:.2f} s" for name, t in found["seconds"].items())
        print(f"{size:>5} MiB: flip {found['flip_ms']['median']:.2f} ms, {times}")
    print(f"flip grows {answer['flip_growth']} times; goals met: {answer['met']}")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
