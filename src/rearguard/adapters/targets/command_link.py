"""The symbolic link that a serving stack reads its model through: flipped in one piece, and never back by an old order.

Part of the target `command`, for a stack that serves whatever a fixed path points at. The link leads to the view that was
built when the checkpoint was registered, so a restore moves no bytes, whatever the model's size. Beside it a second link,
which leads nowhere, holds the highest epoch that was obeyed: a symbolic link is the smallest file that is replaced in
one piece.

A lock file beside the link (`.NAME.lock`) leaves one writer, and only while the link moves: never while a command runs, so
that an officer that is frozen in its command holds up no successor. Reloads may therefore overlap; each of them reads the
link, which the epochs keep in order, so the last of them to begin finds the newest model.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from rearguard.errors import ConfigError, DependencyError, RefusedError, TransientTargetError
from rearguard.model.service import Place
from rearguard.ports import Activation

_EPOCH = "rearguard-epoch:"
_LOOK_PAUSE_S = 0.01


class ModelLink:
    """Holds only names: any thread and any process may use it; they move the link one after the other."""

    def __init__(self, place: Place, path: Path) -> None:
        self._place = place
        self._path = path
        self._fence = path.with_name(f".{path.name}.epoch")
        self._lock = path.with_name(f".{path.name}.lock")

    def flip(self, order: Activation) -> None:
        """Lead to the order's folder. A second call changes nothing.

        Raises `RefusedError` `target_epoch_stale` when a higher epoch was obeyed before; `ConfigError` `link_occupied` when
        something that is no link stands there, which is left as it is; `DependencyError` `link_not_written`;
        `TransientTargetError` `target_timeout` when another process has held the lock for the order's `timeout_s`.
        """
        with self._locked(order.timeout_s):
            self._look(order)
            try:
                # The fence first: once the link leads to a new model, no older order may come after it.
                _replace(self._fence, f"{_EPOCH}{order.epoch}")
                _replace(self._path, order.path)
                folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            except OSError as error:
                raise self._unwritten(error) from error

    @contextlib.contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        try:
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            self._take(handle, timeout_s)
            yield
        finally:
            os.close(handle)

    def _take(self, handle: int, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s  # noqa: TID251 - edge: a lock of other processes
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end_s:  # noqa: TID251 - edge: a lock of other processes
                    raise TransientTargetError(
                        "target_timeout",
                        f"{self._place}: another process has held {self._lock} for {timeout_s} s",
                        "it moves the same link and hangs: find it with `fuser` and end it",
                    ) from None
            time.sleep(_LOOK_PAUSE_S)  # noqa: TID251 - edge: others let go within microseconds

    def _look(self, order: Activation) -> None:
        seen = _text(self._fence).removeprefix(_EPOCH)
        if seen.isdecimal() and int(seen) > order.epoch:
            raise RefusedError(
                "target_epoch_stale",
                f"{self._place}: {self._path} has seen the epoch {seen}, the order has {order.epoch}",
                "another officer gave a newer order; look at the place again",
            )
        if os.path.lexists(self._path) and not self._path.is_symlink():
            raise ConfigError(
                "link_occupied",
                f"{self._place}: {self._path} is there and is no symbolic link",
                "move it away, or name another path: the link is made by the first order",
                key="link",
                value=str(self._path),
                accepted="the path of a symbolic link",
            )

    def _unwritten(self, error: OSError) -> DependencyError:
        return DependencyError(
            "link_not_written",
            f"{self._place}: cannot move {self._path}: {error.strerror}",
            "make its folder, and let the officer write there",
        )


def _text(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _replace(link: Path, text: str) -> None:
    """Make `link` a symbolic link to `text`, in one piece, whatever link stood there."""
    if _text(link) == text:
        return
    temporary = link.with_name(f".{link.name}.new")  # the lock leaves one writer; a dead one's is written over
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(text)
    temporary.replace(link)
