"""The loaded versions of a server in this process: real workers, a disk that can be made to wait, a clock that is set.

What is loaded is an ONNX sample of onnxruntime. Only processes started here are ended, by their ids.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from rearguard.model.service import Digest
from rearguard.serving.fleet import SUPERVISE_EVERY_S, Fleet
from rearguard.serving.options import ServeOptions
from rearguard.serving.state import LoadOrder, LoadSpec, ServerState, StateFile

SAMPLE = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
WARMUP = {"inputs": [{"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [1] * 6}]}


class SetClock(asyncio.SelectorEventLoop):
    """An event loop whose time goes on only when a test says so."""

    now_s = 0.0

    def time(self) -> float:
        """Seconds since the beginning."""
        return self.now_s


class SlowFile(StateFile):
    """A state file on a disk that can be made to wait."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.began = threading.Event()
        """Set by the next write."""
        self.let = threading.Event()
        """While it is not set a write waits."""
        self.let.set()

    def write(self, state: ServerState) -> None:
        """Once it may."""
        self.began.set()
        assert self.let.wait(20)
        super().write(state)


class Bench:
    """A fleet with v1 as the warm standby of v2."""

    def __init__(self, loop: SetClock, folder: Path, standby_memory_mib: int | None) -> None:
        self._loop = loop
        self._model = folder / "model"
        self._model.mkdir()
        shutil.copy(SAMPLE, self._model / "model.onnx")
        self.file = SlowFile(folder / "state")
        options = ServeOptions(
            name="m",
            service="credit",
            env="prod",
            host="127.0.0.1",
            port=0,
            log=folder / "requests.jsonl",
            state_dir=folder / "state",
            standby_memory_mib=standby_memory_mib,
        )
        self.fleet = Fleet(options, self.file)

    async def begin(self) -> None:
        """Both are loaded."""
        self.fleet.restore()
        await self.fleet.apply(self.order("1", 1))
        await self.fleet.apply(self.order("2", 2))

    def order(self, digit: str, epoch: int, **changes: Any) -> LoadOrder:
        """To serve the sample under the version `digit`."""
        spec = LoadSpec(
            digest=Digest("sha256:" + digit * 64),
            version=f"v{digit}",
            format="onnx",
            path=str(self._model),
            trusted_types=(),
            warmup=WARMUP,
        )
        return LoadOrder(spec=spec, epoch=epoch, key=f"key-{epoch}", **changes)

    async def order_on_a_slow_disk(self, order: LoadOrder) -> asyncio.Task[Any]:
        """An order that waits for the disk."""
        self.file.began.clear()
        self.file.let.clear()
        ordered = asyncio.create_task(self.fleet.apply(order))
        assert await asyncio.to_thread(self.file.began.wait, 20)
        return ordered

    async def turn(self, seconds: float) -> None:
        """The clock goes on, and everything that is due by then is done."""
        self._loop.now_s += seconds
        for _ in range(20):
            await asyncio.sleep(0)

    async def wait_until(self, claim: Callable[[], bool], step_s: float = 0.0) -> None:
        """Until `claim` is true; between two looks the clock goes on by `step_s`."""
        for _ in range(1000):
            if claim():
                return
            await self.turn(step_s)
            await asyncio.to_thread(threading.Event().wait, 0.01)
        raise AssertionError("not within 10 s")


Play = Callable[[Bench], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """`play(scene)`: the scene with a fleet that has begun, ended afterwards."""

    async def whole(scene: Play, standby_memory_mib: int | None) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SetClock)
        bench = Bench(loop, tmp_path, standby_memory_mib)
        try:
            await bench.begin()
            await scene(bench)
        finally:
            bench.file.let.set()
            await bench.fleet.close()

    def run(scene: Play, standby_memory_mib: int | None = None) -> None:
        with asyncio.Runner(loop_factory=SetClock) as runner:
            runner.run(whole(scene, standby_memory_mib))

    return run


def test_a_standby_above_its_limit_is_not_ended_while_an_order_switches_to_it(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        ordered = await bench.order_on_a_slow_disk(bench.order("1", 3))
        await bench.turn(SUPERVISE_EVERY_S)
        bench.file.let.set()
        await ordered
        await bench.turn(0.0)
        active = bench.fleet.active
        assert active is not None
        assert (active.spec.version, active.ready) == ("v1", True)

    play(scene, standby_memory_mib=1)


def test_a_standby_that_dies_while_an_order_switches_to_it_is_started_again(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        (standby,) = (slot for slot in bench.fleet.slots if slot is not bench.fleet.active)
        assert standby.worker is not None
        ordered = await bench.order_on_a_slow_disk(bench.order("1", 3))
        os.kill(standby.worker.pid, signal.SIGKILL)
        await bench.wait_until(lambda: standby.worker is None)
        await bench.turn(1.0)
        bench.file.let.set()
        await ordered
        assert bench.fleet.active is standby
        await bench.wait_until(lambda: standby.ready, step_s=0.2)

    play(scene)
