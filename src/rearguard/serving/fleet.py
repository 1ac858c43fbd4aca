"""The loaded versions of one model: which one answers, which stay warm, and the restart of the active one.

Laws: the pointer moves only to a worker that has answered, and only after the new state is on disk; until then the
old one answers all traffic. Another version never answers in the place of a dead active one: that is a rollback, and
rollbacks are the officer's. Orders of one epoch are applied one at a time; one of a higher epoch waits for none of a
lower one, and for no standby that is being loaded. A standby never moves traffic and never raises the epoch, and one that
died is loaded again only when somebody asks: what its path leads to by then has to be proven first, and not by a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from rearguard.errors import ConflictError, DependencyError, NotFoundError, RefusedError
from rearguard.serving import memory
from rearguard.serving.loads import Load, Loads
from rearguard.serving.options import ServeOptions
from rearguard.serving.state import LoadOrder, LoadSpec, ServerState, StateFile
from rearguard.serving.workers import Worker, start_worker

_log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
STABLE_AFTER_S = 5.0
"""A worker that lived so long starts again from the first delay; chosen."""
SUPERVISE_EVERY_S = 1.0
SILENT_AFTER_S = 2.0
"""A standby that has not reacted for so long is not ready any more; it is killed after `infer_timeout_s`. Chosen."""
_MIB = 1024 * 1024
_PING_S = 1.0
NOT_LOADED = "it is not loaded; a standby is loaded when it is asked for"


class Slot:
    """One loaded version and the process that serves it, if it is up."""

    def __init__(self, spec: LoadSpec, worker: Worker | None) -> None:
        self.spec = spec
        self.worker = worker
        self.reason = ""
        """Why it is down or silent, or empty."""
        self.keeper: asyncio.Task[None] | None = None
        self.ping: asyncio.Task[bool] | None = None
        self.ping_at = 0.0

    @property
    def ready(self) -> bool:
        """True while its process is up, loaded and warmed, and reacts."""
        return self.worker is not None and self.worker.alive and not self.reason

    @property
    def answered(self) -> bool:
        """True when its living process has answered an inference."""
        return self.worker is not None and self.worker.alive and self.worker.answered

    @property
    def rss_bytes(self) -> int | None:
        """Resident memory of its process; None while it has none."""
        return memory.rss_bytes(self.worker.pid) if self.worker is not None and self.worker.alive else None


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
        self._was_warm = True
        """Of the last applied order, for whoever gives it again."""
        self._lock = asyncio.Lock()
        """Held while slots and state change; never during a load."""
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._preparing = asyncio.Lock()
        self._loads = Loads(lambda spec: start_worker(options.name, spec, options.load_timeout_s))
        self._retiring: set[asyncio.Task[None]] = set()
        self._supervision: asyncio.Task[None] | None = None

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
        """Start the active one again; answers are 503 until it is ready. The standbys are named, and not loaded."""
        for spec in self._state.standby:
            self._slots.append(Slot(spec, None))
            self._slots[-1].reason = NOT_LOADED
        if self._state.active is not None:
            self._active = Slot(self._state.active, None)
            self._slots.append(self._active)
            self._keep(self._active)
        self._supervision = asyncio.create_task(self._supervise())

    async def apply(self, order: LoadOrder) -> Applied:
        """Make `order` the active one; returns once new requests are answered by it.

        Idempotent by key. Raises `ConflictError` (`epoch_stale`; also when a newer order came while this one loaded),
        whatever `start_worker` raises (the old one stays active), OSError when the state cannot be written (likewise).
        """
        turn = self._turns.setdefault(order.epoch, asyncio.Lock())
        async with turn:
            async with self._lock:
                self._refuse_stale(order)
                if order.key == self._state.key and self._active is not None:
                    return self._applied(self._active.spec, warm=self._was_warm)
                known = self._find(order.spec)
                if known is not None and await self._is_warm(known, order.spec):
                    return await self._switch(known, order, warm=True)
                # The epoch counts as seen before the load begins: a crash in between must not let an older order in.
                await self._remember(replace(self._state, epoch=order.epoch))
            async with self._loads.join(order.spec) as load, self._lock:
                self._refuse_stale(order)
                with self._holding(load, order.spec) as slot:
                    return await self._switch(slot, order, warm=False)

    async def prepare(self, order: LoadOrder) -> Applied:
        """Hold `order` loaded beside the active one, proven by an answer; traffic and epoch stay as they are.

        Idempotent by digest. It replaces a standby that is down, else the oldest. Raises as `apply`, and `RefusedError`
        `standby_no_memory`, `standby_no_slot` (the server keeps none) or `standby_unproven` (there is no request that it
        could answer).
        """
        async with self._preparing:
            while self._must_wait():
                await asyncio.sleep(FIRST_DELAY_S)
            async with self._lock:
                self._refuse_stale(order)
                if self._stands(order.spec):
                    return self._applied(order.spec, warm=True)
                if self._options.standby < 1:
                    raise RefusedError("standby_no_slot", "this server keeps no standby", "start it with --standby 1")
                if self._loads.find(order.spec) is None:
                    self._refuse_without_memory(order)
            async with self._loads.join(order.spec) as load, self._lock:
                self._refuse_stale(order)
                if self._stands(order.spec):
                    return self._applied(order.spec, warm=False)
                self._refuse_unfit(order.spec, load.worker)
                with self._holding(load, order.spec) as slot:
                    await self._stand(slot)
                return self._applied(order.spec, warm=False)

    async def unload(self, digest: str | None, version: str | None) -> None:
        """Drop a standby.

        Raises `ConflictError` (`is_active`; `last_healthy`: the active one does not answer, and no other standby does),
        `NotFoundError` (`not_loaded`).
        """
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
            if self._is_last_healthy(matches[0]):
                message = f"{matches[0].spec.version} is the last one that answers, it cannot be unloaded"
                raise ConflictError("last_healthy", message, "try again when the active version answers")
            rest = tuple(s.spec for s in self._slots if s is not matches[0] and s is not self._active)
            await self._remember(replace(self._state, standby=rest))
            self._slots.remove(matches[0])
            self._retire(matches[0])

    async def close(self) -> None:
        """End every worker."""
        await _cancel(self._supervision)
        for slot in self._slots:
            await self._retire(slot, 0.0)
        for task in list(self._retiring):
            await _cancel(task)
        self._file.close()

    def _applied(self, spec: LoadSpec, *, warm: bool) -> Applied:
        return Applied(digest=spec.digest, epoch=self._state.epoch, warm=warm)

    def _find(self, spec: LoadSpec) -> Slot | None:
        return next((s for s in self._slots if s.spec.digest == spec.digest), None)

    def _is_last_healthy(self, slot: Slot) -> bool:
        """True when `slot` has answered and answers, and nothing else of this server does."""
        others = (s for s in self._slots if s is not slot)
        return slot.ready and slot.answered and not any(s.ready and s.answered for s in others)

    def _refuse_stale(self, order: LoadOrder) -> None:
        if order.epoch < self._state.epoch:
            raise ConflictError("epoch_stale", f"epoch {order.epoch} is lower than {self._state.epoch}")

    def _refuse_without_memory(self, order: LoadOrder) -> None:
        available = memory.available_bytes()
        if not memory.enough_for(order.memory_bytes or 0, available):
            raise RefusedError(
                "standby_no_memory",
                f"{order.spec.version} may need {(order.memory_bytes or 0) // _MIB} MiB, and only "
                f"{(available or 0) // _MIB} MiB are available",
                "give the server more memory, or set `standby: false` at the place",
            )

    def _refuse_unfit(self, spec: LoadSpec, worker: Worker) -> None:
        if not worker.answered:
            raise RefusedError("standby_unproven", f"{spec.version} was loaded and has answered no inference")
        above = self._above_limit(memory.rss_bytes(worker.pid))
        if above:
            raise RefusedError("standby_no_memory", f"{spec.version} {above}", "raise --standby-memory-mib")

    def _above_limit(self, rss: int | None) -> str:
        limit_mib = self._options.standby_memory_mib
        if limit_mib is None or rss is None or rss <= limit_mib * _MIB:
            return ""
        return f"takes {rss // _MIB} MiB, above the limit of {limit_mib} MiB for a standby"

    def _stands(self, spec: LoadSpec) -> bool:
        known = self._find(spec)
        if known is not None and known is self._active:
            return True
        return known is not None and known.spec.version == spec.version and known.ready and known.answered

    @contextlib.contextmanager
    def _holding(self, load: Load, spec: LoadSpec) -> Iterator[Slot]:
        """The slot for a loaded worker: the one that a keeper has put it into, or a new one, given up on failure."""
        if not load.worker.alive:
            raise DependencyError("load_failed", f"the worker of {spec.version} died as soon as it was loaded")
        known = next((s for s in self._slots if s.worker is load.worker), None)
        if known is not None:
            yield known
            return
        load.taken = True
        try:
            yield Slot(spec, load.worker)
        except BaseException:
            load.taken = False
            raise

    async def _is_warm(self, slot: Slot, spec: LoadSpec) -> bool:
        # The label is part of every answer of the worker, so another label needs another process.
        if slot.spec.version != spec.version or slot.worker is None:
            return False
        return await slot.worker.answers(_PING_S)

    async def _switch(self, slot: Slot, order: LoadOrder, *, warm: bool) -> Applied:
        others = [s for s in self._slots if s is not slot and s.spec.digest != order.spec.digest]
        if self._active in others:
            others.remove(self._active)
            others.append(self._active)
        keep = _newest(others, self._options.standby)
        # A new one that only loaded (no warm-up was possible) has proven nothing: what answered before stays.
        if not (slot.worker and slot.worker.answered) and self._active in others and self._active not in keep:
            keep.append(self._active)
        await self._remember(
            ServerState(epoch=order.epoch, key=order.key, active=order.spec, standby=tuple(s.spec for s in keep))
        )
        self._active = slot
        self._was_warm = warm
        slot.spec = order.spec
        slot.reason = ""
        self._arrange([*keep, slot])
        _log.info("activated version=%s digest=%s epoch=%d", order.spec.version, order.spec.digest, order.epoch)
        return self._applied(order.spec, warm=warm)

    async def _stand(self, slot: Slot) -> None:
        """Put a proven worker among the standbys, in the place of the oldest ones that are too many."""
        active = self._active
        others = [s for s in self._slots if s is not active and s.spec.digest != slot.spec.digest]
        keep = _newest(others, self._options.standby - 1)
        # While the active one does not answer, the newest that did under traffic stays, whatever the count.
        if active is not None and not (active.ready and active.answered):
            healthy = [s for s in others if s.ready and s.answered]
            if healthy and not any(s in keep for s in healthy):
                keep.insert(0, healthy[-1])
        standby = (*(s.spec for s in keep), slot.spec)
        await self._remember(replace(self._state, standby=standby))
        self._arrange([*keep, slot, *([active] if active is not None else [])])
        _log.info("standing version=%s digest=%s", slot.spec.version, slot.spec.digest)

    def _arrange(self, slots: list[Slot]) -> None:
        """From now on these, oldest first and the active one last; the others are let go."""
        dropped = [s for s in self._slots if s not in slots]
        self._slots = slots
        for slot in slots:
            if slot.keeper is None or slot.keeper.done():
                self._keep(slot)
        for old in dropped:
            self._retire(old)

    async def _remember(self, state: ServerState) -> None:
        if state != self._state:
            await asyncio.to_thread(self._file.write, state)
            self._state = state

    def _keep(self, slot: Slot) -> None:
        slot.keeper = asyncio.create_task(self._keep_alive(slot))

    def _retire(self, slot: Slot, drain_s: float | None = None) -> asyncio.Task[None]:
        """End a slot's keeper and worker. It has neither from now on: what is about to end is never switched to."""
        keeper, ping, worker = slot.keeper, slot.ping, slot.worker
        slot.keeper = slot.ping = slot.worker = None
        for watching in (keeper, ping):
            if watching is not None:
                watching.cancel()
        task = asyncio.create_task(_end(keeper, ping, worker, self._options.drain_s if drain_s is None else drain_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _keep_alive(self, slot: Slot) -> None:
        """Restart the active worker whenever it is gone: 0.1 s later, then twice as long each time up to 5 s.

        It ends when the slot is down and not active: a standby is left as it is.
        """
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
            if slot is not self._active:
                slot.reason = slot.reason or NOT_LOADED
                return
            delay_s = min(max(2 * delay_s, FIRST_DELAY_S), LONGEST_DELAY_S)
            try:
                async with self._loads.join(slot.spec) as load:
                    if load.taken or slot is not self._active:
                        continue  # an order was faster
                    load.taken = True
                    slot.worker = load.worker
            except Exception as error:  # whatever it is (no descriptor is left, say): the active one is tried again
                slot.reason = str(error) or type(error).__name__
                _log.warning("worker_not_started version=%s reason=%s", slot.spec.version, error)
            else:
                slot.reason = ""
                _log.info("worker_started version=%s pid=%d", slot.spec.version, slot.worker.pid)

    def _must_wait(self) -> bool:
        """A standby is not loaded while the active one still is: that one has traffic waiting."""
        active = self._active
        return active is not None and active.worker is None and not active.reason

    async def _supervise(self) -> None:
        """Look after the standbys: one that does not react is not ready, one that grows too large is ended."""
        while True:
            await asyncio.sleep(SUPERVISE_EVERY_S)
            async with self._lock:  # an order that is switching to one of them counts it as a standby until the end
                for slot in self._slots:
                    if slot is not self._active and slot.worker is not None and slot.worker.alive:
                        self._look_after(slot, slot.worker)

    def _look_after(self, slot: Slot, worker: Worker) -> None:
        now_s = asyncio.get_running_loop().time()
        above = self._above_limit(slot.rss_bytes)
        if above and not self._is_last_healthy(slot):
            slot.reason = f"it {above}"
            _log.warning("standby_ended version=%s reason=%s", slot.spec.version, above)
            self._retire(slot, drain_s=0.0)
        elif slot.ping is None or slot.ping.done():
            slot.reason = ""
            slot.ping_at = now_s
            slot.ping = asyncio.create_task(worker.answers(self._options.infer_timeout_s))
        elif now_s - slot.ping_at > SILENT_AFTER_S:
            slot.reason = f"it has not reacted for {int(now_s - slot.ping_at)} s"


def _newest(slots: list[Slot], count: int) -> list[Slot]:
    """As many of `slots`, which are oldest first; those that are down go before those that are up."""
    ranked = sorted(slots, key=lambda slot: slot.worker is not None)
    return ranked[len(ranked) - min(count, len(ranked)) :]


async def _end(
    keeper: asyncio.Task[None] | None, ping: asyncio.Task[bool] | None, worker: Worker | None, drain_s: float
) -> None:
    """The keeper first, so that nothing restarts what is about to end; then the worker."""
    await _cancel(keeper)
    await _cancel(ping)
    if worker is None:
        return
    try:
        await worker.retire(drain_s)
    finally:
        worker.kill()


async def _cancel(task: asyncio.Task[None] | asyncio.Task[bool] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
