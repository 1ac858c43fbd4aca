"""The target `command` with a link: moved in one piece, never back by an old order, and nothing else is touched."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rearguard.adapters.targets.command import CommandTarget, build
from rearguard.errors import ConfigError, DependencyError, RefusedError, TransientTargetError
from rearguard.model.service import Digest, Place
from rearguard.ports import Activation

PLACE = Place(service="credit", env="prod")


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def target_with(link: Path, activate: str = "") -> CommandTarget:
    nothing = python("")
    return build(PLACE, {"activate": python(activate), "active": nothing, "probe": nothing, "link": str(link)})


def order(folder: Path, epoch: int = 7) -> Activation:
    return Activation(
        digest=Digest("sha256:" + "a" * 64),
        version="v1",
        format="onnx",
        path=str(folder),
        trusted_types=(),
        epoch=epoch,
        key="run_1:activate",
        timeout_s=10.0,
    )


def test_the_link_leads_to_the_folder_of_the_order(tmp_path: Path) -> None:
    target_with(tmp_path / "current").activate(order(tmp_path / "views" / "v1"))
    assert (tmp_path / "current").readlink() == tmp_path / "views" / "v1"


def test_the_command_sees_the_link_moved(tmp_path: Path) -> None:
    look = f"import os, sys; sys.exit(os.readlink({str(tmp_path / 'current')!r}) != os.environ['REARGUARD_PATH'])"
    target_with(tmp_path / "current", look).activate(order(tmp_path / "v1"))


def test_an_order_of_a_lower_epoch_moves_nothing(tmp_path: Path) -> None:
    target = target_with(tmp_path / "current")
    target.activate(order(tmp_path / "v2", epoch=8))
    with pytest.raises(RefusedError) as refused:
        target.activate(order(tmp_path / "v1", epoch=7))
    assert refused.value.code == "target_epoch_stale"
    assert (tmp_path / "current").readlink() == tmp_path / "v2"


def test_an_order_of_a_lower_epoch_runs_no_command(tmp_path: Path) -> None:
    target_with(tmp_path / "current").activate(order(tmp_path / "v2", epoch=8))
    with pytest.raises(RefusedError):
        target_with(tmp_path / "current", f"open({str(tmp_path / 'ran')!r}, 'w')").activate(order(tmp_path / "v1"))
    assert not (tmp_path / "ran").exists()


def test_the_same_epoch_may_come_again(tmp_path: Path) -> None:
    target = target_with(tmp_path / "current")
    for _ in range(2):
        target.activate(order(tmp_path / "v1"))
    assert (tmp_path / "current").readlink() == tmp_path / "v1"


def test_a_folder_in_the_place_of_the_link_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "model.onnx").write_text("theirs")
    with pytest.raises(ConfigError) as refused:
        target_with(tmp_path / "current").activate(order(tmp_path / "v1"))
    assert refused.value.code == "link_occupied"
    assert (tmp_path / "current" / "model.onnx").read_text() == "theirs"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DependencyError) as failed:
        target_with(tmp_path / "gone" / "current").activate(order(tmp_path / "v1"))
    assert failed.value.code == "link_not_written"


def test_a_command_that_fails_leaves_the_link_for_the_next_order(tmp_path: Path) -> None:
    with pytest.raises(TransientTargetError):
        target_with(tmp_path / "current", "raise SystemExit(1)").activate(order(tmp_path / "v1"))
    target_with(tmp_path / "current").activate(order(tmp_path / "v1"))
    assert (tmp_path / "current").readlink() == tmp_path / "v1"


def test_readers_never_find_the_link_gone(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(name)
    target = target_with(tmp_path / "current")
    target.activate(order(tmp_path / "v1"))
    done, missed = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                (tmp_path / "current" / "model").read_text()
            except OSError as error:
                missed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        target.activate(order(tmp_path / ("v2" if number % 2 == 0 else "v1"), epoch=8 + number))
    done.set()
    reader.join()
    assert missed == []


@pytest.mark.parametrize("left", [".current.new", "..current.epoch.new"])
def test_what_a_killed_order_left_does_not_hinder_the_next(left: str, tmp_path: Path) -> None:
    (tmp_path / left).symlink_to("nowhere")
    target_with(tmp_path / "current").activate(order(tmp_path / "v1"))
    assert (tmp_path / "current").readlink() == tmp_path / "v1"


def test_an_order_is_not_held_up_by_the_command_of_an_older_one(tmp_path: Path) -> None:
    """The officer that gave the older order may be frozen in it."""
    began = tmp_path / "began"
    waits = f"import os; open({str(began)!r}, 'w').close(); open({str(tmp_path / 'end')!r}).read()"
    os.mkfifo(tmp_path / "end")
    older = threading.Thread(
        target=target_with(tmp_path / "current", waits).activate, args=(order(tmp_path / "v1", 7),)
    )
    older.start()
    try:
        while not began.exists():
            os.sched_yield()
        target_with(tmp_path / "current").activate(order(tmp_path / "v2", 8))
        assert older.is_alive()
        assert (tmp_path / "current").readlink() == tmp_path / "v2"
    finally:
        (tmp_path / "end").write_text("")
        older.join()


@pytest.fixture
def held_link(tmp_path: Path) -> Iterator[Path]:
    """A link whose lock somebody holds and does not let go."""
    with (tmp_path / ".current.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path / "current"


def test_a_lock_that_is_not_let_go_ends_the_order_at_its_time_limit(held_link: Path, tmp_path: Path) -> None:
    with pytest.raises(TransientTargetError) as late:
        target_with(held_link).activate(replace(order(tmp_path / "v1"), timeout_s=0.1))
    assert late.value.code == "target_timeout"
    assert "fuser" in late.value.hint


def test_a_link_in_the_same_folder_has_a_lock_of_its_own(held_link: Path, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        target_with(held_link.with_name("other")).activate(replace(order(tmp_path / "v1"), timeout_s=0.1))
    finally:
        os.close(folder)
    assert (tmp_path / "other").readlink() == tmp_path / "v1"


@pytest.mark.parametrize("link", ["models/current", "", 7, "/"])
def test_a_link_that_is_no_absolute_path_is_refused(link: object) -> None:
    nothing = python("")
    with pytest.raises(ConfigError) as refused:
        build(PLACE, {"activate": nothing, "active": nothing, "probe": nothing, "link": link})
    assert (refused.value.code, refused.value.key) == ("bad_option", "link")


def test_an_order_killed_after_the_fence_is_finished_by_the_same_order(tmp_path: Path) -> None:
    """Between the two links: the epoch is noted and the link still leads to the old model; the same order goes on."""
    target = target_with(tmp_path / "current")
    target.activate(order(tmp_path / "v1", epoch=7))
    (tmp_path / ".current.epoch").unlink()
    (tmp_path / ".current.epoch").symlink_to("rearguard-epoch:8")
    target.activate(replace(order(tmp_path / "v2"), epoch=8))
    assert (tmp_path / "current").readlink() == tmp_path / "v2"
