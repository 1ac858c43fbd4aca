"""Laws of the evidence chain, over all JSON that evidence may hold."""

from __future__ import annotations

import json
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from rearguard.rules.chain import GENESIS, canonical_bytes, record_hash, verify_chain

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = st.text(st.characters(max_codepoint=127), max_size=6)
INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
BODIES = st.lists(st.dictionaries(KEYS, JSON, max_size=3), min_size=1, max_size=6)


def chain(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, body in enumerate(bodies, 1):
        fields = {"id": number, "ts": "2026-11-23T09:14:03Z", "kind": "k", "body": body}
        fields["prev"] = records[-1]["hash"] if records else GENESIS
        records.append({**fields, "hash": record_hash(fields)})
    return records


@given(JSON)
def test_canonical_bytes_equal_those_of_an_independent_rfc_8785_library(value: Any) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)


@given(JSON)
def test_canonical_bytes_survive_a_round_trip(value: Any) -> None:
    assert canonical_bytes(json.loads(canonical_bytes(value))) == canonical_bytes(value)


@given(st.dictionaries(KEYS, INTEGERS, min_size=2), st.randoms(use_true_random=False))
def test_canonical_bytes_do_not_depend_on_the_order_of_names(value: dict[str, int], random: Any) -> None:
    names = list(value)
    random.shuffle(names)
    assert canonical_bytes({name: value[name] for name in names}) == canonical_bytes(value)


@given(BODIES)
def test_a_chain_as_written_is_sound_and_so_is_each_beginning_of_it(bodies: list[dict[str, Any]]) -> None:
    records = chain(bodies)
    assert all(verify_chain(records[:size]) is None for size in range(len(records) + 1))


@given(BODIES, st.data())
def test_an_edit_of_any_body_is_named_at_its_record(bodies: list[dict[str, Any]], data: st.DataObject) -> None:
    records = chain(bodies)
    index = data.draw(st.integers(0, len(records) - 1))
    records[index]["body"] = {**bodies[index], "zzzzzzz": data.draw(JSON)}
    finding = verify_chain(records)
    assert finding is not None
    assert (finding.id, finding.code) == (index + 1, "hash_mismatch")


@given(BODIES, st.data())
def test_any_deletion_but_of_the_tail_is_named_as_missing(bodies: list[dict[str, Any]], data: st.DataObject) -> None:
    records = chain([*bodies, {}])
    index = data.draw(st.integers(0, len(records) - 2))
    del records[index]
    finding = verify_chain(records)
    assert finding is not None
    assert (finding.id, finding.code) == (index + 1, "gap")


@given(BODIES, st.data())
def test_any_swap_is_named_at_the_first_of_the_two(bodies: list[dict[str, Any]], data: st.DataObject) -> None:
    records = chain([*bodies, {}])
    first = data.draw(st.integers(0, len(records) - 2))
    second = data.draw(st.integers(first + 1, len(records) - 1))
    records[first], records[second] = records[second], records[first]
    finding = verify_chain(records)
    assert finding is not None
    assert (finding.id, finding.code) == (first + 1, "gap")


@given(BODIES, st.data())
def test_any_insertion_is_named_where_it_stands(bodies: list[dict[str, Any]], data: st.DataObject) -> None:
    """A forger who knows the rules gives it the right id, prev and hash: then its follower no longer fits."""
    records = chain([*bodies, {}])
    index = data.draw(st.integers(0, len(records) - 1))
    forged = {**records[index], "body": {"forged": data.draw(JSON)}}
    records.insert(index, {**forged, "hash": record_hash(forged)})
    finding = verify_chain(records)
    assert finding is not None
    assert (finding.id, finding.code) == (index + 2, "gap")
