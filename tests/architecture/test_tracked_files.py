"""What the repository holds, and what it must not hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IGNORED = {".git", ".venv", "__pycache__", "demo-state", "dist", ".rearguard", ".hypothesis"}

# Put together from halves, so that this file does not hold what it looks for.
HOMES = re.compile("/" + r"(?:home|Users)/[A-Za-z0-9_.-]+/|/" + "root/|/" + "work/")
HOSTS = re.compile(
    "|".join((r"pypi\." + "org", "pythonhosted" + r"\.org", r"registry\.npmjs", r"deb\.debian" + r"\.org"))
)


def files_of_the_tree() -> list[Path]:
    """Tracked files and new ones that git does not ignore; without git, all but the ignored folders."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode == 0:
            return [path for name in answer.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(part in IGNORED or part.endswith("_cache") for part in path.relative_to(ROOT).parts)
    ]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """`file:line` of each match in a text file of the tree."""
    found = []
    for path in files_of_the_tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(text.splitlines(), start=1)
            if pattern.search(line)
        ]
    return found


def test_the_tree_is_found() -> None:
    assert ROOT / "pyproject.toml" in files_of_the_tree()


def test_no_file_names_a_folder_of_one_machine() -> None:
    assert lines_with(HOMES) == []
    assert lines_with(re.compile(re.escape(f"{ROOT}/"))) == []


def test_no_file_names_a_package_registry() -> None:
    assert lines_with(HOSTS) == []


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "docs/explanation/limits.md",
        "docs/reference/exit-codes.md",
    ],
)
def test_the_documents_that_a_newcomer_looks_for_exist(name: str) -> None:
    assert (ROOT / name).is_file()


def test_the_changelog_has_a_place_for_what_is_not_released() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
