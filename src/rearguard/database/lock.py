"""Who is the officer of a state directory: a lock that dies with the process, and a beat that shows that it lives.

Two processes with one role would steal each other's runs. A process that is dead has lost its lock; one that is frozen
still has it, so a holder that has not shown progress for `LEASE_S` may be replaced. What the replaced one does when it
wakes up is fenced elsewhere: in the database by its generation, at the target by the epoch. Times are those of one
host's monotonic clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from rearguard.errors import ConflictError, DatabaseBusyError, DependencyError
from rearguard.model.time import NS_PER_S, Instant

LEASE_S = 15.0
"""Without a beat for so long an officer counts as hung. Chosen: 150 turns of the watch, and a disk that stalls for
seconds is still no reason."""
BEAT_S = 1.0
_FROZEN_WRITER_S = 3.0
"""A hung officer that keeps everybody from writing for so long was frozen in the midst of a transaction. Chosen."""
_WRITE_LOCK_BYTE = 120
"""Of the shared-memory file: SQLite's WAL write lock (`walIndexFormat`, "WAL Locks"; `WAL_WRITE_LOCK` in wal.c)."""
_LOOKS = 20
_LOOK_PAUSE_S = 0.01
_NAME = "officer.lock"
_GUARD = "officer.guard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Who holds the office."""

    held: bool
    """True when a process, frozen or not, holds the lock."""
    pid: int | None
    idle_s: float | None
    """Seconds since its last beat; None when it has given none on this boot."""

    @property
    def hung(self) -> bool:
        """True when it holds the lock and has shown no progress for longer than the lease."""
        return self.held and self.idle_s is not None and self.idle_s > LEASE_S


class OfficerLock:
    """The office of one state directory."""

    def __init__(self, state: Path) -> None:
        self._path = state / _NAME
        self._guard = state / _GUARD
        self._file: int | None = None
        self._beat_ns = 0

    def acquire(self, now: Instant) -> Presence | None:
        """Take the office; returns the hung officer that was replaced, if any.

        Raises `ConflictError` `officer_alive` while another one shows progress, `DependencyError` `state_not_writable`.
        """
        try:
            guard = os.open(self._guard, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DependencyError(
                "state_not_writable", f"cannot write {self._guard}: {error.strerror}", "make the state folder writable"
            ) from error
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)  # held for a moment only: two successors never replace one officer
            return self._take(now)
        finally:
            os.close(guard)

    def _take(self, now: Instant) -> Presence | None:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        replaced = None
        if not _locked(handle):
            replaced = _presence(handle, now)
            os.close(handle)
            if not replaced.hung:
                raise _alive(self._path.parent, replaced)
            # Its lock cannot be taken away, so the file is replaced: the old one keeps a lock on a name that is gone.
            fresh = self._path.with_name(f"{_NAME}.{os.getpid()}")
            handle = os.open(fresh, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = handle
            self.beat(now, force=True)
            os.replace(fresh, self._path)
        self._file = handle
        self.beat(now, force=True)
        return replaced

    def beat(self, now: Instant, *, force: bool = False) -> None:
        """Show progress; at most once a second really written. Without sync: it means nothing after a reboot."""
        if self._file is None or (not force and now.mono_ns - self._beat_ns < BEAT_S * NS_PER_S):
            return
        self._beat_ns = now.mono_ns
        line = f"{os.getpid()} {now.boot_id} {now.mono_ns}".ljust(95) + "\n"
        with contextlib.suppress(OSError):  # a full disk does not end the office; it will show as hung
            os.pwrite(self._file, line.encode("ascii"), 0)

    def held(self) -> bool:
        """False once another process has taken the office over."""
        if self._file is None:
            return False
        try:
            return os.stat(self._path).st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _locked(handle: int) -> bool:
    """Take the lock. Those who only look share it for a moment, so a refusal is believed when it lasts."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_PAUSE_S)  # noqa: TID251 - edge: others let go within microseconds
        else:
            return True
    return False


def officer_presence(state: Path, now: Instant) -> Presence:
    """Who holds the office of a state directory. Writes nothing, so it works on a read-only folder (R47).

    Those who only look share the lock, so that none of them is taken for an officer.
    """
    try:
        handle = os.open(state / _NAME, os.O_RDONLY)
    except FileNotFoundError:
        return Presence(held=False, pid=None, idle_s=None)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _presence(handle, now)
    finally:
        os.close(handle)
    return Presence(held=False, pid=None, idle_s=None)


def officer_alive(state: Path) -> bool:
    """True when a process holds the office, hung or not."""
    try:
        handle = os.open(state / _NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def make_way(state: Path, now: Instant) -> None:
    """Before a process that wants the office opens the database.

    Raises `ConflictError` `officer_alive` at once while another one shows progress. A hung one that keeps everybody
    else from writing is ended here: it was frozen in the midst of a transaction. Where somebody else does, nobody is
    ended and `DatabaseBusyError` `database_unavailable` is raised: the hung one may only be waiting for that as well.
    """
    presence = officer_presence(state, now)
    if not presence.held:
        return
    if not presence.hung:
        raise _alive(state, presence)
    path = state / "rearguard.db"
    if _writable(path):
        return
    holders = write_lock_holders(path)
    if presence.pid in holders:
        end_holder(state, presence)
    elif holders:
        raise busy(path, "database is locked", holders)


def _alive(state: Path, presence: Presence) -> ConflictError:
    return ConflictError(
        "officer_alive",
        f"another officer (process {presence.pid or 'unknown'}) works on {state}",
        "stop it first, or leave the work to it",
    )


def _writable(path: Path) -> bool:
    """True when a write transaction can begin: no other process is frozen in the midst of one."""
    if not path.exists():
        return True
    raw = sqlite3.connect(path, timeout=_FROZEN_WRITER_S, isolation_level=None)
    try:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" not in str(error)
    finally:
        raw.close()
    return True


def write_lock_holders(path: Path) -> tuple[int, ...]:
    """Ids of the processes that keep everybody else from writing to a database; none when that cannot be told.

    Looked up in `/proc/locks`, not asked of the file: whoever opens the shared-memory file and closes it again lets go
    of every lock that SQLite holds there for the same process. Devices are not compared: they differ on some file systems.
    """
    exclusive: dict[int, int | None] = {}
    found: set[int] = set()
    for name, byte in ((f"{path.name}-shm", _WRITE_LOCK_BYTE), (path.name, None)):
        with contextlib.suppress(OSError):
            exclusive[os.stat(path.with_name(name)).st_ino] = byte
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            # 1: POSIX  ADVISORY  WRITE 4242 fe:00:2384501 120 120   (proc(5)); who waits has `->` for a second word
            words = line.split()
            if len(words) != 8 or words[1] not in ("POSIX", "OFDLCK") or words[3] != "WRITE":
                continue
            inode, begin, end = int(words[5].rsplit(":", 1)[1]), int(words[6]), words[7]
            if inode in exclusive and int(words[4]) > 0:
                byte = exclusive[inode]
                if byte is None or begin <= byte <= (byte if end == "EOF" else int(end)):
                    found.add(int(words[4]))
    return tuple(sorted(found))


def busy(path: Path, text: str, holders: tuple[int, ...]) -> DatabaseBusyError:
    """`database_unavailable`, with whom to look at."""
    who = " and ".join(str(pid) for pid in holders) or "unknown, see /proc/locks"
    return DatabaseBusyError(
        "database_unavailable",
        f"{path}: {text}",
        f"another process holds its write lock ({who}): let it finish, or end it; nothing was half-written",
    )


def end_holder(state: Path, replaced: Presence) -> bool:
    """Kill a replaced officer that still holds the database's write lock; False when it is gone or not ours to kill.

    A process frozen in the middle of a transaction keeps everybody else from writing for as long as it lives. Its id
    is only believed when it still has this state directory's database open.
    """
    if replaced.pid is None or replaced.pid == os.getpid():
        return False
    try:
        wanted = {os.stat(file).st_ino for file in state.glob("rearguard.db*")}
        opened = {os.stat(link).st_ino for link in Path(f"/proc/{replaced.pid}/fd").iterdir() if link.exists()}
        if not wanted & opened:
            return False
        os.kill(replaced.pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def _presence(handle: int, now: Instant) -> Presence:
    words = os.pread(handle, 128, 0).decode("ascii", "replace").split()
    pid = int(words[0]) if words and words[0].isdigit() else None
    idle_s = None
    if len(words) == 3 and words[1] == now.boot_id and words[2].isdigit():
        idle_s = max(0.0, (now.mono_ns - int(words[2])) / NS_PER_S)
    return Presence(held=True, pid=pid, idle_s=idle_s)
