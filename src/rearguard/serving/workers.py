"""One worker process as the front sees it: start it, ask it, notice its death, end it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections import deque
from dataclasses import asdict
from typing import Any

from rearguard.errors import DependencyError, RefusedError
from rearguard.serving import frames
from rearguard.serving.state import LoadSpec

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MAX_WAITING = 256
"""Requests queued at one worker; chosen: more than it can answer within a client's patience is refused at once."""

Answer = tuple[dict[str, Any], bytes]


class Worker:
    """A live, ready worker process. Get one from `start_worker`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.gone = asyncio.Event()
        self.answered = False
        """True once it answered an inference (warm-up or request)."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._listener = asyncio.create_task(self._listen())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False from the moment its socket ended."""
        return not self.gone.is_set()

    async def ask(self, payload: bytes, timeout_s: float) -> Answer:
        """Head and body of the worker's answer; questions may overlap, answers come in order.

        Raises `DependencyError`: `worker_gone` when it is or goes down, `worker_busy` when too many wait already,
        `worker_hung` when it does not answer in time (it is killed: what comes behind would wait as well).
        """
        if not self.alive:
            raise DependencyError("worker_gone", "the worker of this version is down")
        if len(self._waiting) >= MAX_WAITING:
            raise DependencyError("worker_busy", f"{MAX_WAITING} requests are waiting already")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._writer.write(frames.pack(payload))
        # wait, not wait_for: a caller that gives up must not cancel its place in the order of answers
        done, _ = await asyncio.wait({answer}, timeout=timeout_s)
        if not done:
            self.kill()
            raise DependencyError("worker_hung", f"no answer within {timeout_s} s; the worker was killed")
        return answer.result()

    async def answers(self, timeout_s: float) -> bool:
        """True when it reacts now."""
        try:
            await self.ask(b'{"op":"ping"}', timeout_s)
        except DependencyError:
            return False
        return True

    async def retire(self, drain_s: float) -> None:
        """End it once what it was asked is answered, or after `drain_s`."""
        waiting = [a for a in self._waiting if not a.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=drain_s)
        await self.end()

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        await self._process.wait()
        await self.gone.wait()

    def kill(self) -> None:
        """SIGKILL; nothing when it is dead already."""
        if self._process.returncode is None:
            self._process.kill()

    async def _listen(self) -> None:
        try:
            while True:
                head = json.loads(await frames.read(self._reader))
                body = await frames.read(self._reader)
                answer = self._waiting.popleft()
                if head.get("status") == 200 and body:
                    self.answered = True
                if not answer.done():
                    answer.set_result((head, body))
        except (OSError, EOFError, ValueError, IndexError):
            pass  # the end of the socket is how a death is noticed; the reason is the process's exit code
        finally:
            self.gone.set()
            for answer in self._waiting:
                if not answer.done():
                    answer.set_exception(DependencyError("worker_gone", "the worker died before it answered"))
                    answer.exception()  # read once here: a caller that was cancelled will not
            self._waiting.clear()
            self._writer.close()
            self.kill()


async def start_worker(model: str, spec: LoadSpec, timeout_s: float) -> Worker:
    """A worker that has loaded `spec` and answered one inference.

    Raises `RefusedError` (the loader's code) when the files or the order are at fault, `DependencyError`
    (`load_failed`, `load_timeout`) when the model or the process is. No process is left behind.
    """
    ours, theirs = socket.socketpair()
    # Code that a model brings gets to see neither what the front was started with nor where it writes its log.
    inherited = os.environ if spec.sandbox_memory_bytes is None else {}
    environment = {**inherited, **dict.fromkeys(_THREAD_VARIABLES, "1")}
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder that the server was started in is no place to import from
            "-m",
            "rearguard.serving.worker",
            str(theirs.fileno()),
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            # What libraries print belongs to the log, not to the output of the front.
            stdout=2 if spec.sandbox_memory_bytes is None else asyncio.subprocess.DEVNULL,
            stderr=None if spec.sandbox_memory_bytes is None else asyncio.subprocess.DEVNULL,
            cwd=None if spec.sandbox_memory_bytes is None else "/",
            pass_fds=(theirs.fileno(),),
            env=environment,
        )
    except OSError as error:
        ours.close()
        raise DependencyError("load_failed", f"no worker process could be started: {error}") from error
    finally:
        theirs.close()
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(sock=ours)
        report = await asyncio.wait_for(_load(reader, writer, model, spec), timeout_s)
    except BaseException as error:
        if process.returncode is None:
            process.kill()
        if writer is not None:
            writer.close()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise DependencyError("load_timeout", f"{spec.version} was not ready within {timeout_s} s") from error
        if isinstance(error, (OSError, EOFError, ValueError)):
            code = process.returncode
            raise DependencyError("load_failed", f"the worker of {spec.version} died while loading: {code}") from error
        raise
    worker = Worker(process, reader, writer)
    worker.answered = bool(report["warmed"])
    return worker


async def _load(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str, spec: LoadSpec
) -> dict[str, Any]:
    writer.write(frames.pack(json.dumps({"op": "load", "model": model, **asdict(spec)}).encode()))
    report: dict[str, Any] = json.loads(await frames.read(reader))
    await frames.read(reader)
    if not report["ok"]:
        kind = RefusedError if report["client"] else DependencyError
        raise kind(report["code"], report["message"])
    return report
