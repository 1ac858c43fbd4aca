"""The fixture `require_part` of conftest.py, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"


def outcome(folder: Path, *, present: bool, ci: str) -> str:
    """The closing line of pytest over one test that requires a part."""
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "test_part.py").write_text(
        f'def test_part(require_part):\n    require_part("triton", {present}, "install it")\n'
    )
    environment = {**os.environ, "CI": ci}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    return answer.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("present", "ci", "expected"),
    [
        (True, "true", "1 passed"),
        (True, "", "1 passed"),
        (False, "true", "1 failed"),
        (False, "", "1 skipped"),
    ],
)
def test_a_missing_part_skips_here_and_fails_in_ci(tmp_path: Path, present: bool, ci: str, expected: str) -> None:
    assert outcome(tmp_path, present=present, ci=ci).startswith(expected)
