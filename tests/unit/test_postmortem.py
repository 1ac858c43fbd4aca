"""The post-mortem of one incident: a golden text, and the rules behind its figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rearguard.errors import NotFoundError
from rearguard.model.evidence import Record
from rearguard.reports.postmortem import build_postmortem, render_postmortem


def entry(id: int, ts: str, kind: str, body: dict[str, Any], run_id: str | None = None) -> Record:
    return Record(
        id=id,
        ts=ts,
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


def opened(id: int, ts: str, incident: str, trigger: str = "errors") -> Record:
    window = {"start_s": 100, "end_s": 160, "samples": 4311, "exceedances": 996}
    body = {
        "incident_id": incident,
        "trigger": trigger,
        "digest": "sha256:bb",
        "version": "1.13",
        "observed": "0.231",
        "limit": "0.01",
        "window": window,
        "rule": "literal",
    }
    return entry(id, ts, "incident_opened", body)


def finished(id: int, ts: str, incident: str, run_id: str, **changes: Any) -> Record:
    stamps = [f"2026-11-23T09:14:{s:02d}Z" for s in (20, 33, 34, 34, 35, 36, 40)] + ["2026-11-23T09:15:40Z"]
    body = {
        "incident_id": incident,
        "trigger": "errors",
        "state": "succeeded",
        "reason": "",
        "from_version": "1.13",
        "to_version": "1.12",
        "t": [{"ts": ts, "mono_ns": "0", "boot_id": "boot"} for ts in stamps],
        "offsets_ms": [0, 13000, 14000, 14100, 15000, 16000, 20000, 80000],
        "parts_ms": {"warmup": 4000, "detect": 13000, "decide": 1000, "wait": 100, "restore": 900, "load": 1000},
        "rto_achieved_ms": 20000,
        "rto_objective_ms": 600000,
        "rpo_achieved_ms": 0,
        "rpo_objective_ms": 300000,
        "rpo_basis": "stateless",
    }
    return entry(id, ts, "rollback_finished", body | changes, run_id)


EVIDENCE = [
    opened(3, "2026-11-23T09:14:33Z", "R-1"),
    entry(4, "2026-11-23T09:14:34Z", "rollback_started", {"incident_id": "R-1", "requested_by": "auto"}, "run_ab12"),
    entry(5, "2026-11-23T09:14:50Z", "checkpoint_verified", {"digest": "sha256:cc", "ok": True}),
    finished(6, "2026-11-23T09:15:40Z", "R-1", "run_ab12"),
    entry(7, "2026-11-23T09:15:41Z", "incident_closed", {"incident_id": "R-1", "false_positive": False, "by": "auto"}),
]

GOLDEN = """\
# Post-mortem R-1

- Place: credit/prod, version 1.13
- Digest: sha256:bb
- Opened: 2026-11-23T09:14:33Z `rollback_log.json#3`; closed: 2026-11-23T09:15:41Z
- Runs: run_ab12; false positive: false

## Impact

- Requests in the breach window: 4311 `rollback_log.json#3`
- Failed requests in the breach window: 996 `rollback_log.json#3`
- Fault to restored (ms): 20000 `rollback_log.json#6`

## Trigger

- Error Rate (> 1 %): error_ratio 0.231, limit 0.01, rule literal `rollback_log.json#3`

## Timeline

- 2026-11-23T09:14:33Z `rollback_log.json#3` — incident_opened: trigger=errors, version=1.13, observed=0.231, limit=0.01
- 2026-11-23T09:14:34Z `rollback_log.json#4` run_ab12 rollback_started: requested_by=auto
- 2026-11-23T09:15:40Z `rollback_log.json#6` run_ab12 rollback_finished: trigger=errors, state=succeeded, \
from_version=1.13, to_version=1.12
- 2026-11-23T09:15:41Z `rollback_log.json#7` — incident_closed: false_positive=false, by=auto

## Recovery

t0 first bad observation, or the request of a run without an incident; t1 breach detected; t2 target selected; \
t3 proof of its bytes begun; t4 bytes proven; t5 golden predictions answered; t6 begin and t7 end of the first \
window in which every limit and every golden prediction held. Offsets count from t0; RTO is t6 less t0.

Run run_ab12 `rollback_log.json#6`: succeeded

| Instant | Time | Offset (ms) |
|---|---|---|
| t0 | 2026-11-23T09:14:20Z | 0 |
| t1 | 2026-11-23T09:14:33Z | 13000 |
| t2 | 2026-11-23T09:14:34Z | 14000 |
| t3 | 2026-11-23T09:14:34Z | 14100 |
| t4 | 2026-11-23T09:14:35Z | 15000 |
| t5 | 2026-11-23T09:14:36Z | 16000 |
| t6 | 2026-11-23T09:14:40Z | 20000 |
| t7 | 2026-11-23T09:15:40Z | 80000 |

- Parts (ms): detect 13000, decide 1000, wait 100, restore 900, load 1000, warmup 4000
- RTO (ms): 20000, objective 600000
- RPO (ms): 0, objective 300000, basis stateless

## Root cause

Root cause: not established

## Recovery success ratio

- Error Rate, 90 d: 1/1
- R-1: 1/1 `rollback_log.json#6`

## CI logs

none recorded

## Corrective actions

none recorded

## Narrative

narrative: —
"""


def test_the_post_mortem_of_one_rollback_is_the_text_written_by_hand() -> None:
    assert render_postmortem(build_postmortem(EVIDENCE, "R-1")) == GOLDEN


def test_an_unknown_incident_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(NotFoundError) as caught:
        build_postmortem(EVIDENCE, "R-9")
    assert (caught.value.code, caught.value.hint) == ("incident_unknown", "known incidents: R-1")


def test_the_ratio_counts_incidents_of_the_same_trigger_in_90_days() -> None:
    ninety_days_before = "2026-08-25T09:15:41Z"  # 2026-11-23T09:15:41Z less 90 d: Nov 23, Oct 31, Sep 30, Aug 6 left
    evidence = [
        opened(1, "2026-08-25T09:15:40Z", "R-7"),
        opened(2, ninety_days_before, "R-8"),
        *EVIDENCE,
    ]
    ratio = build_postmortem(evidence, "R-1")["success_ratio"]
    assert (ratio["succeeded"], ratio["incidents"]) == (1, 2)
    assert [c["ref"] for c in ratio["counted"]] == ["rollback_log.json#6", "rollback_log.json#2"]


def test_another_trigger_does_not_enter_the_ratio() -> None:
    evidence = [opened(1, "2026-11-22T09:00:00Z", "R-8", "latency"), *EVIDENCE]
    assert build_postmortem(evidence, "R-1")["success_ratio"]["incidents"] == 1


def test_later_evidence_does_not_change_a_closed_post_mortem() -> None:
    later = [opened(8, "2026-11-23T10:00:00Z", "R-2"), finished(9, "2026-11-23T10:05:00Z", "R-2", "run_ef")]
    assert build_postmortem([*EVIDENCE, *later], "R-1") == build_postmortem(EVIDENCE, "R-1")


def test_a_failed_run_has_no_parts_and_says_so() -> None:
    changes = {"state": "failed", "reason": "deadline", "parts_ms": None, "rto_achieved_ms": None, "t": [None] * 8}
    evidence = [*EVIDENCE[:3], finished(6, "2026-11-23T09:25:00Z", "R-1", "run_ab12", offsets_ms=[None] * 8, **changes)]
    text = render_postmortem(build_postmortem(evidence, "R-1"))
    assert "Run run_ab12 `rollback_log.json#6`: failed (deadline)\n" in text
    assert "- Parts (ms): not measured\n- RTO (ms): —, objective 600000\n" in text
    assert "- Error Rate, 90 d: 0/1\n" in text


def test_an_incident_without_a_rollback_has_no_recovery() -> None:
    text = render_postmortem(build_postmortem(EVIDENCE[:1], "R-1"))
    assert "## Recovery\n\nnone recorded\n" in text


def test_every_timeline_line_cites_an_entry() -> None:
    twin = build_postmortem(EVIDENCE, "R-1")
    assert [line["ref"] for line in twin["timeline"]] == [f"rollback_log.json#{i}" for i in (3, 4, 6, 7)]


def test_the_text_is_a_function_of_the_json_twin() -> None:
    twin = build_postmortem(EVIDENCE, "R-1")
    assert render_postmortem(json.loads(json.dumps(twin))) == render_postmortem(twin)


PHANTOM = "run_phantom1"


def latency_opened(id: int = 3) -> Record:
    window = {"start_s": 100, "end_s": 110, "samples": 37, "exceedances": 36}
    body = {
        "incident_id": "R-1",
        "trigger": "latency",
        "digest": "sha256:bb",
        "version": "1.13",
        "observed": "0.972973",
        "limit": "0.05",
        "p95_ms": "257.384",
        "window": window,
        "rule": "literal",
    }
    return entry(id, "2026-11-23T09:14:33Z", "incident_opened", body, PHANTOM)


def test_a_latency_breach_counts_requests_over_the_limit_and_tells_its_p95() -> None:
    text = render_postmortem(build_postmortem([latency_opened()], "R-1"))
    assert "- Timed requests in the breach window: 37 `rollback_log.json#3`\n" in text
    assert "- Requests over the latency limit in the breach window: 36 `rollback_log.json#3`\n" in text
    assert "- P95 Latency (> target + 5 ms): p95 257.384 ms, over_latency_ratio 0.972973, limit 0.05," in text
    assert "incident_opened: trigger=latency, version=1.13, observed=0.972973, limit=0.05, p95_ms=257.384\n" in text


def test_the_p95_of_a_latency_breach_stands_beside_its_limit() -> None:
    opening = latency_opened()
    opening.body["p95_limit_ms"] = "125"
    text = render_postmortem(build_postmortem([opening], "R-1"))
    assert "p95 257.384 ms (limit 125 ms), over_latency_ratio 0.972973, limit 0.05," in text
    assert "limit=0.05, p95_ms=257.384, p95_limit_ms=125\n" in text


def test_a_compliance_breach_counts_scores_and_no_exceedances() -> None:
    text = render_postmortem(build_postmortem([opened(3, "2026-11-23T09:14:33Z", "R-1", "compliance")], "R-1"))
    assert "## Impact\n\n- Compliance scores in the breach window: 4311 `rollback_log.json#3`\n- Fault" in text


def test_the_p95_of_an_error_breach_is_not_told() -> None:
    opening = opened(3, "2026-11-23T09:14:33Z", "R-1")
    opening.body["p95_ms"] = "43.982"
    assert "p95" not in render_postmortem(build_postmortem([opening], "R-1"))


def test_a_run_id_that_no_run_had_is_not_told() -> None:
    body = {"incident_id": "R-1", "reason": "cool_down", "until_ts": "2026-11-23T09:20:00.000Z", "after_run_id": None}
    evidence = [latency_opened(), entry(4, "2026-11-23T09:14:33Z", "rollback_refused", body, PHANTOM)]
    twin = build_postmortem(evidence, "R-1")
    text = render_postmortem(twin)
    assert PHANTOM not in text + json.dumps(twin)
    assert "- Runs: —; false positive: —\n" in text
    assert "`rollback_log.json#4` — rollback_refused: reason=cool_down, until=2026-11-23T09:20:00.000Z\n" in text
    assert "## Recovery\n\nnone recorded\n" in text


def test_an_approval_names_its_approver() -> None:
    approved = entry(5, "2026-11-23T09:14:40Z", "rollback_approved", {"key_name": "carl"}, "run_ab12")
    text = render_postmortem(build_postmortem([*EVIDENCE[:2], approved], "R-1"))
    assert "`rollback_log.json#5` run_ab12 rollback_approved: approver=carl\n" in text


def pause(id: int, kind: str, by: str, *, service: str = "credit", env: str = "*") -> Record:
    body = {"by": by, "reason": "db migration", "service": service, "env": env}
    return entry(id, "2026-11-23T09:10:00Z", f"automation_{kind}", body, f"run_pause{id}")


def test_the_timeline_names_who_paused_the_place_and_why() -> None:
    evidence = [pause(1, "paused", "ana"), *EVIDENCE]
    lines = render_postmortem(build_postmortem(evidence, "R-1")).split("\n")
    assert (
        "- 2026-11-23T09:10:00Z `rollback_log.json#1` — automation_paused: "
        r"reason=db migration, by=ana, service=credit, env=\*" in lines
    )


def test_pauses_of_other_places_times_and_words_are_not_the_incidents() -> None:
    evidence = [
        pause(1, "paused", "over", env="*"),
        pause(2, "resumed", "over", env="*"),
        latency_opened(),
        pause(4, "paused", "elsewhere", service="fraud"),
        pause(5, "paused", "within", service="*"),
        entry(6, "2026-11-23T09:20:00Z", "incident_closed", {"incident_id": "R-1", "by": "bob"}),
        pause(7, "resumed", "late", service="*"),
        entry(8, "2026-11-23T09:30:00Z", "postmortem_written", {"incident_id": "R-1"}),
    ]
    assert [line["ref"] for line in build_postmortem(evidence, "R-1")["timeline"]] == [
        f"rollback_log.json#{i}" for i in (3, 5, 6, 8)
    ]


def test_the_lost_rungs_of_a_ladder_are_told_with_their_reasons() -> None:
    lost = {"rung": 1, "version": "1.12", "digest": "sha256:cc", "step": "probe", "reason": "golden_probe_failed"}
    evidence = [
        *EVIDENCE[:2],
        entry(5, "2026-11-23T09:14:50Z", "rung_lost", lost | {"message": "2 of 5 answers differ"}, "run_ab12"),
        *EVIDENCE[3:],
    ]
    text = render_postmortem(build_postmortem(evidence, "R-1"))
    assert (
        "- Rung 1 lost: version 1.12 at probe, golden_probe_failed: 2 of 5 answers differ `rollback_log.json#5`\n"
        in text
    )
    assert "rung_lost: reason=golden_probe_failed, version=1.12, rung=1, step=probe\n" in text


@pytest.mark.parametrize(("step_ms", "found"), [(1000, False), (1001, True), (-1001, True), (0, False), (None, False)])
def test_a_clock_that_stepped_by_more_than_a_second_is_a_finding(step_ms: int | None, found: bool) -> None:
    evidence = [*EVIDENCE[:3], finished(6, "2026-11-23T09:15:40Z", "R-1", "run_ab12", clock_step_ms=step_ms)]
    text = render_postmortem(build_postmortem(evidence, "R-1"))
    told = f"- Finding: the wall clock stepped by {step_ms} ms against the monotonic clock (limit 1000)"
    assert (told in text) is found
    assert ("Finding" in text) is found
