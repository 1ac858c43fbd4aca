"""Laws of the registry file: a stranger's YAML reader reads back what was written, and the bytes follow from it."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from rearguard.checkpoints.registry_file import render

# Whatever a label, a path or a reason may hold: all but halves of surrogate pairs, which no file can.
odd = [
    *("null", "yes", "No", "ON", "~", "1e3", "83e855", "0x1f", "1_000", "12:30", "2026-11-24", ".inf", "a: b", "a #b"),
    *("&a", "*a", "!!str", "%", "@", "`", "<<", "=", "|", ">", "a:", ":a", "- a", "a\n", " a", "a ", "'", '"', "\\"),
    *("\x85", "\u2028"),
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(odd)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts
keys = st.sampled_from(["digest", "service", "version", "load_ms", "failure"])
rows = st.dictionaries(keys, scalars, min_size=1)
files = st.lists(rows, max_size=3)
entries = st.lists(
    st.builds(lambda row, found: {**row, "files": found}, rows, files)
    | st.builds(lambda row, found: {"files": found, **row}, rows, files),
    max_size=3,
)
documents = st.fixed_dictionaries({"format": texts, "checkpoints": entries, "quarantine": st.lists(rows, max_size=3)})


@given(documents)
@example({"format": "\ufeff", "checkpoints": [], "quarantine": [{"service": "\x7f\u2029\U0001f600"}]})
def test_a_yaml_reader_reads_back_the_document(document: dict[str, Any]) -> None:
    assert yaml.safe_load(render(document)) == document


@given(documents)
def test_an_export_is_text_that_every_yaml_1_2_reader_takes(document: dict[str, Any]) -> None:
    """YAML 1.2.2, 5.1: printable characters only; and no line break but LF, so that line numbers mean one thing."""
    text = render(document).decode("utf-8")
    assert all(c == "\n" or 0x20 <= ord(c) < 0x7F or ord(c) >= 0xA0 for c in text)
    assert not set("\u2028\u2029\ufeff\ufffe\uffff") & set(text)


@given(texts)
def test_no_plain_text_is_a_number_or_a_truth_value_to_a_yaml_1_1_reader(text: str) -> None:
    (line,) = render({"a": [{"b": text}]}).decode("utf-8").split("\n")[2:3]
    value = line.partition("b: ")[2]
    plain = not value.startswith('"')
    assert not plain or (value[0].isalpha() and value.lower() not in {"y", "n", "yes", "no", "on", "off", "null"})
