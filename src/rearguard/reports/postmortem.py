"""The post-mortem of one incident (R105-R106): a JSON twin built from evidence, and its Markdown form.

Every line cites the entry it was read from. A cause is never inferred: until somebody establishes one, the
text says so. The twin speaks for the instant of the incident's newest entry, so later evidence does not change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rearguard.errors import NotFoundError
from rearguard.model.breach import Trigger
from rearguard.model.evidence import Record
from rearguard.model.run import PARTS, RunState
from rearguard.model.time import NS_PER_S, parse_rfc3339
from rearguard.reports.history import History, IncidentSeen, Rollback, cite, read_history
from rearguard.reports.wording import OBSERVED_NAMES, THRESHOLDS, token

POSTMORTEM_FORMAT = "rearguard.postmortem/1"
RATIO_WINDOW_S = 90 * 86_400
"""Ninety days, inclusive (R105)."""

_CLOCK_STEP_MS = 1_000
"""A wall clock that jumped further than this against the monotonic one is a finding (requirements 10.2)."""

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
_TOLD_OF = {
    "rollback_approved": {"key_name": "approver"},
    "rollback_withheld": {"would_restore": "would_restore", "until_ts": "until"},
    "rollback_refused": {"would_restore": "would_restore", "until_ts": "until"},
    "rung_lost": {"rung": "rung", "step": "step"},
    "automation_paused": {"service": "service", "env": "env"},
    "automation_resumed": {"service": "service", "env": "env"},
}
"""Further fields of single kinds, and the names that they are told under."""

_P95 = ("p95_ms", "p95_limit_ms")
"""Told of a latency breach only; entries of earlier releases have no limit in milliseconds."""

_COUNTED = {
    Trigger.COMPLIANCE: ("scores", None),
    Trigger.LATENCY: ("timed_requests", "requests_over_latency_limit"),
    Trigger.ERRORS: ("requests", "failed_requests"),
}
"""What `samples` and `exceedances` of a breach window count, per trigger; a mean of scores has no exceedances."""
_COUNTED_WORDS = {
    "scores": "Compliance scores",
    "timed_requests": "Timed requests",
    "requests": "Requests",
    "requests_over_latency_limit": "Requests over the latency limit",
    "failed_requests": "Failed requests",
}
_LEGEND = (
    "t0 first bad observation, or the request of a run without an incident; t1 breach detected; t2 target selected; "
    "t3 proof of its bytes begun; t4 bytes proven; t5 golden predictions answered; t6 begin and t7 end of the first "
    "window in which every limit and every golden prediction held. Offsets count from t0; RTO is t6 less t0."
)
"""The instants of requirements 10.2, as `docs/reference/evidence.md` dates them; of a ladder, those of the rung that held."""


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
            "threshold": THRESHOLDS[incident.trigger],
            "rule": opening.body.get("rule"),
            "figure": OBSERVED_NAMES[incident.trigger],
            **{key: opening.body.get(key) if incident.trigger is Trigger.LATENCY else None for key in _P95},
            "observed": opening.body.get("observed"),
            "limit": opening.body.get("limit"),
            "ref": cite(opening).ref,
        },
        "timeline": [_line(r) for r in sorted((*related, *_pauses(history, incident)), key=lambda r: r.id)],
        "recovery": [_recovery(r, related) for r in incident.rollbacks],
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


def _pauses(history: History, incident: IncidentSeen) -> list[Record]:
    """Pauses of the incident's place: in force when it was opened, or made or taken back while it was open."""
    place = (incident.record.service, incident.record.env)
    in_force: dict[tuple[object, object], Record] = {}
    since: list[Record] = []
    for r in history.records:
        words = (r.body.get("service"), r.body.get("env"))
        covers = words[0] in (place[0], "*") and words[1] in (place[1], "*")
        if r.kind not in ("automation_paused", "automation_resumed") or not covers:
            continue
        if r.id > incident.record.id:
            if incident.closed is None or r.id < incident.closed.id:
                since.append(r)
        elif r.kind == "automation_paused":
            in_force[words] = r
        else:
            in_force.pop(words, None)
    return [*in_force.values(), *since]


def _impact(incident: IncidentSeen) -> dict[str, Any]:
    samples_are, exceedances_are = _COUNTED[incident.trigger]
    window: Mapping[str, Any] = incident.record.body.get("window") or {}
    restored = [r for r in incident.rollbacks if r.state is RunState.SUCCEEDED]
    return {
        "requests": window.get("samples"),
        "requests_are": samples_are,
        "exceedances": window.get("exceedances") if exceedances_are else None,
        "exceedances_are": exceedances_are,
        "window_start_s": window.get("start_s"),
        "window_end_s": window.get("end_s"),
        "ref": cite(incident.record).ref,
        "breach_to_restored_ms": restored[-1].record.body.get("rto_achieved_ms") if restored else None,
        "restored_ref": cite(restored[-1].record).ref if restored else None,
    }


def _line(record: Record) -> dict[str, Any]:
    names = {key: key for key in _TOLD} | _TOLD_OF.get(record.kind, {})
    if record.kind == "incident_opened" and record.body.get("trigger") == Trigger.LATENCY.value:
        names |= {key: key for key in _P95}
    told = {name: record.body[key] for key, name in names.items() if record.body.get(key) not in (None, "")}
    return {"ts": record.ts, "ref": cite(record).ref, "run_id": record.run_id, "kind": record.kind, "facts": told}


def _recovery(rollback: Rollback, related: Sequence[Record]) -> dict[str, Any]:
    body, run_id = rollback.record.body, rollback.record.run_id
    lost = [r for r in related if r.kind == "rung_lost" and run_id is not None and r.run_id == run_id]
    stamps, offsets = body.get("t") or [None] * 8, body.get("offsets_ms") or [None] * 8
    parts = body.get("parts_ms")
    return {
        "run_id": run_id,
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
        "clock_step_ms": body.get("clock_step_ms"),
        "rungs_lost": [
            {key: r.body.get(key) for key in ("rung", "version", "digest", "step", "reason", "message")}
            | {"ref": cite(r).ref}
            for r in lost
        ],
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
        *_render_counts(impact),
        f"- Fault to restored (ms): {_text(impact['breach_to_restored_ms'])}{_cited(impact['restored_ref'])}",
        "",
        "## Trigger",
        "",
        f"- {trigger['label']} ({trigger['threshold']}): {_p95(trigger)}{trigger['figure']} "
        f"{_text(trigger['observed'])}, limit {_text(trigger['limit'])}, rule {_text(trigger['rule'])} `{trigger['ref']}`",
        "",
        "## Timeline",
        "",
        *(_render_line(line) for line in twin["timeline"]),
        "",
        "## Recovery",
        "",
        *((_LEGEND, "") if twin["recovery"] else ("none recorded", "")),
        *(line for run in twin["recovery"] for line in _render_recovery(run)),
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


def _render_counts(impact: Mapping[str, Any]) -> list[str]:
    counts = ((impact["requests_are"], impact["requests"]), (impact["exceedances_are"], impact["exceedances"]))
    return [
        f"- {_COUNTED_WORDS[what]} in the breach window: {_text(count)} `{impact['ref']}`"
        for what, count in counts
        if what
    ]


def _p95(trigger: Mapping[str, Any]) -> str:
    limit = "" if trigger["p95_limit_ms"] is None else f" (limit {_text(trigger['p95_limit_ms'])} ms)"
    return "" if trigger["p95_ms"] is None else f"p95 {_text(trigger['p95_ms'])} ms{limit}, "


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
        *(
            f"- Rung {_text(rung['rung'])} lost: version {_text(rung['version'])} at {_text(rung['step'])}, "
            f"{_text(rung['reason'])}: {_text(rung['message'])} `{rung['ref']}`"
            for rung in run["rungs_lost"]
        ),
        *_clock_finding(run),
        "",
    ]


def _clock_finding(run: Mapping[str, Any]) -> list[str]:
    step_ms = run["clock_step_ms"]
    if step_ms is None or abs(step_ms) <= _CLOCK_STEP_MS:
        return []
    return [
        f"- Finding: the wall clock stepped by {step_ms} ms against the monotonic clock (limit {_CLOCK_STEP_MS}); "
        f"the times above carry that step, the offsets do not `{run['ref']}`"
    ]
