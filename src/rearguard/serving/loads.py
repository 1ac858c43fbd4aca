"""Loads that are under way, shared by everybody who wants the same version.

A load takes seconds and holds no lock. Law: a worker that nobody took is ended when the last who waited for it leaves,
so a load that comes too late leaves no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from rearguard.serving.state import LoadSpec
from rearguard.serving.workers import Worker


@dataclass(slots=True)
class Load:
    """One load; `worker` is there once it has ended well."""

    spec: LoadSpec
    task: asyncio.Task[Worker]
    waiting: int = 0
    taken: bool = False
    """True once a slot holds the worker; whoever sets it looked that it was False, without waiting in between."""

    @property
    def worker(self) -> Worker:
        """The loaded worker; whatever the load raised."""
        return self.task.result()


class Loads:
    """All loads of one server; its methods run on one event loop."""

    def __init__(self, start: Callable[[LoadSpec], Awaitable[Worker]]) -> None:
        self._start = start
        self._under_way: list[Load] = []

    def find(self, spec: LoadSpec) -> Load | None:
        """The load of the same digest under the same label that is under way."""
        wanted = (spec.digest, spec.version)
        return next((load for load in self._under_way if (load.spec.digest, load.spec.version) == wanted), None)

    @contextlib.asynccontextmanager
    async def join(self, spec: LoadSpec) -> AsyncIterator[Load]:
        """Begin a load, or join the one that is under way; the body runs once it has ended. Raises as `start_worker`."""
        load = self.find(spec)
        if load is None:
            load = Load(spec, asyncio.create_task(self._run(spec)))
            self._under_way.append(load)
        load.waiting += 1
        try:
            # Shielded: one who gives up must not end the load for the others.
            await asyncio.shield(load.task)
            yield load
        finally:
            load.waiting -= 1
            if load.waiting == 0:
                await self._leave(load)

    async def _run(self, spec: LoadSpec) -> Worker:
        return await self._start(spec)

    async def _leave(self, load: Load) -> None:
        self._under_way.remove(load)
        if not load.task.done():
            load.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await load.task
        elif not load.taken and not load.task.cancelled() and load.task.exception() is None:
            await load.worker.end()
