"""What the gate says of the facts of one place (R112): one table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rearguard.model.checkpoint import Checkpoint
from rearguard.model.outcome import Outcome, combine
from rearguard.model.service import Digest, Place
from rearguard.model.time import Instant
from rearguard.rules.brakes import Brake, Hold
from rearguard.rules.gate import GateCheck, GateFacts, Wanted, judge
from rearguard.rules.selection import Candidate, Rejected, Selection

NOW = Instant(wall_ns=1_000_000 * 10**9, mono_ns=500_000 * 10**9, boot_id="boot")
MINUTE_NS = 60 * 10**9


def way_back(*, stale: bool = False) -> Selection:
    checkpoint = Checkpoint(
        digest=Digest("sha256:1"),
        service="fraud",
        version="v1",
        format="onnx",
        files=(),
        golden_sha256="",
        added_at=NOW,
        verified_at=NOW,
        load_ms=None,
        failure="",
    )
    return Selection(candidates=(Candidate(checkpoint=checkpoint, stale=stale, served_before=True),), rejected=())


NO_WAY_BACK = Selection(candidates=(), rejected=(Rejected(digest=Digest("sha256:1"), version="v1", reason="active"),))
V2 = Wanted(version="v2", is_active=False, is_quarantined=False, failure="", proof_age_ns=0)
READY = GateFacts(
    place=Place(service="fraud", env="prod"),
    open_run=None,
    open_incident=None,
    frozen_until=None,
    frozen_reason=None,
    hold=None,
    officer_held=True,
    officer_hung=False,
    silent_since=None,
    serves=True,
    after=way_back(),
    wanted=V2,
)


def hold(brake: Brake) -> dict[str, Any]:
    return {"hold": Hold(brake=brake, until=None)}


def wanted(**changed: Any) -> dict[str, Any]:
    return {"wanted": replace(V2, **changed)}


def found(facts: GateFacts) -> list[GateCheck]:
    return [check for check in judge(facts) if check.outcome is not Outcome.PASS]


def test_a_place_with_nothing_against_it_passes_every_check() -> None:
    checks = judge(READY)
    assert {check.outcome for check in checks} == {Outcome.PASS}
    assert len(checks) == 10


def test_without_a_version_the_place_alone_is_judged() -> None:
    assert [c.name for c in judge(replace(READY, wanted=None))] == [
        "rollback",
        "incident",
        "freeze",
        "automation",
        "officer",
        "telemetry",
        "way back",
    ]


FAIL, UNKNOWN = Outcome.FAIL, Outcome.INCONCLUSIVE
CASES: list[tuple[dict[str, Any], str, Outcome]] = [
    ({"open_run": "run_1"}, "rollback_open", FAIL),
    ({"open_incident": "R-1"}, "incident_open", FAIL),
    ({"frozen_reason": "year's end"}, "freeze_window", FAIL),
    (hold(Brake.COOL_DOWN), "cool_down", FAIL),
    (hold(Brake.BUDGET), "budget_spent", FAIL),
    (hold(Brake.OBSERVE), "observe", UNKNOWN),
    (hold(Brake.PAUSED), "automation_paused", UNKNOWN),
    (hold(Brake.FREEZE), "freeze_window", UNKNOWN),
    ({"officer_held": False}, "officer_absent", UNKNOWN),
    ({"officer_hung": True}, "officer_hung", UNKNOWN),
    ({"settings_changed": True}, "settings_changed", UNKNOWN),
    ({"silent_since": "2026-11-23T09:14:03Z"}, "telemetry_silent", UNKNOWN),
    ({"observed": False}, "nothing_observed", UNKNOWN),
    ({"approval_required": True, "approvers": 0}, "no_approver", FAIL),
    ({"after": NO_WAY_BACK}, "no_verified_checkpoint", FAIL),
    ({"after": NO_WAY_BACK, "serves": False}, "no_way_back", FAIL),
    ({"after": way_back(stale=True)}, "rollback_target_stale", UNKNOWN),
    (wanted(is_quarantined=True), "quarantined", FAIL),
    (wanted(failure="load_failed"), "verification_failed", FAIL),
    (wanted(proof_age_ns=None), "never_verified", FAIL),
    (wanted(is_active=True), "active_already", UNKNOWN),
    (wanted(proof_age_ns=15 * MINUTE_NS + 1), "proof_stale", UNKNOWN),
    (wanted(proof_age_ns=-1), "proof_stale", UNKNOWN),
]


@pytest.mark.parametrize(("changed", "code", "outcome"), CASES)
def test_one_fact_against_it_is_one_check_that_does_not_pass(
    changed: dict[str, Any], code: str, outcome: Outcome
) -> None:
    (check,) = found(replace(READY, **changed))
    assert (check.code, check.outcome) == (code, outcome)
    assert check.message
    assert check.hint


def test_a_proof_of_15_minutes_is_fresh_enough() -> None:
    """R14, inclusive."""
    assert found(replace(READY, **wanted(proof_age_ns=15 * MINUTE_NS))) == []


def test_a_refusal_wins_over_what_is_not_known() -> None:
    checks = found(replace(READY, officer_held=False, open_incident="R-1"))
    assert combine(c.outcome for c in checks) is Outcome.FAIL


def test_the_hint_for_a_stale_way_back_is_the_command_that_renews_it() -> None:
    (check,) = found(replace(READY, after=way_back(stale=True)))
    assert check.hint == "rearguard checkpoint verify --service fraud --version v1"


def test_the_end_of_a_freeze_window_is_told() -> None:
    """A million seconds after the epoch is 12 January 1970, 13:46:40."""
    (check,) = found(replace(READY, frozen_reason="year's end", frozen_until=NOW))
    assert "1970-01-12T13:46:40Z" in check.message
