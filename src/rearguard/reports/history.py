"""Evidence read as a story: rollbacks, incidents, verified checkpoints and the standing of each place.

Owns what is a run and what is not: an attempt that a brake held back was never begun, and a run id that no run ever
had is not told. Beyond that it reads records as values and decides nothing about them. The order in which records are
handed over does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rearguard.model.breach import Trigger
from rearguard.model.evidence import Record
from rearguard.model.report import Evidence
from rearguard.model.run import RunState
from rearguard.model.service import Place
from rearguard.model.time import NS_PER_MS, parse_rfc3339
from rearguard.rules.brakes import Brake

LOG_FILE = "rollback_log.json"
STATELESS = "stateless"
"""`rpo_basis` of a place that declared to have no mutable state."""
RUN_KINDS = ("rollback_started", "approval_requested", "rollback_finished")
"""Entries that prove a run: every entry has a run id, but one that none of these carries was never a run's."""
HELD_BACK = frozenset(brake.value for brake in Brake if brake.refuses)
"""Reasons of a `rollback_refused` without a run that say: a brake held it back, nothing was begun (R29)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """One real rollback that came to an end, or one refusal that never became a run."""

    record: Record
    """The entry that says how it ended."""
    at_ns: int
    place: Place | None
    incident_id: str | None
    trigger: Trigger | None
    state: RunState
    reason: str
    to_version: str
    """Empty when nothing was restored."""
    to_digest: str
    by_person: bool
    rto_ns: int | None
    """None unless it succeeded and was measured."""
    deadline_ms: int | None
    """Limit at which a run that did not succeed is censored; None: the objective."""
    rpo_ms: int | None
    rpo_basis: str
    withdrawn: bool
    """Cancelled before traffic moved: it restored nothing and failed at nothing, so no figure counts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A breach that a brake holds back, and that no run of the same incident has restored since."""

    record: Record
    """The newest entry that says so."""
    at_ns: int
    place: Place | None
    trigger: Trigger | None
    reason: str
    open: bool
    """The incident is not closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentSeen:
    """One incident as its opening entry tells it, with what became of it."""

    id: str
    record: Record
    """The entry that opened it."""
    at_ns: int
    trigger: Trigger
    closed: Record | None
    rollbacks: tuple[Rollback, ...]
    """In order of their entries."""
    held: Held | None
    """Set while it is held back and not restored."""
    run_ids: tuple[str, ...]
    """Runs that name it, in order of first mention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the records tell, in order of their ids."""

    records: tuple[Record, ...]
    """With `run_id` None where there was no run."""
    rollbacks: tuple[Rollback, ...]
    unfinished: tuple[Record, ...]
    """`rollback_started` entries of runs without an end."""
    incidents: tuple[IncidentSeen, ...]
    """By number."""
    held: tuple[Held, ...]
    """What is held back and not restored, in order of the entries."""
    silent: tuple[Place, ...]
    """Places whose newest telemetry entry is `telemetry_silent`."""


def cite(record: Record) -> Evidence:
    """The reference to a record (R54)."""
    return Evidence(ref=f"{LOG_FILE}#{record.id}", run_id=record.run_id)


def read_history(records: Iterable[Record]) -> History:
    """The story of `records`; kinds that are not known here are kept but not told."""
    ordered = _with_real_runs(tuple(sorted(records, key=lambda r: r.id)))
    opened = {str(r.body["incident_id"]): r for r in reversed(ordered) if r.kind == "incident_opened"}
    triggers = {name: Trigger(r.body["trigger"]) for name, r in opened.items()}
    started: dict[str | None, Record] = {r.run_id: r for r in ordered if r.kind == "rollback_started" and r.run_id}
    rollbacks = _rollbacks(ordered, triggers, started)
    ended = {r.record.run_id for r in rollbacks}
    closed = {str(r.body.get("incident_id")): r for r in ordered if r.kind == "incident_closed"}
    held = _held(ordered, triggers, rollbacks, closed)
    return History(
        records=ordered,
        rollbacks=rollbacks,
        unfinished=tuple(r for r in started.values() if r.run_id not in ended),
        incidents=tuple(
            _incident(name, opened[name], ordered, rollbacks, closed=closed.get(name), held=held.get(name))
            for name in sorted(opened, key=incident_number)
        ),
        held=tuple(sorted(held.values(), key=lambda h: h.record.id)),
        silent=tuple(sorted(_silent(ordered))),
    )


def incident_number(incident_id: str) -> tuple[int, str]:
    """The sort key of an incident id: `R-9` before `R-10`."""
    digits = incident_id.removeprefix("R-")
    return (int(digits) if digits.isdecimal() else 0, incident_id)


def place_of(record: Record) -> Place | None:
    """The place a record speaks of; None when it names none."""
    if record.service is None or record.env is None:
        return None
    return Place(service=record.service, env=record.env)


def verified_digests(history: History, service: str) -> dict[str, Record]:
    """The digests of `service` whose newest verification passed, with the entry that says so (R10)."""
    newest: dict[str, Record] = {}
    for record in history.records:
        if record.kind == "checkpoint_verified" and (record.body.get("service") or record.service) == service:
            newest[str(record.body["digest"])] = record
    return {digest: record for digest, record in newest.items() if record.body.get("ok") is True}


def _rollbacks(
    ordered: tuple[Record, ...], triggers: Mapping[str, Trigger], started: Mapping[str | None, Record]
) -> tuple[Rollback, ...]:
    # One entry per run: a refusal is followed by `rollback_finished` when a run existed, and a refused incident that
    # never got a run may be refused at every evaluation; each counts once (R28).
    found: dict[str, Record] = {}
    switched = {r.run_id for r in ordered if r.kind == "traffic_switched"}
    refused_incidents: set[str] = set()
    for record in ordered:
        if record.kind == "rollback_finished":
            found[record.run_id or f"entry {record.id}"] = record
            if record.body["state"] == "refused" and record.body.get("incident_id"):
                refused_incidents.add(str(record.body["incident_id"]))
    for record in ordered:
        if record.kind == "rollback_refused" and not _is_hold(record):
            incident = str(record.body.get("incident_id") or "")
            if record.run_id is None and incident in refused_incidents:
                continue
            found.setdefault(record.run_id or incident or f"entry {record.id}", record)
    ends = sorted(found.values(), key=lambda r: r.id)
    return tuple(
        _rollback(record, triggers, started.get(record.run_id), moved=record.run_id in switched) for record in ends
    )


def _with_real_runs(ordered: tuple[Record, ...]) -> tuple[Record, ...]:
    """The same entries, without the run ids that no run ever had: nobody can look them up."""
    real = {r.run_id for r in ordered if r.kind in RUN_KINDS}
    return tuple(r if r.run_id is None or r.run_id in real else replace(r, run_id=None) for r in ordered)


def _is_hold(record: Record) -> bool:
    return record.kind == "rollback_refused" and record.run_id is None and record.body.get("reason") in HELD_BACK


def _held(
    ordered: tuple[Record, ...],
    triggers: Mapping[str, Trigger],
    rollbacks: tuple[Rollback, ...],
    closed: Mapping[str, Record],
) -> dict[str, Held]:
    """What is still held back, by incident: the newest hold, unless a later run of the incident succeeded (R28).

    An incident that a person called a false positive had nothing to restore.
    """
    newest = {str(r.body.get("incident_id")): r for r in ordered if _is_hold(r)}
    restored = {r.incident_id: r.record.id for r in rollbacks if r.state is RunState.SUCCEEDED}
    words = {str(r.body["incident_id"]): r for r in ordered if r.kind in ("incident_closed", "incident_reassessed")}
    false_alarms = {name for name, record in words.items() if record.body.get("false_positive")}
    return {
        name: Held(
            record=record,
            at_ns=parse_rfc3339(record.ts),
            place=place_of(record),
            trigger=Trigger(record.body["trigger"]) if record.body.get("trigger") else triggers.get(name),
            reason=str(record.body["reason"]),
            open=name not in closed,
        )
        for name, record in newest.items()
        if restored.get(name, 0) < record.id and name not in false_alarms
    }


def _rollback(record: Record, triggers: Mapping[str, Trigger], start: Record | None, *, moved: bool) -> Rollback:
    body: dict[str, Any] = record.body
    state = RunState.REFUSED if record.kind == "rollback_refused" else RunState(body["state"])
    incident_id = body.get("incident_id")
    named = body.get("trigger")
    trigger = Trigger(named) if named else triggers.get(str(incident_id))
    requested_by = start.body.get("requested_by") if start is not None else None
    return Rollback(
        record=record,
        at_ns=parse_rfc3339(record.ts),
        place=place_of(record),
        incident_id=incident_id,
        trigger=trigger,
        state=state,
        reason=str(body.get("reason") or "unstated"),
        to_version=str(body.get("to_version") or ""),
        to_digest=str(body.get("to_digest") or ""),
        by_person=requested_by not in (None, "", "auto"),
        rto_ns=_rto_ns(body) if state is RunState.SUCCEEDED else None,
        deadline_ms=body.get("deadline_ms"),
        rpo_ms=body.get("rpo_achieved_ms"),
        rpo_basis=str(body.get("rpo_basis") or ""),
        withdrawn=state is RunState.CANCELLED and not moved,
    )


def _rto_ns(body: Mapping[str, Any]) -> int | None:
    if body.get("rto_achieved_ns") is not None:
        return int(body["rto_achieved_ns"])
    milliseconds = body.get("rto_achieved_ms")
    return None if milliseconds is None else int(milliseconds) * NS_PER_MS


def _incident(
    name: str,
    opening: Record,
    ordered: tuple[Record, ...],
    rollbacks: tuple[Rollback, ...],
    *,
    closed: Record | None,
    held: Held | None,
) -> IncidentSeen:
    mentions = [r for r in ordered if r.body.get("incident_id") == name]
    return IncidentSeen(
        id=name,
        record=opening,
        at_ns=parse_rfc3339(opening.ts),
        trigger=Trigger(opening.body["trigger"]),
        closed=closed,
        rollbacks=tuple(r for r in rollbacks if r.incident_id == name),
        held=held,
        run_ids=tuple(dict.fromkeys(r.run_id for r in mentions if r.run_id)),
    )


def _silent(ordered: tuple[Record, ...]) -> set[Place]:
    silent: set[Place] = set()
    for record in ordered:
        place = place_of(record)
        if place is None:
            continue
        if record.kind == "telemetry_silent":
            silent.add(place)
        elif record.kind == "telemetry_back":
            silent.discard(place)
    return silent
