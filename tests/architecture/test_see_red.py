"""The table of guards (`scripts/see_red.py`) fits the code, the tests and the documentation."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "see_red.py"
PAGE = ROOT / "docs" / "explanation" / "reliability.md"


@pytest.fixture(scope="module")
def see_red() -> ModuleType:
    spec = importlib.util.spec_from_file_location("see_red", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_every_guard_stands_where_the_table_says_and_every_failure_of_peers_has_a_test(see_red: ModuleType) -> None:
    assert list(see_red.problems()) == []


def test_a_guard_that_is_no_longer_there_is_noticed(see_red: ModuleType) -> None:
    moved = see_red.guard("F1", "what", see_red.GUARDS[0].tests[0], (see_red.JSONL, "no such line", ""))
    assert any("stands 0 times" in problem for problem in see_red.problems([moved]))


def test_the_page_names_each_failure_and_its_tests(see_red: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| F")}
    assert tuple(rows) == see_red.FAILURES
    for row in see_red.GUARDS:
        for node in row.tests:
            assert f"`{node.partition('::')[2].partition('[')[0]}`" in rows[row.failure]
        assert row.what in rows[row.failure]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_removals_that_need_no_process_go_red() -> None:
    """All of them are `make see-red`, which takes longer than a test may."""
    words = [sys.executable, str(SCRIPT), "F1", "F2", "F3", "F4", "F16"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
