"""The loaded versions of one model: which one answers, which stay warm, and who restarts the dead.

Laws: the pointer moves only to a worker that has answered, and only after the new state is on disk; until then the
old one answers all traffic. Another version never answers in the place of a dead active one: that is a rollback, and
rollbacks are the officer's. Orders are applied one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, replace

from rearguard.errors import ConflictError, NotFoundError, RearguardError
from rearguard.serving.options import ServeOptions
from rearguard.serving.state import LoadOrder, LoadSpec, ServerState, StateFile
from rearguard.serving.workers import Worker, start_worker

_log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
STABLE_AFTER_S = 5.0
"""A worker that lived so long starts again from the first delay; chosen."""
_PING_S = 1.0


class Slot:
    """One loaded version and the process that serves it, if it is up."""

    def __init__(self, spec: LoadSpec, worker: Worker | None) -> None:
        self.spec = spec
        self.worker = worker
        self.reason = ""
        """Why it is down, or empty."""
        self.keeper: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """True while its process is up, loaded and warmed."""
        return self.worker is not None and self.worker.alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a load call did."""

    digest: str
    epoch: int
    warm: bool
    """True when no process had to be started."""


class Fleet:
    """All slots of one server; its methods run on one event loop."""

    def __init__(self, options: ServeOptions, file: StateFile) -> None:
        self._options = options
        self._file = file
        self._state = file.read()
        self._slots: list[Slot] = []
        self._active: Slot | None = None
        self._lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> Slot | None:
        """What answers unversioned requests."""
        return self._active

    @property
    def epoch(self) -> int:
        """Highest epoch seen."""
        return self._state.epoch

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The active one first, then the standbys, newest first."""
        return tuple(reversed(self._slots))

    def find_version(self, version: str) -> Slot | None:
        """The slot of a version label; the active one wins when two carry the same."""
        return next((s for s in self.slots if s.spec.version == version), None)

    def restore(self) -> None:
        """Start again what the state names; answers are 503 until the active worker is ready."""
        for spec in self._state.standby:
            self._slots.append(Slot(spec, None))
        if self._state.active is not None:
            self._active = Slot(self._state.active, None)
            self._slots.append(self._active)
        for slot in reversed(self._slots):
            self._keep(slot)

    async def apply(self, order: LoadOrder) -> Applied:
        """Make `order` the active one; returns once new requests are answered by it.

        Idempotent by key. Raises `ConflictError` (`epoch_stale`), whatever `start_worker` raises (the old one stays
        active), OSError when the state cannot be written (the old one stays active).
        """
        async with self._lock:
            if order.epoch < self._state.epoch:
                raise ConflictError("epoch_stale", f"epoch {order.epoch} is lower than {self._state.epoch}")
            if order.key == self._state.key and self._active is not None:
                return Applied(digest=self._active.spec.digest, epoch=self._state.epoch, warm=True)
            known = next((s for s in self._slots if s.spec.digest == order.spec.digest), None)
            warm = known is not None and await self._is_warm(known, order.spec)
            if known is not None and warm:
                slot = known
            else:
                # The epoch counts as seen before the load begins: a crash in between must not let an older order in.
                await self._remember(replace(self._state, epoch=order.epoch))
                worker = await start_worker(self._options.name, order.spec, self._options.load_timeout_s)
                slot = Slot(order.spec, worker)
            await self._switch(slot, order)
            return Applied(digest=order.spec.digest, epoch=order.epoch, warm=warm)

    async def unload(self, digest: str | None, version: str | None) -> None:
        """Drop a standby. Raises `ConflictError` (`is_active`), `NotFoundError` (`not_loaded`)."""
        async with self._lock:
            if digest is None and version is None:
                raise ConflictError("is_active", "the active version cannot be unloaded")
            matches = [
                s
                for s in self.slots
                if (digest is None or s.spec.digest == digest) and (version is None or s.spec.version == version)
            ]
            if not matches:
                raise NotFoundError("not_loaded", f"{digest or version} is not loaded")
            if matches[0] is self._active:
                raise ConflictError("is_active", f"{matches[0].spec.version} is active and cannot be unloaded")
            rest = tuple(s.spec for s in self._slots if s is not matches[0] and s is not self._active)
            await self._remember(replace(self._state, standby=rest))
            self._slots.remove(matches[0])
            self._retire(matches[0])

    async def close(self) -> None:
        """End every worker."""
        for slot in self._slots:
            await _stop(slot, drain_s=0.0)
        for task in list(self._retiring):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._file.close()

    async def _is_warm(self, slot: Slot, spec: LoadSpec) -> bool:
        # The label is part of every answer of the worker, so another label needs another process.
        if slot.spec.version != spec.version or slot.worker is None:
            return False
        return await slot.worker.answers(_PING_S)

    async def _switch(self, slot: Slot, order: LoadOrder) -> None:
        others = [s for s in self._slots if s is not slot and s.spec.digest != order.spec.digest]
        if self._active in others:
            others.remove(self._active)
            others.append(self._active)
        keep = others[len(others) - min(self._options.standby, len(others)) :]
        # A new one that only loaded (no warm-up was possible) has proven nothing: what answered before stays.
        if not (slot.worker and slot.worker.answered) and self._active in others and self._active not in keep:
            keep.append(self._active)
        await self._remember(
            ServerState(epoch=order.epoch, key=order.key, active=order.spec, standby=tuple(s.spec for s in keep))
        )
        dropped = [s for s in self._slots if s is not slot and s not in keep]
        slot.spec = order.spec
        self._slots = [*keep, slot]
        self._active = slot
        if slot.keeper is None:
            self._keep(slot)
        for old in dropped:
            self._retire(old)
        _log.info("activated version=%s digest=%s epoch=%d", order.spec.version, order.spec.digest, order.epoch)

    async def _remember(self, state: ServerState) -> None:
        if state != self._state:
            await asyncio.to_thread(self._file.write, state)
            self._state = state

    def _keep(self, slot: Slot) -> None:
        slot.keeper = asyncio.create_task(self._keep_alive(slot))

    def _retire(self, slot: Slot) -> None:
        task = asyncio.create_task(_stop(slot, self._options.drain_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _keep_alive(self, slot: Slot) -> None:
        """Restart the slot's worker whenever it is gone: 0.1 s later, then twice as long each time up to 5 s."""
        loop = asyncio.get_running_loop()
        delay_s = 0.0 if slot.worker is None else FIRST_DELAY_S
        while True:
            if slot.worker is not None:
                up_at = loop.time()
                await slot.worker.gone.wait()
                slot.reason = "the worker died"
                _log.warning("worker_died version=%s pid=%d", slot.spec.version, slot.worker.pid)
                slot.worker = None
                if loop.time() - up_at >= STABLE_AFTER_S:
                    delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(max(2 * delay_s, FIRST_DELAY_S), LONGEST_DELAY_S)
            try:
                slot.worker = await start_worker(self._options.name, slot.spec, self._options.load_timeout_s)
            except RearguardError as error:
                slot.reason = str(error)
                _log.warning("worker_not_started version=%s reason=%s", slot.spec.version, error)
            else:
                slot.reason = ""
                _log.info("worker_started version=%s pid=%d", slot.spec.version, slot.worker.pid)


async def _stop(slot: Slot, drain_s: float) -> None:
    """End the keeper first, so that nothing restarts what is about to end; then the worker."""
    if slot.keeper is not None:
        slot.keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await slot.keeper
    worker, slot.worker = slot.worker, None
    if worker is None:
        return
    try:
        await worker.retire(drain_s)
    finally:
        worker.kill()
