"""The post-mortem of one incident (R105-R106): a JSON twin built from evidence, and its Markdown form.

Every line cites the entry it was read from. A cause is never inferred: until somebody establishes one, the
text says so. The twin speaks for the instant of the incident's newest entry, so later evidence does not change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rearguard.errors import NotFoundError
from rearguard.model.evidence import Record
from rearguard.model.run import PARTS, RunState
from rearguard.model.time import NS_PER_S, parse_rfc3339
from rearguard.reports.history import History, IncidentSeen, Rollback, cite, read_history
from rearguard.reports.wording import token

POSTMORTEM_FORMAT = "rearguard.postmortem/1"
RATIO_WINDOW_S = 90 * 86_400
"""Ninety days, inclusive (R105)."""

_ABSENT = "\u2014"
_TOLD = (
    "trigger",
    "state",
    "reason",
    "from_version",
    "to_version",
    "version",
    "observed",
    "limit",
    "ok",
    "code",
    "requested_by",
    "outcome",
    "false_positive",
    "by",
)
"""Body fields that a timeline line repeats, in this order."""


def build_postmortem(records: Sequence[Record], incident_id: str) -> dict[str, Any]:
    """The JSON twin of the post-mortem of `incident_id`; NotFoundError `incident_unknown` when no entry opened it."""
    incident = _find(read_history(records), incident_id)
    newest = max(r.id for r in _related(records, incident))
    # Cut by id, not by time stamp: ids never step back (R50), a wall clock may.
    history = read_history([r for r in records if r.id <= newest])
    incident = _find(history, incident_id)
    related = _related(history.records, incident)
    opening = incident.record
    return {
        "format": POSTMORTEM_FORMAT,
        "incident": {
            "id": incident.id,
            "service": opening.service,
            "env": opening.env,
            "version": opening.body.get("version"),
            "digest": opening.body.get("digest"),
            "opened_ts": opening.ts,
            "closed_ts": None if incident.closed is None else incident.closed.ts,
            "false_positive": None if incident.closed is None else incident.closed.body.get("false_positive"),
            "run_ids": list(incident.run_ids),
            "ref": cite(opening).ref,
        },
        "impact": _impact(incident),
        "trigger": {
            "label": incident.trigger.label,
            "rule": opening.body.get("rule"),
            "observed": opening.body.get("observed"),
            "limit": opening.body.get("limit"),
            "ref": cite(opening).ref,
        },
        "timeline": [_line(r) for r in related],
        "recovery": [_recovery(r) for r in incident.rollbacks],
        "root_cause": {"code": "undetermined", "established": False},
        "success_ratio": _success_ratio(history, incident),
        "ci_logs": [],
        "corrective_actions": [],
        "narrative": "",
    }


def _find(history: History, incident_id: str) -> IncidentSeen:
    for incident in history.incidents:
        if incident.id == incident_id:
            return incident
    known = ", ".join(i.id for i in history.incidents) or "none"
    raise NotFoundError("incident_unknown", f"no incident {incident_id!r} in the evidence", f"known incidents: {known}")


def _related(records: Sequence[Record], incident: IncidentSeen) -> list[Record]:
    """Entries that name the incident or one of its runs, in order of their ids."""
    mine = [r for r in records if r.body.get("incident_id") == incident.id or r.run_id in incident.run_ids]
    return sorted(mine, key=lambda r: r.id)


def _impact(incident: IncidentSeen) -> dict[str, Any]:
    window: Mapping[str, Any] = incident.record.body.get("window") or {}
    restored = [r for r in incident.rollbacks if r.state is RunState.SUCCEEDED]
    return {
        "requests": window.get("samples"),
        "exceedances": window.get("exceedances"),
        "window_start_s": window.get("start_s"),
        "window_end_s": window.get("end_s"),
        "ref": cite(incident.record).ref,
        "breach_to_restored_ms": restored[-1].record.body.get("rto_achieved_ms") if restored else None,
        "restored_ref": cite(restored[-1].record).ref if restored else None,
    }


def _line(record: Record) -> dict[str, Any]:
    told = {key: record.body[key] for key in _TOLD if record.body.get(key) not in (None, "")}
    return {"ts": record.ts, "ref": cite(record).ref, "run_id": record.run_id, "kind": record.kind, "facts": told}


def _recovery(rollback: Rollback) -> dict[str, Any]:
    body = rollback.record.body
    stamps, offsets = body.get("t") or [None] * 8, body.get("offsets_ms") or [None] * 8
    parts = body.get("parts_ms")
    return {
        "run_id": rollback.record.run_id,
        "ref": cite(rollback.record).ref,
        "state": rollback.state.value,
        "reason": rollback.reason if body.get("reason") else None,
        "instants": [
            {"name": f"t{i}", "ts": None if stamp is None else stamp["ts"], "offset_ms": offset}
            for i, (stamp, offset) in enumerate(zip(stamps, offsets, strict=True))
        ],
        "parts_ms": None if parts is None else {name: parts[name] for name in PARTS},
        "rto_achieved_ms": body.get("rto_achieved_ms"),
        "rto_objective_ms": body.get("rto_objective_ms"),
        "rpo_achieved_ms": body.get("rpo_achieved_ms"),
        "rpo_objective_ms": body.get("rpo_objective_ms"),
        "rpo_basis": body.get("rpo_basis"),
    }


def _success_ratio(history: History, incident: IncidentSeen) -> dict[str, Any]:
    """Incidents of the same trigger opened in the 90 days before the newest entry told here, k of n (R105)."""
    end_ns = max(parse_rfc3339(r.ts) for r in _related(history.records, incident))
    start_ns = end_ns - RATIO_WINDOW_S * NS_PER_S
    same = [i for i in history.incidents if i.trigger is incident.trigger and i.at_ns >= start_ns]
    counted = [
        {
            "incident_id": i.id,
            "succeeded": bool(i.rollbacks) and i.rollbacks[-1].state is RunState.SUCCEEDED,
            "ref": cite(i.rollbacks[-1].record if i.rollbacks else i.record).ref,
        }
        for i in same
    ]
    return {
        "trigger": incident.trigger.label,
        "window_days": 90,
        "succeeded": sum(bool(c["succeeded"]) for c in counted),
        "incidents": len(counted),
        "counted": counted,
    }


def render_postmortem(twin: Mapping[str, Any]) -> str:
    """The Markdown form of a twin of `build_postmortem`; one final newline."""
    incident, impact, trigger, ratio = (twin[k] for k in ("incident", "impact", "trigger", "success_ratio"))
    closed = incident["closed_ts"] or _ABSENT
    lines = [
        f"# Post-mortem {token(incident['id'])}",
        "",
        f"- Place: {_text(incident['service'])}/{_text(incident['env'])}, version {_text(incident['version'])}",
        f"- Digest: {_text(incident['digest'])}",
        f"- Opened: {incident['opened_ts']} `{incident['ref']}`; closed: {closed}",
        f"- Runs: {', '.join(incident['run_ids']) or _ABSENT}; false positive: {_text(incident['false_positive'])}",
        "",
        "## Impact",
        "",
        f"- Requests in the breach window: {_text(impact['requests'])} `{impact['ref']}`",
        f"- Failures in the breach window: {_text(impact['exceedances'])} `{impact['ref']}`",
        f"- Fault to restored (ms): {_text(impact['breach_to_restored_ms'])}{_cited(impact['restored_ref'])}",
        "",
        "## Trigger",
        "",
        f"- {trigger['label']}: observed {_text(trigger['observed'])}, limit {_text(trigger['limit'])}, "
        f"rule {_text(trigger['rule'])} `{trigger['ref']}`",
        "",
        "## Timeline",
        "",
        *(_render_line(line) for line in twin["timeline"]),
        "",
        "## Recovery",
        "",
        *(line for run in twin["recovery"] for line in _render_recovery(run)),
    ]
    if not twin["recovery"]:
        lines += ["none recorded", ""]
    lines += [
        "## Root cause",
        "",
        "Root cause: not established",
        "",
        "## Recovery success ratio",
        "",
        f"- {ratio['trigger']}, {ratio['window_days']} d: {ratio['succeeded']}/{ratio['incidents']}",
        *(f"- {token(c['incident_id'])}: {int(c['succeeded'])}/1 `{c['ref']}`" for c in ratio["counted"]),
        "",
        "## CI logs",
        "",
        *_listed(twin["ci_logs"]),
        "",
        "## Corrective actions",
        "",
        *_listed(twin["corrective_actions"]),
        "",
        "## Narrative",
        "",
        f"narrative: {_text(twin['narrative'])}",
    ]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    if value is None or value == "":
        return _ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(token(word) for word in str(value).split())


def _cited(ref: str | None) -> str:
    return "" if ref is None else f" `{ref}`"


def _listed(items: Sequence[Mapping[str, Any]]) -> list[str]:
    if not items:
        return ["none recorded"]
    return ["- " + ", ".join(f"{key}: {_text(item[key])}" for key in sorted(item)) for item in items]


def _render_line(line: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{key}={_text(value)}" for key, value in line["facts"].items())
    end = f": {facts}" if facts else ""
    return f"- {line['ts']} `{line['ref']}` {line['run_id'] or _ABSENT} {token(line['kind'])}{end}"


def _render_recovery(run: Mapping[str, Any]) -> list[str]:
    reason = f" ({token(run['reason'])})" if run["reason"] else ""
    instants = [f"| {i['name']} | {i['ts'] or _ABSENT} | {_text(i['offset_ms'])} |" for i in run["instants"]]
    parts = run["parts_ms"]
    told = "not measured" if parts is None else ", ".join(f"{name} {parts[name]}" for name in PARTS)
    return [
        f"Run {run['run_id'] or _ABSENT} `{run['ref']}`: {run['state']}{reason}",
        "",
        "| Instant | Time | Offset (ms) |",
        "|---|---|---|",
        *instants,
        "",
        f"- Parts (ms): {told}",
        f"- RTO (ms): {_text(run['rto_achieved_ms'])}, objective {_text(run['rto_objective_ms'])}",
        f"- RPO (ms): {_text(run['rpo_achieved_ms'])}, objective {_text(run['rpo_objective_ms'])}, "
        f"basis {_text(run['rpo_basis'])}",
        "",
    ]
