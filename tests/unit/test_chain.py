"""The evidence chain: canonical bytes against vectors, and every way in which a chain can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rearguard.rules.chain import GENESIS, NotCanonicalError, canonical_bytes, record_hash, verify_chain

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "chain.json").read_text(encoding="utf-8"))


def chain(length: int, ts: str = "2026-11-23T09:14:03Z") -> list[dict[str, Any]]:
    """A sound chain."""
    records: list[dict[str, Any]] = []
    for number in range(1, length + 1):
        fields: dict[str, Any] = {
            "id": number,
            "ts": ts,
            "monotonic_ns": str(number),
            "boot_id": "boot",
            "run_id": "run_1",
            "service": "fraud",
            "env": "prod",
            "kind": "automation_armed",
            "body": {"by": f"person {number}"},
            "prev": records[-1]["hash"] if records else GENESIS,
        }
        records.append({**fields, "hash": record_hash(fields)})
    return records


def rehash(records: list[dict[str, Any]], start: int) -> None:
    """Make everything from an index on consistent again, as somebody with the rules at hand would."""
    for index in range(start, len(records)):
        records[index]["prev"] = records[index - 1]["hash"] if index else GENESIS
        records[index]["hash"] = record_hash(records[index])


def found(records: list[dict[str, Any]]) -> tuple[int, str] | None:
    finding = verify_chain(records)
    return (finding.id, finding.code) if finding else None


# --- canonical bytes


@pytest.mark.parametrize("case", VECTORS["canonical"], ids=lambda case: case["why"])
def test_canonical_bytes_are_those_of_rfc_8785(case: dict[str, str]) -> None:
    assert canonical_bytes(json.loads(case["json"])) == case["canonical"].encode("utf-8")


@pytest.mark.parametrize("number", [0, 1])
def test_a_record_hashes_to_the_sha256_of_its_canonical_form(number: int) -> None:
    vector = VECTORS["records"][number]
    assert record_hash(json.loads(vector["canonical"])) == vector["hash"]


def test_the_vector_is_a_sound_chain() -> None:
    assert verify_chain([{**json.loads(v["canonical"]), "hash": v["hash"]} for v in VECTORS["records"]]) is None


@pytest.mark.parametrize(
    "value",
    [1.0, {"a": [1, {"b": 0.5}]}, float("nan"), 2**53, -(2**53), {"é": 1}, {1: 2}, b"x", {1, 2}, "\ud800", ["a\udfff"]],
    ids=repr,
)
def test_a_value_without_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(NotCanonicalError):
        canonical_bytes(value)


def test_the_refusal_names_the_place_of_the_value() -> None:
    with pytest.raises(NotCanonicalError, match=r"\$\.steps\[1\]\.took"):
        canonical_bytes({"steps": [{"took": 1}, {"took": 1.5}]})


# --- what breaks a chain


def test_an_empty_chain_is_sound() -> None:
    assert verify_chain([]) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ts", "2026-11-23T09:14:04Z"),
        ("monotonic_ns", "0"),
        ("boot_id", "another"),
        ("run_id", None),
        ("service", "other"),
        ("env", "stage"),
        ("kind", "automation_disarmed"),
        ("body", {"by": "somebody else"}),
    ],
)
def test_an_edit_of_any_field_is_named_at_its_record(field: str, value: object) -> None:
    records = chain(5)
    records[2][field] = value
    assert found(records) == (3, "hash_mismatch")


def test_an_added_field_is_named_at_its_record() -> None:
    records = chain(5)
    records[2]["comment"] = "harmless"
    assert found(records) == (3, "hash_mismatch")


def test_a_removed_field_is_named_at_its_record() -> None:
    records = chain(5)
    del records[2]["env"]
    assert found(records) == (3, "hash_mismatch")


def test_an_edit_with_its_own_hash_made_right_is_named_at_the_next_record() -> None:
    records = chain(5)
    records[2]["body"] = {"by": "somebody else"}
    records[2]["hash"] = record_hash(records[2])
    assert found(records) == (4, "prev_mismatch")


def test_a_deleted_record_is_named_as_missing() -> None:
    records = chain(5)
    del records[2]
    assert found(records) == (3, "gap")


def test_a_deleted_record_whose_followers_were_renumbered_is_named() -> None:
    records = chain(5)
    del records[2]
    for number, fields in enumerate(records, 1):
        fields["id"] = number
    assert found(records) == (3, "prev_mismatch")


def test_swapped_records_are_named_at_the_first_of_them() -> None:
    records = chain(5)
    records[1], records[3] = records[3], records[1]
    assert found(records) == (2, "gap")


def test_swapped_bodies_are_named_at_the_first_of_them() -> None:
    records = chain(5)
    records[1]["body"], records[3]["body"] = records[3]["body"], records[1]["body"]
    assert found(records) == (2, "hash_mismatch")


def test_an_inserted_copy_is_named_where_it_stands() -> None:
    records = chain(5)
    records.insert(2, dict(records[1]))
    assert found(records) == (3, "gap")


def test_a_record_before_the_first_is_named() -> None:
    records = chain(3)
    records[0]["prev"] = "f" * 64
    records[0]["hash"] = record_hash(records[0])
    assert found(records) == (1, "prev_mismatch")


def test_a_chain_without_its_beginning_is_named_at_one() -> None:
    assert found(chain(5)[1:]) == (1, "gap")


def test_an_id_that_is_no_number_is_a_gap() -> None:
    records = chain(2)
    records[1]["id"] = "2"
    assert found(records) == (2, "gap")


def test_a_float_in_a_record_is_named_at_its_record() -> None:
    records = chain(3)
    records[1]["body"] = {"by": 1.0}
    assert found(records) == (2, "not_canonical")


def test_half_a_surrogate_in_a_record_is_named_at_its_record() -> None:
    records = chain(3)
    records[1]["body"] = {"by": "\ud800"}
    assert found(records) == (2, "not_canonical")


def test_a_truncated_tail_is_not_seen_by_the_chain_alone() -> None:
    """Documented in limits.md; `log verify` sees it by how far the files reached."""
    assert verify_chain(chain(5)[:3]) is None


@pytest.mark.parametrize(("ts", "sound"), [("2026-11-23T09:12:03Z", True), ("2026-11-23T09:12:02Z", False)])
def test_a_record_may_step_back_120_s_and_not_121(ts: str, sound: bool) -> None:
    """R58: `ts` 09:14:03 of the record before, less 120 s, is 09:12:03."""
    records = chain(3)
    records[1]["ts"] = ts
    rehash(records, 1)
    assert found(records) == (None if sound else (2, "back_dated"))


def test_small_steps_back_do_not_add_up_unseen() -> None:
    """Each record is compared with the newest stamp before it: 09:14:03, 09:13:03, 09:12:03, 09:11:03."""
    records = chain(4)
    for index, minute in enumerate((13, 12, 11), 1):
        records[index]["ts"] = f"2026-11-23T09:{minute}:03Z"
    rehash(records, 1)
    assert found(records) == (4, "back_dated")
