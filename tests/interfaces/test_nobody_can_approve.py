"""A place that requires an approval which nobody can give is said to be one, everywhere where somebody would look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE
from conftest_ready import Person, rearguard

WORDS = "nobody can give it"


def check_of(state: Path, command: tuple[str, ...], name: str) -> Any:
    found = json.loads(rearguard(*command, "--state", state, "--json").stdout)
    checks = found if isinstance(found, list) else found["checks"]
    return next((c for c in checks if c["name"] == name), None)


def doctor(state: Path) -> Any:
    return check_of(state, ("doctor",), f"{PLACE} approval")


def gate(state: Path) -> Any:
    return check_of(state, ("gate", SERVICE), "approval")


def test_the_doctor_fails_a_place_where_nobody_can_approve(guarded: Path) -> None:
    check = doctor(guarded)
    assert (check["outcome"], WORDS in check["message"]) == ("fail", True)
    assert check["hint"] == "rearguard key enroll NAME PUBLIC_KEY_FILE"


def test_a_revoked_key_does_not_count(guarded: Path, tmp_path: Path) -> None:
    Person(guarded, tmp_path, "ana")
    rearguard("key", "revoke", "ana", "--state", guarded)
    assert doctor(guarded)["outcome"] == "fail"


def test_with_one_key_its_owner_cannot_have_a_rollback_approved(guarded: Path, tmp_path: Path) -> None:
    Person(guarded, tmp_path, "ana")
    check = doctor(guarded)
    assert (check["outcome"], check["message"]) == (
        "inconclusive",
        "only ana may approve: nobody can approve a rollback that ana asks for",
    )


def test_two_keys_are_enough(guarded: Path, tmp_path: Path) -> None:
    Person(guarded, tmp_path, "ana")
    Person(guarded, tmp_path, "bob")
    assert doctor(guarded)["outcome"] == "pass"


def test_a_place_that_requires_no_approval_is_not_judged(ready: Path) -> None:
    assert (doctor(ready), gate(ready)) == (None, None)


def test_the_gate_refuses_where_nobody_can_approve_and_one_key_mends_it(guarded: Path, tmp_path: Path) -> None:
    check = gate(guarded)
    assert (check["outcome"], check["code"]) == ("fail", "no_approver")
    Person(guarded, tmp_path, "ana")
    assert gate(guarded)["outcome"] == "pass"


def test_arming_warns_where_nobody_can_approve(guarded: Path) -> None:
    done = rearguard("arm", SERVICE, "--env", ENV, "--state", guarded)
    assert (done.returncode, WORDS in done.stderr, WORDS in done.stdout) == (0, True, False)


@pytest.mark.parametrize("word", ["disarm", "arm"])
def test_there_is_no_warning_without_a_reason(guarded: Path, tmp_path: Path, word: str) -> None:
    if word == "arm":
        Person(guarded, tmp_path, "ana")
    assert WORDS not in rearguard(word, SERVICE, "--env", ENV, "--state", guarded).stderr


def test_automation_show_says_that_nobody_can_approve(guarded: Path) -> None:
    assert (
        f"{PLACE}: a rollback needs an approval, and {WORDS}"
        in rearguard("automation", "show", "--state", guarded).stdout
    )
    (found,) = json.loads(rearguard("automation", "show", "--state", guarded, "--json").stdout)
    assert (found["approval_required"], found["approvers"]) == (True, 0)
