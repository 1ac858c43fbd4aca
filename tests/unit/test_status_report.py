"""The strict status report: golden Markdown for three small evidence sets, then one claim a rule."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rearguard.model.evidence import Record
from rearguard.model.report import Report, ReportScope, Result, ScopedPlace, Status, Verdict
from rearguard.model.service import Place
from rearguard.reports.render.json import render_json
from rearguard.reports.render.markdown import render_markdown
from rearguard.reports.status import build_report

PLACE = Place(service="credit", env="prod")
AS_OF = "2026-11-23T10:00:00Z"


def scope(*, stateless: bool = True, chain_ok: bool = True) -> ReportScope:
    return ReportScope(
        places=(ScopedPlace(place=PLACE, stateless=stateless),), required_environments=("prod",), chain_ok=chain_ok
    )


def record(
    id: int, ts: str, kind: str, body: dict[str, Any], run_id: str | None = None, env: str | None = "prod"
) -> Record:
    return Record(
        id=id,
        ts=ts,
        monotonic_ns="0",
        boot_id="boot",
        run_id=run_id,
        service="credit",
        env=env,
        kind=kind,
        body=body,
        prev="0" * 64,
        hash="0" * 64,
    )


def verified(id: int = 1, ts: str = "2026-11-23T08:00:00Z", ok: bool = True, digest: str = "sha256:aa") -> Record:
    body = {"digest": digest, "service": "credit", "version": "1.12", "ok": ok, "code": "", "load_ms": 900}
    return record(id, ts, "checkpoint_verified", body, env=None)


def opened(id: int, ts: str, incident: str = "R-1", trigger: str = "errors") -> Record:
    body = {
        "incident_id": incident,
        "trigger": trigger,
        "digest": "sha256:bb",
        "version": "1.13",
        "observed": "0.231",
        "limit": "0.01",
        "window": {"start_s": 100, "end_s": 160, "samples": 4311, "exceedances": 996},
        "rule": "literal",
    }
    return record(id, ts, "incident_opened", body)


def started(id: int, ts: str, run_id: str = "run_ab12", by: str = "auto") -> Record:
    body = {"incident_id": "R-1", "trigger": "errors", "requested_by": by}
    return record(id, ts, "rollback_started", body, run_id)


def finished(id: int, ts: str, run_id: str = "run_ab12", incident: str | None = "R-1", **changes: Any) -> Record:
    body = {
        "incident_id": incident,
        "trigger": "errors",
        "state": "succeeded",
        "reason": "",
        "to_version": "1.12",
        "to_digest": "sha256:aa",
        "rto_achieved_ns": "138000000000",
        "rto_achieved_ms": 138000,
        "rpo_achieved_ms": 0,
        "rpo_basis": "stateless",
    }
    return record(id, ts, "rollback_finished", body | changes, run_id)


def refused(id: int, ts: str, run_id: str | None = "run_cd34", incident: str | None = "R-1") -> Record:
    body = {"incident_id": incident, "trigger": "errors", "reason": "no_verified_target", "from_version": "1.13"}
    return record(id, ts, "rollback_refused", body, run_id)


ONE_ROLLBACK = [
    verified(),
    record(2, "2026-11-23T09:00:00Z", "deployment_active", {"version": "1.13"}),
    opened(3, "2026-11-23T09:14:33Z"),
    started(4, "2026-11-23T09:14:34Z"),
    finished(5, "2026-11-23T09:17:30Z"),
    record(6, "2026-11-23T09:17:31Z", "incident_closed", {"incident_id": "R-1", "false_positive": False, "by": "auto"}),
]

GOLDEN_EMPTY = """\
### ROLLBACK STATUS SUMMARY (≤ 120 words)

Window: 7 d to n/a. Incidents: 0. Rollbacks succeeded: 0/0. Places with verified checkpoint: 0/1; warm standby: 0/1. \
Rollback paths tested within 7 d: 0/1. Environments with 0 drills in 7 d: prod.

### GUARDRAIL TABLE

| Trigger | Threshold | Last Test / Event | Result | Status | Evidence |
|---|---|---|---|---|---|
| Compliance Drop | −2 pts | — | No event | ⚠️ | — |
| P95 Latency | > target + 5 ms | — | No event | ⚠️ | — |
| Error Rate | > 1 % | — | No event | ⚠️ | — |

### METRICS & RECOVERY PERFORMANCE

| Metric | Target | Observed | CI95 | Status | Evidence |
|---|---|---|---|---|---|
| RTO (min) | < 10 | — | n/a | ⚠️ | — |
| RPO (min) | < 5 | — | n/a | ⚠️ | — |
| Recovery Success Rate | 100 % | — | n/a | ⚠️ | — |

### INCIDENT SUMMARY

| Incident ID | Trigger | Action Taken | RTO (min) | Success | Root Cause Note |
|---|---|---|---|---|---|
| none | — | — | — | — | — |

---

### VERDICT & ACTION

**Verdict:** 🚨 Failed\x20\x20
**Next Action:** Alert Ops Commander\x20\x20
**Justification (≤ 25 words):** Flags set (5): no_validated_checkpoint, path_untested, environment_missing, \
guardrail_warning, no_runs; evidence `none`.

> **Rollback Officer Verdict:** Failed — RTO =n/a min, RPO =n/a min, Success =n/a %, evidence =`none`.
"""

GOLDEN_ROLLBACK = """\
### ROLLBACK STATUS SUMMARY (≤ 120 words)

Window: 7 d to 2026-11-23T10:00:00Z. Incidents: 1. R-1 `rollback_log.json#3` run_ab12 Error Rate at \
2026-11-23T09:17:30Z: Auto rollback → restored v1.12, RTO 2.3 min. Rollbacks succeeded: 1/1, with 95 % confidence \
≥ 5.0 %. RPO (min): 0.0 (max, n=1); stateless: 1/1. Places with verified checkpoint: 1/1; warm standby: 0/1. \
Rollback paths tested within 7 d: 0/1. Environments with 0 drills in 7 d: prod.

### GUARDRAIL TABLE

| Trigger | Threshold | Last Test / Event | Result | Status | Evidence |
|---|---|---|---|---|---|
| Compliance Drop | −2 pts | — | No event | ⚠️ | — |
| P95 Latency | > target + 5 ms | — | No event | ⚠️ | — |
| Error Rate | > 1 % | 2026-11-23T09:17:30Z | Rollback executed | ✅ | `rollback_log.json#5` run_ab12 |

### METRICS & RECOVERY PERFORMANCE

| Metric | Target | Observed | CI95 | Status | Evidence |
|---|---|---|---|---|---|
| RTO (min) | < 10 | 2.3 (max, n=1) | n/a | ✅ | `rollback_log.json#5` run_ab12 |
| RPO (min) | < 5 | 0.0 (max, n=1) | n/a | ✅ | `rollback_log.json#5` run_ab12 |
| Recovery Success Rate | 100 % | 100.0 % (1/1) | [2.5, 100.0] % | ✅ | `rollback_log.json#5` run_ab12 |

### INCIDENT SUMMARY

| Incident ID | Trigger | Action Taken | RTO (min) | Success | Root Cause Note |
|---|---|---|---|---|---|
| R-1 `rollback_log.json#3` run_ab12 | Error Rate | 2026-11-23T09:17:30Z Auto rollback → restored v1.12 | 2.3 | ✅ \
| undetermined: error_ratio=0.231 (0.01) |

---

### VERDICT & ACTION

**Verdict:** ⚠️ Partial\x20\x20
**Next Action:** Trigger Full Audit\x20\x20
**Justification (≤ 25 words):** Flags set (3): path_untested, environment_missing, guardrail_warning; \
`rollback_log.json#5` 2026-11-23T09:17:30Z run_ab12.

> **Rollback Officer Verdict:** Partial — RTO =2.3 min, RPO =0.0 min, Success =100 %, \
evidence =`rollback_log.json#run_ab12`.
"""

GOLDEN_REFUSED = """\
### ROLLBACK STATUS SUMMARY (≤ 120 words)

Window: 7 d to 2026-11-23T09:14:36Z. Incidents: 1. R-1 `rollback_log.json#1` run_cd34 Error Rate at \
2026-11-23T09:14:36Z: Rollback refused: no_verified_target, RTO > 10.0 min. Rollbacks succeeded: 0/1, with 95 % \
confidence ≥ 0.0 %. RPO (min): 0.0 (max, n=1); stateless: 1/1. Places with verified checkpoint: 0/1; warm standby: 0/1. \
Rollback paths tested within 7 d: 0/1. Environments with 0 drills in 7 d: prod. At Risk: 1 (run_cd34).

### GUARDRAIL TABLE

| Trigger | Threshold | Last Test / Event | Result | Status | Evidence |
|---|---|---|---|---|---|
| Compliance Drop | −2 pts | — | No event | ⚠️ | — |
| P95 Latency | > target + 5 ms | — | No event | ⚠️ | — |
| Error Rate | > 1 % | 2026-11-23T09:14:36Z | Rollback failed | 🚨 | `rollback_log.json#4` run_cd34 |

### METRICS & RECOVERY PERFORMANCE

| Metric | Target | Observed | CI95 | Status | Evidence |
|---|---|---|---|---|---|
| RTO (min) | < 10 | > 10.0 (max, n=1) | n/a (1 censored) | 🚨 | `rollback_log.json#4` run_cd34 |
| RPO (min) | < 5 | 0.0 (max, n=1) | n/a | ✅ | `rollback_log.json#4` run_cd34 |
| Recovery Success Rate | 100 % | 0.0 % (0/1) | [0.0, 97.5] % | 🚨 | `rollback_log.json#4` run_cd34 |

### INCIDENT SUMMARY

| Incident ID | Trigger | Action Taken | RTO (min) | Success | Root Cause Note |
|---|---|---|---|---|---|
| R-1 `rollback_log.json#1` run_cd34 | Error Rate | 2026-11-23T09:14:36Z Rollback refused: no_verified_target \
| > 10.0 | 🚨 | undetermined: error_ratio=0.231 (0.01) |

---

### VERDICT & ACTION

**Verdict:** 🚨 Failed\x20\x20
**Next Action:** Alert Ops Commander\x20\x20
**Justification (≤ 25 words):** Flags set (7): rollback_failed, rto_over_limit, no_validated_checkpoint, at_risk, \
path_untested, environment_missing, guardrail_warning; `rollback_log.json#4` 2026-11-23T09:14:36Z run_cd34.

> **Rollback Officer Verdict:** Failed — RTO => 10.0 min, RPO =0.0 min, Success =0 %, \
evidence =`rollback_log.json#run_cd34`.
"""


def test_an_empty_log_is_a_failed_report_without_figures() -> None:
    assert render_markdown(build_report([], as_of=None, scope=scope())) == GOLDEN_EMPTY


def test_one_successful_rollback_of_a_stateless_service_is_partial() -> None:
    assert render_markdown(build_report(ONE_ROLLBACK, as_of=AS_OF, scope=scope())) == GOLDEN_ROLLBACK


def test_a_refusal_with_a_run_counts_once_and_fails_the_report() -> None:
    evidence = [
        opened(1, "2026-11-23T09:14:33Z"),
        started(2, "2026-11-23T09:14:34Z", "run_cd34"),
        refused(3, "2026-11-23T09:14:35Z"),
        finished(
            4,
            "2026-11-23T09:14:36Z",
            "run_cd34",
            state="refused",
            reason="no_verified_target",
            to_version=None,
            to_digest=None,
            rto_achieved_ns=None,
            rto_achieved_ms=None,
        ),
    ]
    assert render_markdown(build_report(evidence, as_of=None, scope=scope())) == GOLDEN_REFUSED


def report_of(*records: Record, **options: Any) -> Report:
    return build_report(records, as_of=AS_OF, scope=scope(**options))


def test_a_refusal_without_a_run_counts_once_per_incident() -> None:
    report = report_of(
        verified(),
        opened(2, "2026-11-23T09:14:33Z"),
        refused(3, "2026-11-23T09:15:00Z", run_id=None),
        refused(4, "2026-11-23T09:16:00Z", run_id=None),
    )
    assert (report.success.runs, report.success.succeeded) == (1, 0)
    assert report.closing.evidence == "rollback_log.json#3"
    assert report.summary[-1] == "At Risk: 1 (`rollback_log.json#3`)."


def test_the_window_of_seven_days_includes_its_first_second() -> None:
    edge = report_of(finished(1, "2026-11-16T10:00:00Z"))
    outside = report_of(finished(1, "2026-11-16T09:59:59Z"))
    assert (edge.success.runs, outside.success.runs) == (1, 0)


def test_a_guardrail_shows_an_event_that_is_older_than_the_window() -> None:
    report = report_of(finished(1, "2026-11-01T10:00:00Z"))
    assert (report.guardrails[2].at, report.guardrails[2].result) == ("2026-11-01T10:00:00Z", Result.ROLLBACK_EXECUTED)


def test_records_after_as_of_are_ignored() -> None:
    assert report_of(*ONE_ROLLBACK, finished(7, "2026-11-23T10:00:01Z", "run_late")) == report_of(*ONE_ROLLBACK)


def test_the_default_instant_is_that_of_the_newest_record() -> None:
    assert build_report(ONE_ROLLBACK, scope=scope()).as_of == "2026-11-23T09:17:31Z"


@pytest.mark.parametrize(
    ("ns", "observed", "status", "flag"),
    [
        ("599999000000", "9.99998 (max, n=1)", Status.PASSED, None),
        ("600000000000", "10.0 (max, n=1)", Status.WARNING, "value_at_limit"),
        ("600001000000", "10.00002 (max, n=1)", Status.FAILED, "rto_over_limit"),
    ],
)
def test_the_rto_row_is_judged_at_full_resolution(ns: str, observed: str, status: Status, flag: str | None) -> None:
    report = report_of(verified(), finished(2, "2026-11-23T09:17:30Z", rto_achieved_ns=ns))
    assert (report.metrics[0].observed, report.metrics[0].status) == (observed, status)
    assert flag is None or flag in report.flags


def test_an_unmeasured_rpo_prints_a_dash_and_is_never_passed() -> None:
    report = report_of(
        verified(),
        finished(2, "2026-11-23T09:17:30Z", rpo_achieved_ms=None, rpo_basis="unmeasured"),
        stateless=False,
    )
    row = report.metrics[1]
    assert (row.observed, row.ci95, row.status) == ("—", "n/a (1 unmeasured)", Status.WARNING)
    assert report.closing.rpo_min == "n/a"
    assert report.at_risk


def test_the_maximum_is_not_told_while_a_measurement_is_missing_unless_it_breaches() -> None:
    unmeasured = finished(2, "2026-11-23T08:17:30Z", "run_a", rto_achieved_ns=None, rto_achieved_ms=None)
    within = report_of(verified(), unmeasured, finished(3, "2026-11-23T09:17:30Z"))
    beyond = report_of(verified(), unmeasured, finished(3, "2026-11-23T09:17:30Z", rto_achieved_ns="720000000000"))
    assert (within.metrics[0].observed, within.metrics[0].status) == ("—", Status.WARNING)
    assert (beyond.metrics[0].observed, beyond.metrics[0].status) == ("12.0 (max, n=2)", Status.FAILED)


def test_a_run_that_calls_itself_stateless_where_the_settings_do_not_is_unmeasured() -> None:
    report = report_of(verified(), finished(2, "2026-11-23T09:17:30Z"), stateless=False)
    assert report.metrics[1].status is Status.WARNING


def test_a_failed_run_is_censored_at_its_own_deadline_and_not_dropped() -> None:
    report = report_of(
        verified(),
        finished(2, "2026-11-23T08:17:30Z"),
        finished(3, "2026-11-23T09:17:30Z", "run_ef", state="failed", reason="deadline", deadline_ms=720_000),
    )
    row = report.metrics[0]
    assert (row.observed, row.ci95, row.status) == ("> 12.0 (max, n=2)", "n/a (1 censored)", Status.FAILED)
    assert report.closing.rto_min == "> 12.0"
    assert (report.metrics[2].observed, report.metrics[2].ci95) == ("50.0 % (1/2)", "[1.3, 98.7] %")
    assert report.verdict is Verdict.FAILED


def test_the_maximum_and_the_interval_of_the_mean_are_printed() -> None:
    # logs of 1 and e minutes: y = 0.5, s^2 = 0.5; centre 0.75; se = sqrt(0.25 + 0.125) = 0.6123724;
    # t(1) = 12.706205; half width 7.780930: exp(-7.03093) = 0.00088, exp(8.53093) = 5069.16, mean exp(0.75) = 2.117.
    report = report_of(
        verified(),
        finished(2, "2026-11-23T08:17:30Z", "run_a", rto_achieved_ns="60000000000"),
        finished(3, "2026-11-23T09:17:30Z", "run_b", rto_achieved_ns="163096909708"),
    )
    row = report.metrics[0]
    assert row.observed == "2.7 (max, n=2)"
    assert row.ci95 == "[0.0, 5069.2] (mean 2.1, n=2)"
    assert row.evidence is not None
    assert row.evidence.run_id == "run_b"


def test_an_incident_without_a_rollback_was_observed_without_action() -> None:
    report = report_of(verified(), opened(2, "2026-11-23T09:14:33Z"))
    row = report.incidents[0]
    assert (row.action, row.rto_min, row.status) == ("observed, no action", "—", Status.FAILED)


@pytest.mark.parametrize(
    ("p95", "limit", "note"),
    [
        ("257.384", "125", "p95_ms=257.384 (125)"),
        ("125.0004", "125", "p95_ms=125.0004 (125)"),
        ("125", "125", "over_latency_ratio=0.231 (0.05)"),
        ("257.384", None, "over_latency_ratio=0.231 (0.05)"),
        (None, "125", "over_latency_ratio=0.231 (0.05)"),
    ],
)
def test_the_note_of_a_latency_breach_is_its_p95_where_that_shows_the_breach(
    p95: str | None, limit: str | None, note: str
) -> None:
    opening = opened(2, "2026-11-23T09:14:33Z", trigger="latency")
    opening.body.update(limit="0.05", p95_ms=p95, p95_limit_ms=limit)
    assert report_of(verified(), opening).incidents[0].root_cause == f"undetermined: {note}"


def test_a_rollback_that_a_person_asked_for_does_not_call_itself_automatic() -> None:
    report = report_of(
        opened(2, "2026-11-23T09:14:33Z"),
        started(3, "2026-11-23T09:14:34Z", by="alice"),
        finished(4, "2026-11-23T09:17:30Z"),
    )
    assert report.incidents[0].action == "Manual rollback → restored v1.12"


def test_incidents_are_ordered_by_number_newest_last() -> None:
    report = report_of(opened(1, "2026-11-23T09:00:00Z", "R-10"), opened(2, "2026-11-23T09:10:00Z", "R-9"))
    assert [row.incident_id for row in report.incidents] == ["R-9", "R-10"]


def test_a_run_without_an_end_puts_the_fleet_at_risk() -> None:
    report = report_of(verified(), opened(2, "2026-11-23T09:14:33Z"), started(3, "2026-11-23T09:14:34Z"))
    assert "at_risk" in report.flags
    assert report.summary[-1] == "At Risk: 1 (run_ab12)."


@pytest.mark.parametrize(
    ("checkpoint", "validated"),
    [
        (verified(1, "2026-11-22T10:00:00Z"), True),  # exactly 24 h
        (verified(1, "2026-11-22T09:59:59Z"), False),
        (verified(1, ok=False), False),
    ],
)
def test_a_place_needs_a_verification_that_passed_within_24_hours(checkpoint: Record, validated: bool) -> None:
    assert ("no_validated_checkpoint" not in report_of(checkpoint).flags) is validated


STANDING = {"digest": "sha256:aa", "version": "1.12", "rss_bytes": None}
LOST = {"digest": "sha256:aa", "version": "1.12", "reason": "standby_gone", "message": ""}


@pytest.mark.parametrize(
    ("later", "warm"),
    [
        ([], 1),
        ([("standby_lost", LOST)], 0),
        ([("standby_lost", LOST), ("standby_standing", STANDING)], 1),
        ([("traffic_switched", {"to_digest": "sha256:aa"})], 0),
        ([("traffic_switched", {"to_digest": "sha256:bb"})], 1),
        ([("deployment_started", {"digest": "sha256:aa"})], 0),
        ([("deployment_unregistered", {"digest": "sha256:aa"})], 0),
        ([("deployment_recorded", {"digest": "sha256:bb"})], 1),
    ],
)
def test_a_standby_counts_while_it_stands_and_does_not_serve(
    later: list[tuple[str, dict[str, Any]]], warm: int
) -> None:
    records = [verified(), record(2, "2026-11-23T09:00:00Z", "standby_standing", STANDING)]
    records += [record(3 + n, "2026-11-23T09:00:01Z", kind, body) for n, (kind, body) in enumerate(later)]
    assert report_of(*records).warm_standbys == warm


def test_a_standby_of_another_place_does_not_count() -> None:
    elsewhere = replace(record(2, "2026-11-23T09:00:00Z", "standby_standing", STANDING), env="staging")
    assert report_of(verified(), elsewhere).warm_standbys == 0


def test_a_later_failed_verification_revokes_an_earlier_pass() -> None:
    report = report_of(verified(1), verified(2, "2026-11-23T09:00:00Z", ok=False))
    assert "no_validated_checkpoint" in report.flags


def test_silent_telemetry_is_inconclusive_until_it_is_back() -> None:
    silent = record(2, "2026-11-23T09:00:00Z", "telemetry_silent", {"outcome": "inconclusive"})
    back = record(3, "2026-11-23T09:05:00Z", "telemetry_back", {})
    assert "telemetry_inconclusive" in report_of(silent).flags
    assert "telemetry_inconclusive" not in report_of(silent, back).flags


def test_a_broken_chain_fails_the_report_and_is_said_in_the_summary() -> None:
    report = report_of(*ONE_ROLLBACK, chain_ok=False)
    assert report.verdict is Verdict.FAILED
    assert "Evidence chain verified: 0/1." in report.summary


def test_the_name_of_a_disarmed_automation_is_in_the_summary() -> None:
    report = report_of(record(1, "2026-11-23T09:00:00Z", "automation_disarmed", {}))
    assert "Automation disarmed: 1/1 places." in report.summary


def test_too_many_incidents_leave_the_three_worst_by_rto_and_a_count() -> None:
    records = [verified()]
    for n in range(1, 9):
        ns = str(60_000_000_000 * n)
        records += [
            opened(2 * n, "2026-11-23T08:30:00Z", f"R-{n}"),
            finished(2 * n + 1, f"2026-11-23T09:0{n}:00Z", f"run_{n}", f"R-{n}", rto_achieved_ns=ns),
        ]
    text = " ".join(report_of(*records).summary)
    assert [f"R-{n} " in text for n in range(1, 9)] == [False] * 5 + [True] * 3
    assert "and 5 more incidents." in text
    assert len(report_of(*records).incidents) == 8


def test_text_from_evidence_cannot_break_a_table_row() -> None:
    report = report_of(
        opened(1, "2026-11-23T09:14:33Z"),
        finished(2, "2026-11-23T09:17:30Z", to_version="1|2 <b>\n| x"),
    )
    assert report.incidents[0].action == r"Auto rollback → restored v1\|2\_\<b\>\_\|\_x"


def test_the_json_twin_carries_the_figures_without_floats() -> None:
    twin = json.loads(render_json(report_of(*ONE_ROLLBACK)), parse_float=pytest.fail)
    assert twin["format"] == "rearguard.report/1"
    assert (twin["verdict"], twin["rto"]["max_ms"], twin["rpo"]["max_ms"]) == ("Partial", 138_000, 0)
    assert twin["success"] == {
        "runs": 1,
        "succeeded": 1,
        "ci95": ["0.025000", "1.000000"],
        "supported_at_95": "0.050000",
    }
    assert twin["environments"] == [
        {"environment": "prod", "runs": 1, "succeeded": 1, "drills": 0, "rto_max_ms": 138_000, "at_risk": False}
    ]


def test_the_json_twin_has_sorted_keys_and_one_final_newline() -> None:
    text = render_json(report_of(*ONE_ROLLBACK))
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
