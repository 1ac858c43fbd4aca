"""Version labels and file names: what one rule takes, everywhere."""

from __future__ import annotations

import pytest

from rearguard.rules.file_names import fault_of, fault_of_all
from rearguard.rules.labels import is_version


@pytest.mark.parametrize("text", ["v1", "1.0.0+rc-1", "a" * 64, ".1", "1."])
def test_a_label_is_taken(text: str) -> None:
    assert is_version(text)


@pytest.mark.parametrize("text", ["", ".", "..", "...", "a/b", "a b", "a\n", "a" * 65])
def test_what_could_be_taken_for_a_path_or_a_line_is_no_label(text: str) -> None:
    assert not is_version(text)


@pytest.mark.parametrize("path", ["a\\b", "a\nb", "a\x1bb", "a\u202eb", "a\udcffb", "../a", "/a", "a//b"])
def test_an_odd_file_name_has_a_fault(path: str) -> None:
    assert fault_of(path)


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("a", "a-b", "a/c"), ("a.b", "a", "a b", "a/c/d")])
def test_a_file_below_a_file_is_found_whatever_sorts_between_them(paths: tuple[str, ...]) -> None:
    assert fault_of_all(paths) == ("a", "it is a file and a folder")


def test_files_beside_each_other_are_no_folders_of_each_other() -> None:
    assert fault_of_all(["a", "a-b", "ab/c", "a.b/c"]) == ("", "")
