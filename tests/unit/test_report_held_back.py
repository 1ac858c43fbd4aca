"""What the status report makes of attempts that were never begun: held back by a brake, or withdrawn by a person."""

from __future__ import annotations

from typing import Any

import pytest

from rearguard.model.evidence import Record
from rearguard.model.report import Report, ReportScope, Result, ScopedPlace, Status, Verdict
from rearguard.model.service import Place
from rearguard.reports.status import build_report

PHANTOM = "run_phantom1"
"""Every entry has a run id; this one no run ever had."""
RUN = "run_ab12"


def entry(id: int, at: str, kind: str, body: dict[str, Any], run_id: str | None) -> Record:
    return Record(
        id=id,
        ts=f"2026-11-{at}Z",
        monotonic_ns="0",
        boot_id="boot",
        run_id=run_id,
        service="credit",
        env="prod",
        kind=kind,
        body=body,
        prev="0" * 64,
        hash="0" * 64,
    )


def verified() -> Record:
    return entry(1, "23T08:00:00", "checkpoint_verified", {"digest": "sha256:aa", "ok": True}, "run_verify")


def opened(run_id: str = PHANTOM, at: str = "23T09:14:00") -> Record:
    body = {"incident_id": "R-1", "trigger": "errors", "observed": "0.18", "limit": "0.01"}
    return entry(2, at, "incident_opened", body, run_id)


def held(id: int = 3, reason: str = "cool_down", at: str = "23T09:14:01") -> Record:
    body = {
        "incident_id": "R-1",
        "trigger": "errors",
        "reason": reason,
        "from_version": "v3",
        "until_ts": "2026-11-23T09:14:42.137Z",
        "after_run_id": None,
    }
    return entry(id, at, "rollback_refused", body, PHANTOM)


def started(id: int = 4, run_id: str = RUN, by: str = "auto") -> Record:
    return entry(id, "23T09:14:42", "rollback_started", {"incident_id": "R-1", "requested_by": by}, run_id)


def ended(id: int = 5, run_id: str = RUN, at: str = "23T09:14:53", **changes: Any) -> Record:
    body = {
        "incident_id": "R-1",
        "trigger": "errors",
        "state": "succeeded",
        "reason": "",
        "to_version": "v2",
        "to_digest": "sha256:aa",
        "rto_achieved_ns": "45000000000",
        "rpo_achieved_ms": 0,
        "rpo_basis": "stateless",
    }
    return entry(id, at, "rollback_finished", body | changes, run_id)


def cancelled(id: int = 5, **changes: Any) -> Record:
    return ended(id, state="cancelled", reason="cancelled", rto_achieved_ns=None, to_version="v3", **changes)


def report_of(*records: Record) -> Report:
    places = (ScopedPlace(place=Place(service="credit", env="prod"), stateless=True),)
    scope = ReportScope(places=places, required_environments=("prod",), chain_ok=True)
    return build_report(records, as_of="2026-11-23T10:00:00Z", scope=scope)


def test_a_breach_that_was_held_back_and_then_restored_is_one_rollback() -> None:
    report = report_of(verified(), opened(), held(), started(), ended())
    assert (report.success.succeeded, report.success.runs) == (1, 1)
    # 45 s are 0.75 min, with one decimal 0.8.
    assert report.metrics[0].observed == "0.8 (max, n=1)"
    assert report.rto.censored == 0
    assert not {"rollback_failed", "rto_over_limit", "at_risk"} & set(report.flags)
    assert report.verdict is Verdict.PARTIAL


def test_a_breach_that_is_held_back_and_not_restored_fails_the_report_without_a_figure() -> None:
    report = report_of(verified(), opened(), held())
    assert (report.success.runs, report.rto.n, report.rpo.n) == (0, 0, 0)
    assert [m.observed for m in report.metrics] == ["—", "—", "—"]
    assert {"rollback_failed", "at_risk", "no_runs"} <= set(report.flags)
    assert "rto_over_limit" not in report.flags
    assert report.verdict is Verdict.FAILED
    assert report.summary[-1] == "At Risk: 1 (`rollback_log.json#3`)."
    assert [e.at_risk for e in report.environments] == [True]


def test_the_row_of_an_incident_that_is_held_back_says_so_and_cites_no_run() -> None:
    row = report_of(verified(), opened(), held(), held(4, "budget_spent", "23T09:20:00")).incidents[0]
    assert (row.at, row.action) == ("2026-11-23T09:20:00Z", "Rollback refused: budget_spent")
    assert (row.rto_min, row.status) == ("—", Status.FAILED)
    assert (row.evidence.ref, row.evidence.run_id) == ("rollback_log.json#2", None)


def test_the_guardrail_of_a_held_back_incident_has_failed_until_it_is_restored() -> None:
    waiting = report_of(verified(), opened(), held()).guardrails[2]
    restored = report_of(verified(), opened(), held(), started(), ended()).guardrails[2]
    assert (waiting.result, waiting.status) == (Result.ROLLBACK_FAILED, Status.FAILED)
    assert waiting.evidence is not None
    assert (waiting.evidence.ref, waiting.evidence.run_id) == ("rollback_log.json#3", None)
    assert (restored.result, restored.status) == (Result.ROLLBACK_EXECUTED, Status.PASSED)


def test_a_run_of_another_incident_does_not_restore_the_one_that_is_held_back() -> None:
    report = report_of(verified(), opened(), held(), ended(incident_id="R-2"))
    assert "rollback_failed" in report.flags
    assert (report.success.succeeded, report.success.runs) == (1, 1)


def test_a_hold_after_a_failed_run_is_told_with_the_rto_of_that_run() -> None:
    lost = ended(4, state="failed", reason="deadline", rto_achieved_ns=None, deadline_ms=720_000)
    report = report_of(verified(), opened(RUN), started(3), lost, held(5, at="23T09:15:00"))
    row = report.incidents[0]
    assert (row.action, row.rto_min) == ("Rollback refused: cool_down", "> 12.0")
    assert (report.success.succeeded, report.success.runs) == (0, 1)


def test_a_run_that_failed_after_the_hold_is_what_the_row_tells() -> None:
    lost = ended(state="failed", reason="deadline", rto_achieved_ns=None)
    row = report_of(verified(), opened(), held(), started(), lost).incidents[0]
    assert (row.at, row.action) == ("2026-11-23T09:14:53Z", "Rollback failed: deadline")


def test_an_open_incident_is_told_as_held_back_however_long_ago_it_was_recorded() -> None:
    old = (opened(at="10T09:14:00"), held(at="10T09:14:01"))
    closed = entry(4, "10T10:00:00", "incident_closed", {"incident_id": "R-1", "by": "ana"}, None)
    assert "rollback_failed" in report_of(verified(), *old).flags
    assert [row.incident_id for row in report_of(verified(), *old).incidents] == ["R-1"]
    assert "rollback_failed" not in report_of(verified(), *old, closed).flags
    assert report_of(verified(), *old, closed).incidents == ()


@pytest.mark.parametrize("reason", ["cool_down", "budget_spent"])
def test_a_run_that_a_brake_refused_after_it_was_asked_for_counts_as_refused(reason: str) -> None:
    body = {"incident_id": "R-1", "trigger": "errors", "reason": reason, "from_version": "v3"}
    refused = entry(3, "23T09:14:41", "rollback_refused", body, RUN)
    report = report_of(verified(), opened(RUN), refused, ended(4, state="refused", reason=reason, rto_achieved_ns=None))
    assert (report.success.succeeded, report.success.runs, report.rto.censored) == (0, 1, 1)
    assert report.summary[-1] == "At Risk: 1 (run_ab12)."


def test_a_refusal_for_want_of_a_checkpoint_counts_without_a_run_and_cites_its_entry() -> None:
    report = report_of(opened(), held(3, "no_verified_target"))
    assert (report.success.succeeded, report.success.runs, report.rto.censored) == (0, 1, 1)
    assert report.closing.evidence == "rollback_log.json#3"


def test_a_run_that_was_cancelled_before_traffic_moved_is_in_no_figure_and_still_at_risk() -> None:
    withdrawn = cancelled(7, run_id="run_cd34", at="23T09:30:00", incident_id=None)
    report = report_of(verified(), opened(RUN), started(), ended(), withdrawn)
    assert (report.success.succeeded, report.success.runs) == (1, 1)
    assert (report.metrics[0].observed, report.rto.unmeasured, report.rpo.n) == ("0.8 (max, n=1)", 0, 1)
    assert report.summary[-1] == "At Risk: 1 (run_cd34)."
    assert report.verdict is Verdict.PARTIAL
    assert report.closing.evidence == "rollback_log.json#run_ab12"


def test_a_run_that_was_cancelled_after_traffic_moved_lowers_the_success_rate() -> None:
    moved = entry(4, "23T09:14:50", "traffic_switched", {"to_version": "v2"}, RUN)
    report = report_of(verified(), opened(RUN), started(3), moved, cancelled())
    assert (report.success.succeeded, report.success.runs, report.rto.unmeasured) == (0, 1, 1)


def test_the_row_of_a_cancelled_run_is_not_a_success() -> None:
    row = report_of(verified(), opened(RUN), started(), cancelled()).incidents[0]
    assert (row.action, row.rto_min, row.status) == ("Rollback cancelled: cancelled", "—", Status.FAILED)


def test_the_newest_entry_is_cited_without_a_run_id_that_no_run_had() -> None:
    assert report_of(verified()).justification.endswith("`rollback_log.json#1` 2026-11-23T08:00:00Z —.")


@pytest.mark.parametrize("kind", ["rollback_started", "approval_requested", "rollback_finished"])
def test_an_entry_of_a_run_proves_its_id(kind: str) -> None:
    proof = {"state": "succeeded"} if kind == "rollback_finished" else {}
    report = report_of(verified(), opened(RUN), entry(3, "23T09:15:00", kind, proof, RUN))
    assert report.incidents[0].evidence.run_id == RUN


def test_what_a_person_calls_a_false_positive_has_nothing_to_restore() -> None:
    closing = {"incident_id": "R-1", "false_positive": True, "by": "ana"}
    with_hold = report_of(verified(), opened(), held())
    closed = report_of(verified(), opened(), held(), entry(4, "23T09:20:00", "incident_closed", closing, None))
    assert with_hold.verdict is Verdict.FAILED
    assert closed.verdict is not Verdict.FAILED
