"""The symbolic link that a serving stack reads its model through: flipped in one piece, and never back by an old order.

Part of the target `command`, for a stack that serves whatever a fixed path points at. The link leads to the view that was
built when the checkpoint was registered, so a restore moves no bytes, whatever the model's size. Beside it a second link,
which leads nowhere, holds the highest epoch that was obeyed: a symbolic link is the smallest file that is replaced in
one piece.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rearguard.errors import ConfigError, DependencyError, RefusedError
from rearguard.model.service import Place
from rearguard.ports import Activation

_EPOCH = "rearguard-epoch:"


class ModelLink:
    """Holds only names: any thread and any process may use it, one after the other by a lock on the folder."""

    def __init__(self, place: Place, path: Path) -> None:
        self._place = place
        self._path = path
        self._fence = path.with_name(f".{path.name}.epoch")

    @contextlib.contextmanager
    def flipped(self, order: Activation) -> Iterator[None]:
        """Lead to the order's folder, and hold off every other order until the block ends. A second call changes nothing.

        Raises `RefusedError` `target_epoch_stale` when a higher epoch was obeyed before; `ConfigError` `link_occupied` when
        something that is no link stands there, which is left as it is; `DependencyError` `link_not_written`.
        """
        try:
            handle = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._look(order)
            try:
                # The fence first: once the link leads to a new model, no older order may come after it.
                _replace(self._fence, f"{_EPOCH}{order.epoch}")
                _replace(self._path, order.path)
                os.fsync(handle)
            except OSError as error:
                raise self._unwritten(error) from error
            yield
        finally:
            os.close(handle)

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
