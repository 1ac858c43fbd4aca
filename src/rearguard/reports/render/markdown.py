"""The strict Markdown form of a status report (R59-R91): fixed blocks, fixed headings, fixed columns.

A pure function of the report value; format: `docs/reference/report.md`.
"""

from __future__ import annotations

from collections.abc import Iterable

from rearguard.model.report import Evidence, GuardrailRow, IncidentRow, MetricRow, Report
from rearguard.reports.wording import reference

_ABSENT = "\u2014"


def render_markdown(report: Report) -> str:
    """The report as Markdown: UTF-8 text, NFC, LF, one final newline, no HTML."""
    closing = report.closing
    lines = [
        "### ROLLBACK STATUS SUMMARY (\u2264 120 words)",
        "",
        " ".join(report.summary),
        "",
        "### GUARDRAIL TABLE",
        "",
        "| Trigger | Threshold | Last Test / Event | Result | Status | Evidence |",
        "|---|---|---|---|---|---|",
        *(_row(_guardrail(row)) for row in report.guardrails),
        "",
        "### METRICS & RECOVERY PERFORMANCE",
        "",
        "| Metric | Target | Observed | CI95 | Status | Evidence |",
        "|---|---|---|---|---|---|",
        *(_row(_metric(row)) for row in report.metrics),
        "",
        "### INCIDENT SUMMARY",
        "",
        "| Incident ID | Trigger | Action Taken | RTO (min) | Success | Root Cause Note |",
        "|---|---|---|---|---|---|",
        *(_row(_incident(row)) for row in report.incidents),
    ]
    if not report.incidents:
        lines.append(_row(("none", *(_ABSENT,) * 5)))
    lines += [
        "",
        "---",
        "",
        "### VERDICT & ACTION",
        "",
        f"**Verdict:** {report.verdict.status.value} {report.verdict.value}  ",
        f"**Next Action:** {report.next_action.value}  ",
        f"**Justification (\u2264 25 words):** {report.justification}",
        "",
        f"> **Rollback Officer Verdict:** {report.verdict.value} \u2014 RTO ={closing.rto_min} min, "
        f"RPO ={closing.rpo_min} min, Success ={closing.success_percent} %, evidence =`{closing.evidence}`.",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _evidence(evidence: Evidence | None) -> str:
    return _ABSENT if evidence is None else reference(evidence)


def _guardrail(row: GuardrailRow) -> tuple[str, ...]:
    at = row.at or _ABSENT
    return (row.trigger, row.threshold, at, row.result.value, row.status.value, _evidence(row.evidence))


def _metric(row: MetricRow) -> tuple[str, ...]:
    return (row.metric, row.target, row.observed, row.ci95, row.status.value, _evidence(row.evidence))


def _incident(row: IncidentRow) -> tuple[str, ...]:
    name = f"{row.incident_id} {reference(row.evidence)}"
    return (name, row.trigger, f"{row.at} {row.action}", row.rto_min, row.status.value, row.root_cause)
