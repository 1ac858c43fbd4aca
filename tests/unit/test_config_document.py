"""Settings files are read strictly, within bounds, and as text."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from rearguard.config.document import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    Mapping,
    Node,
    Scalar,
    Sequence,
    parse_document,
    read_document,
)
from rearguard.errors import ConfigError


def tree(text: str) -> Node:
    return parse_document(text.encode(), "f.yaml").root


def refused(raw: bytes | str) -> ConfigError:
    data = raw.encode() if isinstance(raw, str) else raw
    with pytest.raises(ConfigError) as caught:
        parse_document(data, "f.yaml")
    return caught.value


def test_a_tree_keeps_order_lines_and_text() -> None:
    assert tree("a: 1.10\nb:\n  - no\n  - 'x'\n") == Mapping(
        (
            (Scalar("a", 1, False), Scalar("1.10", 1, False)),
            (Scalar("b", 2, False), Sequence((Scalar("no", 3, False), Scalar("x", 4, True)), 3)),
        ),
        1,
    )


def test_the_digest_is_that_of_the_bytes() -> None:
    raw = "a: é  # comment\n".encode()
    assert parse_document(raw, "f").sha256 == hashlib.sha256(raw).hexdigest()


def test_find_gives_none_for_a_key_that_does_not_stand_there() -> None:
    root = tree("a: 1\n")
    assert isinstance(root, Mapping)
    assert root.find("b") is None


def test_a_byte_order_mark_is_read_over() -> None:
    root = parse_document(b"\xef\xbb\xbfa: 1\n", "f").root
    assert isinstance(root, Mapping)
    assert root.find("a") == Scalar("1", 1, False)


@pytest.mark.parametrize(
    ("raw", "code", "line"),
    [
        ("a: &x 1\n", "config_anchor", 1),
        ("a: 1\nb: *x\n", "config_alias", 2),
        ("a:\n  <<: {b: 1}\n", "config_merge_key", 2),
        ("a: !!str 1\n", "config_tag", 1),
        ("a: !python/object:os.system x\n", "config_tag", 1),
        ("a: ! 1\n", "config_tag", 1),
        ("a: !!map {}\n", "config_tag", 1),
        ("a: 1\n---\nb: 2\n", "config_several_documents", 2),
        ("a: 1\nb: 2\na: 3\n", "config_duplicate_key", 3),
        ("a: 1\n'a': 2\n", "config_duplicate_key", 2),
        ("1: x\n", "config_key_not_text", 1),
        ("no: x\n", "config_key_not_text", 1),
        ("~: x\n", "config_key_not_text", 1),
        ("2026-11-23: x\n", "config_key_not_text", 1),
        ("? [a]\n: x\n", "config_key_not_text", 1),
        ("? {a: b}\n: x\n", "config_key_not_text", 1),
        ("", "config_empty", 0),
        ("# nothing\n", "config_empty", 0),
        ("a: 1\nb: [1\n", "config_syntax", 3),
        ("a: 1\n\tb: 2\n", "config_syntax", 2),
        ("a: 1\nb: \x07\n", "config_syntax", 2),
        ('a: "\\UFFFFFFFF"\n', "config_syntax", 1),
        ("%YAML 1." + "1" * 5_000 + "\n---\na: 1\n", "config_syntax", 1),
        ('a: "\\0"\n', "config_character", 1),
        ('a: "\\ud800"\n', "config_character", 1),
        (b"a: 1\nb: \x00\n", "config_character", 2),
        (b"a: 1\nb: \xff\n", "config_not_utf8", 2),
        ("a: 1\n".encode("utf-16"), "config_character", 1),
    ],
)
def test_what_a_file_may_not_hold_is_refused_with_its_line(raw: bytes | str, code: str, line: int) -> None:
    error = refused(raw)
    assert (error.code, error.line, error.file) == (code, line, "f.yaml")


def test_a_quoted_key_is_text_whatever_it_looks_like() -> None:
    root = tree("'1': x\n'no': y\n")
    assert isinstance(root, Mapping)
    assert [key.text for key, _ in root.entries] == ["1", "no"]


def test_the_same_key_in_two_sections_is_no_duplicate() -> None:
    assert isinstance(tree("a: {x: 1}\nb: {x: 1}\n"), Mapping)


def test_a_duplicate_names_the_path_and_the_first_line() -> None:
    error = refused("a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert error.message == "f.yaml:4: a.b stands twice (first in line 2); expected each key once"


@pytest.mark.parametrize("opener", ["[", "{", "- ", "? ", "[\n", "{a: "])
def test_a_hundred_thousand_openers_are_refused(opener: str) -> None:
    assert refused(opener * 100_000).code in {"config_too_deep", "config_key_not_text"}


def test_the_deepest_accepted_nesting_is_the_limit() -> None:
    assert isinstance(tree("[" * MAX_DEPTH + "]" * MAX_DEPTH), Sequence)
    assert refused("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)).code == "config_too_deep"


def test_the_most_nodes_accepted_is_the_limit() -> None:
    # The list itself is a node too.
    assert isinstance(tree("[" + "a," * (MAX_NODES - 1) + "]"), Sequence)
    assert refused("[" + "a," * MAX_NODES + "]").code == "config_too_many_nodes"


def test_a_billion_laughs_stop_at_the_first_anchor() -> None:
    bomb = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    error = refused(bomb)
    assert (error.code, error.line, error.value) == ("config_anchor", 1, "&a")


def test_merge_doubling_stops_at_the_first_anchor() -> None:
    bomb = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 26))
    assert refused(bomb).code == "config_anchor"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["a\n", '"', "%a\n", "- a\n", ": ", "a:\n "])
def test_a_file_of_the_largest_size_is_read_or_refused_in_bounded_time(unit: str) -> None:
    raw = (unit * (MAX_BYTES // len(unit))).encode()
    with contextlib.suppress(ConfigError):
        parse_document(raw, "f.yaml")


def test_one_byte_more_than_the_largest_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1" + b" " * (MAX_BYTES - 4))
    assert isinstance(read_document(path).root, Mapping)
    path.write_bytes(b"a: 1" + b" " * (MAX_BYTES - 3))
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.code == "config_too_large"


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.code == "config_missing"
    assert caught.value.message == f"{path}: does not exist; expected a file"
    assert "rearguard init" in caught.value.hint


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(tmp_path)
    assert caught.value.code == "config_unreadable"


@pytest.mark.timeout(5)
def test_a_pipe_that_nobody_writes_to_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.code == "config_unreadable"


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(Path("a\0b"))
    assert caught.value.code == "config_unreadable"


def test_control_characters_of_a_value_do_not_reach_the_message() -> None:
    # ESC ] 0 ; would retitle the reader's terminal.
    error = refused('a: &x "\\e]0;owned\\a"\n"\\e[2J": *x\n')
    assert error.message.isprintable()


def test_a_long_value_is_shortened_in_the_message() -> None:
    error = refused("a: &" + "x" * 10_000 + " 1\n")
    assert len(error.message) < 200
