"""`scripts/lock.py check` sees a lock file that is stale or was edited."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The few files that the check reads, to be changed at will."""
    for name in ("pyproject.toml", "scripts/lock.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "scripts" / "lock.py"), "check"]
    return subprocess.run(command, capture_output=True, text=True)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_lock_files_are_fresh(copy: Path) -> None:
    answer = check(copy)
    assert answer.returncode == 0, answer.stderr


def test_a_changed_dependency_makes_every_lock_file_stale(copy: Path) -> None:
    replace(copy / "pyproject.toml", '"click>=8.2,<9"', '"click>=8.3,<9"')
    answer = check(copy)
    assert answer.returncode == 1
    assert answer.stderr.count("made from other dependency tables") == 4


def test_a_changed_comment_does_not(copy: Path) -> None:
    path = copy / "pyproject.toml"
    path.write_text(path.read_text() + "\n# a word\n")
    assert check(copy).returncode == 0


def test_a_pin_edited_by_hand_is_seen(copy: Path) -> None:
    replace(copy / "requirements" / "runtime.lock", "\ndbos==3.4.0\n", "\ndbos==3.4.1\n")
    answer = check(copy)
    assert answer.returncode == 1
    assert "requirements/runtime.lock was edited by hand" in answer.stderr


def test_a_missing_lock_file_is_named(copy: Path) -> None:
    (copy / "requirements" / "demo.lock").unlink()
    assert "requirements/demo.lock is missing" in check(copy).stderr


@pytest.mark.parametrize("narrow", ["runtime", "demo", "build"])
def test_two_lock_files_never_pin_one_package_differently(narrow: str) -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
        found: dict[str, str] = {}
        for line in lines:
            if not line.startswith("#"):
                package, _, version = line.partition("==")
                found[package] = found.get(package, "") + version
        return found

    wide = pins("dev")
    for package, version in pins(narrow).items():
        assert wide.get(package, version) == version
