"""The loaded versions of a server in this process: real workers, a disk that can be made to wait, a clock that is set.

What is loaded is an ONNX sample of onnxruntime. Only processes started here are ended, by their ids.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from test_model_server import children

from rearguard.model.service import Digest
from rearguard.serving.fleet import NOT_LOADED, SUPERVISE_EVERY_S, Fleet
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
        self._options = ServeOptions(
            name="m",
            service="credit",
            env="prod",
            host="127.0.0.1",
            port=0,
            log=folder / "requests.jsonl",
            state_dir=folder / "state",
            standby_memory_mib=standby_memory_mib,
        )
        self.open()

    def open(self) -> None:
        """A fleet that knows what the one before it wrote."""
        self.file = SlowFile(self._options.state_dir)
        self.fleet = Fleet(self._options, self.file)

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


def test_a_standby_that_died_is_left_as_it_is_and_says_so(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        active, standby = bench.fleet.slots
        assert standby.worker is not None
        assert active.worker is not None
        os.kill(standby.worker.pid, signal.SIGKILL)
        await bench.wait_until(lambda: standby.keeper is not None and standby.keeper.done(), step_s=1.0)
        assert (standby.ready, standby.reason) == (False, "the worker died")
        assert children(os.getpid()) == {active.worker.pid}

    play(scene)


def test_the_standbys_of_a_server_that_begins_again_are_named_and_not_loaded(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.fleet.close()
        bench.open()
        bench.fleet.restore()
        active, standby = bench.fleet.slots
        await bench.wait_until(lambda: active.ready, step_s=1.0)
        assert (standby.spec.version, standby.ready, standby.reason) == ("v1", False, NOT_LOADED)
        await bench.turn(10.0)
        assert active.worker is not None
        assert children(os.getpid()) == {active.worker.pid}

    play(scene)


def test_no_standby_is_loaded_before_the_active_one_is_back(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        await bench.fleet.close()
        bench.open()
        bench.fleet.restore()
        prepared = asyncio.create_task(bench.fleet.prepare(bench.order("1", 2, activate=False)))
        await bench.wait_until(lambda: bench.fleet.slots[0].ready)
        assert len(children(os.getpid())) == 1
        await bench.wait_until(prepared.done, step_s=0.2)
        assert bench.fleet.slots[1].ready

    play(scene)


def test_a_standby_that_is_down_goes_before_an_older_one_that_is_up(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        second, first = bench.fleet.slots
        await bench.fleet.apply(bench.order("3", 3))
        assert first not in bench.fleet.slots
        assert second.worker is not None
        third = bench.fleet.active
        assert third is not None
        assert third.worker is not None
        os.kill(third.worker.pid, signal.SIGKILL)
        await bench.wait_until(lambda: third.worker is None)
        await bench.fleet.apply(bench.order("4", 4))
        assert [slot.spec.version for slot in bench.fleet.slots] == ["v4", "v2"]

    play(scene)


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


def test_the_active_one_is_started_again_when_there_was_no_descriptor_for_its_socket(play: Callable[..., None]) -> None:
    async def scene(bench: Bench) -> None:
        active = bench.fleet.active
        assert active is not None
        assert active.worker is not None
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            os.kill(active.worker.pid, signal.SIGKILL)
            await bench.wait_until(lambda: "open files" in active.reason, step_s=0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        await bench.wait_until(lambda: active.ready, step_s=0.2)

    play(scene)
