"""The daemon's log as files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rearguard.interfaces.cli.log_lines import LogLines

KIB = 1 / 1024


@pytest.fixture
def opened() -> Iterator[Callable[..., LogLines]]:
    every: list[LogLines] = []

    def build(path: Path, *, max_mib: float, keep: int) -> LogLines:
        every.append(LogLines(path, max_mib=max_mib, keep=keep))
        return every[-1]

    yield build
    for lines in every:
        lines.close()


def read(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_a_file_above_its_limit_is_rotated_and_the_oldest_is_dropped(
    tmp_path: Path, opened: Callable[..., LogLines]
) -> None:
    lines = opened(tmp_path / "log", max_mib=KIB, keep=2)
    for n in range(5):
        lines.write("2026-01-01T00:00:00.000Z", "e", {"n": n, "pad": "x" * 800})  # one line fits in a KiB, two do not
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert [read(tmp_path / name) for name in ("log.2", "log.1", "log")] == [[2], [3], [4]]


def test_with_a_limit_of_0_nothing_is_rotated(tmp_path: Path, opened: Callable[..., LogLines]) -> None:
    lines = opened(tmp_path / "log", max_mib=0, keep=1)
    for n in range(5):
        lines.write("2026-01-01T00:00:00.000Z", "e", {"n": n, "pad": "x" * 800})
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_a_line_has_its_instant_its_event_and_its_fields(tmp_path: Path, opened: Callable[..., LogLines]) -> None:
    opened(tmp_path / "log", max_mib=0, keep=1).write("2026-01-01T00:00:00.000Z", "run_finished", {"per": "100 %s"})
    document = json.loads((tmp_path / "log").read_text())
    assert document == {"ts": "2026-01-01T00:00:00.000Z", "event": "run_finished", "per": "100 %s"}


def test_a_log_that_cannot_be_written_raises_nothing_and_says_later_how_much_is_missing(
    tmp_path: Path, opened: Callable[..., LogLines]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    lines = opened(folder / "log", max_mib=0, keep=1)
    lines.ask_to_reopen()
    os.rename(folder, tmp_path / "gone")  # the file cannot be opened again
    lines.write("2026-01-01T00:00:00.000Z", "e", {"n": 1})
    lines.write("2026-01-01T00:00:00.000Z", "e", {"n": 2})
    folder.mkdir()
    lines.write("2026-01-01T00:00:00.000Z", "e", {"n": 3})
    document = json.loads((folder / "log").read_text())
    assert (document["n"], document["lines_lost"]) == (3, 2)
