"""Laws of the report: rounding keeps comparisons, any evidence gives the strict form, equal evidence equal bytes."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rearguard.model.evidence import Record
from rearguard.model.report import ReportScope, ScopedPlace, Verdict
from rearguard.model.service import Place
from rearguard.model.time import rfc3339
from rearguard.reports.render.json import render_json
from rearguard.reports.render.markdown import render_markdown
from rearguard.reports.status import build_report
from rearguard.reports.wording import count_words
from rearguard.rules.objectives import NS_PER_MINUTE, clopper_pearson, print_decimal, print_minutes

START_NS = 1_795_000_000 * 10**9
TRIGGERS = ("errors", "latency", "compliance")
STATES = ("succeeded", "failed", "refused", "inconclusive", "cancelled")
AWKWARD = st.text(st.characters(codec="utf-8"), max_size=12)

REF = r"`rollback_log\.json#\d+` (?:run_[A-Za-z0-9]+|—)"
TS = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
STATUS = "(?:✅|⚠️|🚨)"
MINUTES = r"(?:> )?\d+\.\d+"
RESULT = "(?:Rollback executed|Rollback failed|Test passed|Test failed|No event|No data)"


def sign(x: Fraction) -> int:
    return (x > 0) - (x < 0)


@given(
    bound=st.integers(1, 600).map(lambda x: x * 3_000_000_000),
    near=st.integers(-10_000_000_000, 10_000_000_000),
    far=st.integers(0, 10**14),
)
def test_printed_minutes_stand_to_the_bound_as_the_measurement_does(bound: int, near: int, far: int) -> None:
    # Bounds in whole multiples of 3 s have a finite number of decimals in minutes.
    for ns in (max(0, bound + near), far, bound):
        printed = Fraction(print_minutes(ns, bound))
        assert sign(printed - Fraction(bound, NS_PER_MINUTE)) == sign(Fraction(ns - bound))


@given(ns=st.integers(0, 10**14))
def test_printed_minutes_are_within_half_of_the_last_digit(ns: int) -> None:
    text = print_minutes(ns, 600 * 10**9)
    decimals = len(text.partition(".")[2])
    assert decimals >= 1
    assert abs(Fraction(text) - Fraction(ns, NS_PER_MINUTE)) <= Fraction(1, 2 * 10**decimals)


@given(n=st.integers(1, 10_000), data=st.data())
def test_a_printed_rate_is_100_only_when_all_succeeded(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    for decimals in (0, 1):
        assert (Fraction(print_decimal(Fraction(100 * k, n), Fraction(100), decimals)) == 100) is (k == n)


@given(n=st.integers(1, 200), data=st.data())
@settings(max_examples=30, deadline=None)
def test_an_exact_interval_holds_its_own_rate(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = clopper_pearson(k, n)
    assert 0 <= low <= k / n <= high <= 1


@st.composite
def evidence(draw: st.DrawFn) -> list[Record]:
    """A log of incidents, runs, refusals, verifications and switches, with hostile text where text is free."""
    records: list[Record] = []
    at_s = 0

    def add(kind: str, body: dict[str, Any], run_id: str | None = None) -> None:
        nonlocal at_s
        at_s += draw(st.integers(0, 90_000))
        place = draw(st.sampled_from([("credit", "prod"), ("credit", "staging"), ("fraud", "prod")]))
        records.append(
            Record(
                id=len(records) + 1,
                ts=rfc3339(START_NS + at_s * 10**9),
                monotonic_ns="0",
                boot_id="boot",
                run_id=run_id,
                service=place[0],
                env=place[1],
                kind=kind,
                body=body,
                prev="0" * 64,
                hash="0" * 64,
            )
        )

    for n in range(1, draw(st.integers(0, 9)) + 1):
        trigger = draw(st.sampled_from(TRIGGERS))
        incident: str | None = None
        if draw(st.booleans()):
            incident = f"R-{n}"
            observed = draw(st.one_of(st.none(), st.decimals(0, 1, places=12).map(str)))
            add("incident_opened", {"incident_id": incident, "trigger": trigger, "observed": observed, "limit": "0.01"})
        ending = draw(st.sampled_from(["none", "refused", "held", "run", "run", "run"]))
        end: dict[str, Any] = {
            "incident_id": incident,
            "trigger": draw(st.sampled_from([trigger, None])),
            "reason": draw(AWKWARD),
        }
        if ending == "refused":
            add("rollback_refused", end)
        elif ending == "held":
            add("rollback_refused", end | {"reason": "cool_down", "after_run_id": None}, f"run_phantom{n}")
        elif ending == "run":
            run_id = f"run_{n}"
            add("rollback_started", {"requested_by": draw(st.sampled_from(["auto", "alice"]))}, run_id)
            if draw(st.integers(0, 9)) == 0:
                continue
            state = draw(st.sampled_from(STATES))
            ns = draw(st.one_of(st.none(), st.integers(1, 10**12), st.just(600 * 10**9)))
            end |= {
                "state": state,
                "to_version": draw(AWKWARD),
                "to_digest": "sha256:aa",
                "rto_achieved_ns": str(ns) if ns is not None and state == "succeeded" else None,
                "rpo_achieved_ms": draw(st.one_of(st.none(), st.integers(0, 400_000))),
                "rpo_basis": draw(st.sampled_from(["stateless", "unmeasured", "canaries"])),
            }
            add("rollback_finished", end, run_id)
        if draw(st.booleans()):
            add("checkpoint_verified", {"digest": "sha256:aa", "ok": draw(st.booleans())})
        if draw(st.booleans()):
            add(draw(st.sampled_from(["telemetry_silent", "automation_disarmed", "never_heard_of"])), {})
    return records


@st.composite
def scopes(draw: st.DrawFn) -> ReportScope:
    places = draw(
        st.lists(st.sampled_from([("credit", "prod"), ("credit", "staging"), ("fraud", "prod")]), unique=True)
    )
    return ReportScope(
        places=tuple(ScopedPlace(place=Place(service=s, env=e), stateless=draw(st.booleans())) for s, e in places),
        required_environments=tuple(draw(st.lists(AWKWARD, max_size=6))),
        chain_ok=draw(st.booleans()),
    )


def cells(row: str) -> list[str]:
    return [c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]]


@given(records=evidence(), scope=scopes())
@settings(max_examples=150, deadline=None)
def test_the_strict_form_holds_for_any_evidence(records: list[Record], scope: ReportScope) -> None:
    text = render_markdown(build_report(records, scope=scope))
    assert text == unicodedata.normalize("NFC", text)
    assert text.endswith(".\n")
    assert not text.endswith("\n\n")
    assert "\r" not in text
    blocks = text[:-1].split("\n\n")
    assert [b for b in blocks if b.startswith("###")] == [  # R59
        "### ROLLBACK STATUS SUMMARY (≤ 120 words)",
        "### GUARDRAIL TABLE",
        "### METRICS & RECOVERY PERFORMANCE",
        "### INCIDENT SUMMARY",
        "### VERDICT & ACTION",
    ]
    assert len(blocks) == 12
    assert blocks[8] == "---"  # R84

    summary = blocks[1]
    assert "\n" not in summary
    assert count_words(summary) <= 120  # R93
    assert re.search(r"Rollback paths tested within 7 d: \d+/\d+\.", summary)  # R96

    guardrails = blocks[3].split("\n")
    assert guardrails[0] == "| Trigger | Threshold | Last Test / Event | Result | Status | Evidence |"
    labels = [("Compliance Drop", "\u22122 pts"), ("P95 Latency", "> target + 5 ms"), ("Error Rate", "> 1 %")]
    for row, (label, threshold) in zip(guardrails[2:], labels, strict=True):
        assert re.fullmatch(
            rf"\| {label} \| {re.escape(threshold)} \| (?:{TS}|—) \| {RESULT} \| {STATUS} \| (?:{REF}|—) \|", row
        )

    metrics = blocks[5].split("\n")
    assert metrics[0] == "| Metric | Target | Observed | CI95 | Status | Evidence |"
    interval = r"n/a(?: \(\d+ (?:censored|unmeasured)\))?|\[\S+, .+\] \(mean .+, n=\d+\)"
    for row, label in zip(metrics[2:4], (r"RTO \(min\) \| < 10", r"RPO \(min\) \| < 5"), strict=True):
        assert re.fullmatch(
            rf"\| {label} \| (?:{MINUTES} \(max, n=\d+\)|—) \| (?:{interval}) \| {STATUS} \| (?:{REF}|—) \|", row
        )
    assert re.fullmatch(
        r"\| Recovery Success Rate \| 100 % \| (?:\d+\.\d+ % \(\d+/\d+\)|—) \| "
        rf"(?:\[\d+\.\d, \d+\.\d\] %|n/a) \| {STATUS} \| (?:{REF}|—) \|",
        metrics[4],
    )
    assert len(metrics) == 5

    incidents = blocks[7].split("\n")
    assert incidents[0] == "| Incident ID | Trigger | Action Taken | RTO (min) | Success | Root Cause Note |"
    for row in incidents[2:]:
        found = cells(row)
        assert len(found) == 6
        if found[0] == "none":
            assert found[1:] == ["—"] * 5
            assert len(incidents) == 3
            continue
        assert re.fullmatch(rf"R-\d+ {REF}", found[0])
        assert found[1] in {label for label, _ in labels}
        assert re.match(rf"{TS} \S", found[2])
        assert re.fullmatch(rf"{MINUTES}|—", found[3])
        assert found[4] in ("✅", "🚨")
        assert re.fullmatch(r"undetermined(?:: \w+=[\d.]+ \([\d.]+\))?", found[5])

    verdict = re.fullmatch(
        r"\*\*Verdict:\*\* (✅ Ready|⚠️ Partial|🚨 Failed)  \n"
        r"\*\*Next Action:\*\* (Continue Monitoring|Trigger Full Audit|Alert Ops Commander)  \n"
        r"\*\*Justification \(≤ 25 words\):\*\* (.+)",
        blocks[10],
    )
    assert verdict is not None
    assert count_words(verdict[3]) <= 25  # R86
    if records:
        assert re.search(rf"`rollback_log\.json#\d+` {TS} (?:run_\w+|—)\.$", verdict[3])
    number = r"(?:n/a|(?:> )?\d+(?:\.\d+)?)"
    closing = re.fullmatch(
        rf"> \*\*Rollback Officer Verdict:\*\* (Ready|Partial|Failed) — RTO ={number} min, RPO ={number} min, "
        rf"Success ={number} %, evidence =`(?:rollback_log\.json#(?:run_[A-Za-z0-9]+|\d+)|none)`\.",
        blocks[11],
    )
    assert closing is not None
    assert verdict[1].endswith(closing[1])  # R90


PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")


@given(records=evidence(), scope=scopes())
@settings(max_examples=60, deadline=None)
def test_a_commonmark_parser_sees_the_fixed_block_sequence(records: list[Record], scope: ReportScope) -> None:
    tokens = PARSER.parse(render_markdown(build_report(records, scope=scope)))
    blocks = [t.tag for t in tokens if t.level == 0 and t.nesting >= 0]
    assert blocks == ["h3", "p", *["h3", "table"] * 3, "hr", "h3", "p", "blockquote"]  # RR101
    inline = [child.type for t in tokens for child in t.children or ()]
    assert set(inline) <= {"text", "code_inline", "strong_open", "strong_close", "hardbreak", "text_special"}
    assert inline.count("hardbreak") == 2  # the two trailing spaces of R85


@given(records=evidence(), scope=scopes())
@settings(max_examples=60, deadline=None)
def test_every_sentence_of_the_summary_has_a_number_or_an_id(records: list[Record], scope: ReportScope) -> None:
    report = build_report(records, scope=scope)
    assert all(re.search(r"\d|run_|R-", s) or s == "Window: 7 d to n/a." for s in report.summary)


@given(records=evidence(), scope=scopes())
@settings(max_examples=60, deadline=None)
def test_a_run_that_did_not_succeed_in_the_window_is_never_ready_and_never_dropped(
    records: list[Record], scope: ReportScope
) -> None:
    report = build_report(records, scope=scope)
    assert report.rto.n == report.rpo.n == report.success.runs
    if report.success.succeeded < report.success.runs:
        assert report.at_risk
        assert report.verdict is not Verdict.READY


@given(records=evidence(), scope=scopes())
@settings(max_examples=100, deadline=None)
def test_a_report_cites_only_runs_that_have_an_entry_of_their_own(records: list[Record], scope: ReportScope) -> None:
    report = build_report(records, scope=scope)
    assert "run_phantom" not in render_markdown(report) + render_json(report)


@given(records=evidence(), scope=scopes(), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_order_in_which_records_arrive_does_not_matter(
    records: list[Record], scope: ReportScope, seed: int
) -> None:
    shuffled = records.copy()
    random.Random(seed).shuffle(shuffled)
    assert render_json(build_report(shuffled, scope=scope)) == render_json(build_report(records, scope=scope))


PROGRAM = """
import hashlib, sys
from rearguard.model.evidence import Record
from rearguard.model.report import ReportScope, ScopedPlace
from rearguard.model.service import Place
from rearguard.reports.postmortem import build_postmortem, render_postmortem
from rearguard.reports.render.json import render_json
from rearguard.reports.render.markdown import render_markdown
from rearguard.reports.status import build_report

envs = ("prod", "staging", "eu", "us", "lab")
records = []
for n in range(1, 31):
    env = envs[n % 5]
    common = dict(monotonic_ns="0", boot_id="b", service="credit", env=env, prev="0", hash="0")
    end = {"incident_id": f"R-{n}", "trigger": "errors", "state": "succeeded", "to_version": "1",
           "rto_achieved_ns": str(10**9 * (100 + 7 * n)), "rpo_achieved_ms": 1000 + n, "rpo_basis": "canaries"}
    records.append(Record(id=2 * n - 1, ts=f"2026-11-23T09:{n:02d}:00Z", run_id=None, kind="incident_opened", body={
        "incident_id": f"R-{n}", "trigger": "errors", "observed": "0.2", "limit": "0.01"}, **common))
    records.append(Record(id=2 * n, ts=f"2026-11-23T09:{n:02d}:30Z", run_id=f"run_{n}", kind="rollback_finished",
        body=end, **common))
scope = ReportScope(places=tuple(ScopedPlace(place=Place(service="credit", env=e), stateless=False) for e in envs),
    required_environments=envs, chain_ok=True)
report = build_report(records, as_of="2026-11-23T12:00:00+02:00", scope=scope)
text = render_markdown(report) + render_json(report) + render_postmortem(build_postmortem(records, "R-7"))
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_processes_with_other_hash_seeds_zones_and_locales_write_the_same_bytes() -> None:
    digests = set()
    for hash_seed, zone, locale in (
        ("0", "UTC", "C"),
        ("1", "Pacific/Auckland", "C.UTF-8"),
        ("77", "US/Eastern", "tr_TR"),
    ):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "TZ": zone, "LANG": locale, "LC_ALL": locale}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=Path("/"), capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1
    assert re.fullmatch(r"[0-9a-f]{64}\n", digests.pop())
