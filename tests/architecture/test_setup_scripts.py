"""The scripts behind `make`, on machines that lack something. The programs they look for are stand-ins on PATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_TOOLS = ("sh", "dirname", "rm", "mkdir", "cat", "touch")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A PATH folder with the barest tools, on which the user is not root."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in SYSTEM_TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    provide(folder, "id", "echo 1000")
    return folder


def provide(folder: Path, name: str, body: str) -> None:
    """Put a program on the machine."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def python_without_ensurepip(folder: Path) -> None:
    """A Python as Debian ships it: no ensurepip, no pip, otherwise real."""
    provide(
        folder,
        "python3",
        f'case "$*" in *ensurepip*|*"-m venv"*|*"-m pip"*) echo "No module named ensurepip" >&2; exit 1;; esac\n'
        f'exec "{sys.executable}" "$@"',
    )


def build(machine: Path, target: Path, python: str = "python3") -> subprocess.CompletedProcess[str]:
    """Run venv.sh on the machine."""
    command = [str(machine / "sh"), str(ROOT / "scripts" / "venv.sh"), python, str(target)]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PATH": str(machine), "HOME": str(target.parent)}
    )


def test_an_absent_python_is_named(machine: Path, tmp_path: Path) -> None:
    answer = build(machine, tmp_path / "venv", python="python3.99")
    assert answer.returncode == 1
    assert "No 'python3.99' on PATH" in answer.stderr


def test_a_python_older_than_3_11_is_refused_with_its_version(machine: Path, tmp_path: Path) -> None:
    provide(machine, "python3", 'case "$1" in -V) echo "Python 3.10.13";; *) exit 1;; esac')
    answer = build(machine, tmp_path / "venv")
    assert answer.returncode == 1
    assert "needs Python 3.11 or newer; 'python3' is Python 3.10.13" in answer.stderr


def test_without_ensurepip_and_without_root_the_package_is_named(machine: Path, tmp_path: Path) -> None:
    python_without_ensurepip(machine)
    answer = build(machine, tmp_path / "venv")
    assert answer.returncode == 1
    assert "python3-venv" in answer.stderr
    assert not (tmp_path / "venv").exists()


def test_without_ensurepip_virtualenv_serves(machine: Path, tmp_path: Path) -> None:
    python_without_ensurepip(machine)
    provide(machine, "virtualenv", f'for last; do :; done; mkdir -p "$last"; echo "$@" > "{tmp_path}/said"')
    answer = build(machine, tmp_path / "venv")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "said").read_text() == f"--quiet --python python3 {tmp_path}/venv\n"


def test_as_root_the_missing_package_is_installed_and_used(machine: Path, tmp_path: Path) -> None:
    provide(machine, "id", "echo 0")
    provide(machine, "dpkg-query", "exit 1")
    provide(machine, "apt-get", f'echo "$@" >> "{tmp_path}/said"; touch "{tmp_path}/installed"')
    provide(
        machine,
        "python3",
        f'case "$*" in *"from ensurepip"*) [ -e "{tmp_path}/installed" ]; exit;; '
        f'"-m venv "*) mkdir -p "$3"; exit;; esac\nexec "{sys.executable}" "$@"',
    )
    answer = build(machine, tmp_path / "venv")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "said").read_text().splitlines() == [
        "update -qq",
        "install -y -qq --no-install-recommends python3-venv",
    ]
    assert (tmp_path / "venv").is_dir()


def test_a_missing_system_package_is_named_when_the_user_is_not_root(machine: Path) -> None:
    provide(machine, "dpkg-query", 'case "$*" in *present*) echo installed;; *) exit 1;; esac')
    command = [str(machine / "sh"), str(ROOT / "scripts" / "system-packages.sh"), "present", "absent"]
    answer = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(machine)})
    assert answer.returncode == 1
    assert answer.stderr == "Missing system packages: absent. As root: apt-get install absent\n"


def test_no_system_package_wanted_is_no_work(machine: Path) -> None:
    command = [str(machine / "sh"), str(ROOT / "scripts" / "system-packages.sh")]
    assert subprocess.run(command, env={"PATH": str(machine)}).returncode == 0
