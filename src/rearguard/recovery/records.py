"""The records of a rollback's steps: each is one transaction that commits exactly once with the step."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from rearguard.checkpoints import registry
from rearguard.checkpoints.registry import decode_instant, encode_instant
from rearguard.checkpoints.verification import Verification
from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.handoffs.checkpoint_messages import tell_fault
from rearguard.model.breach import Trigger
from rearguard.model.run import LEGAL_MOVES, TERMINAL, Run, RunState, Timeline
from rearguard.model.service import Place
from rearguard.model.time import Instant, elapsed
from rearguard.recovery import notices
from rearguard.recovery.approval import not_approved
from rearguard.recovery.brakes import RUN_EXPIRED, held_back
from rearguard.recovery.context import RecoveryContext, raise_epoch, version_of, waited_too_long
from rearguard.recovery.effects import AGAINST_CHECKPOINT, LADDER_EXHAUSTED, LOST, idempotency_key
from rearguard.rules.brakes import Brake

State = dict[str, Any]


def cancel_requested(connection: Connection, run_id: str) -> bool:
    """True when somebody asked for the run to end before traffic moves."""
    return bool(connection.execute(sql("SELECT cancel_requested FROM runs WHERE id = :id"), {"id": run_id}).scalar())


def _keys(place: Place) -> dict[str, str]:
    return {"service": place.service, "env": place.env}


def _note(context: RecoveryContext, connection: Connection, run: Run, kind: str, body: dict[str, Any]) -> None:
    append(connection, now=context.clock.now(), kind=kind, body=body, place=run.place, run_id=run.id)


def move(connection: Connection, run: Run, to: RunState, reason: str = "") -> None:
    """The one place where a run changes its state; an illegal move is our own fault and raises."""
    if to not in LEGAL_MOVES[run.state]:
        raise AssertionError(f"{run.id} cannot move from {run.state.value} to {to.value}")
    connection.execute(
        sql("UPDATE runs SET state = :state, reason = :reason WHERE id = :id"),
        {"state": to.value, "reason": reason, "id": run.id},
    )


def _incident(connection: Connection, run: Run) -> Any:
    if run.incident_id is None:
        return None
    row = connection.execute(sql("SELECT * FROM incidents WHERE n = :n"), {"n": int(run.incident_id[2:])}).first()
    return row._mapping if row else None


def lock(context: RecoveryContext, connection: Connection, run: Run, _state: State) -> State:
    """Take the place, raise its epoch, and say so before the first side effect (R48)."""
    if run.state in TERMINAL:
        message = f"{run.id} ended as {run.state.value} before it began"
        return {"failure": {"step": "lock", "state": run.state.value, "reason": run.reason, "message": message}}
    place = connection.execute(
        sql("SELECT open_run_id FROM places WHERE service = :service AND env = :env"), _keys(run.place)
    ).first()
    if place is not None and place.open_run_id not in (None, run.id):
        message = f"{place.open_run_id} is open at {run.place}"
        return {"failure": {"step": "lock", "state": "refused", "reason": "another_run_open", "message": message}}
    stale = _no_longer_meant(context, connection, run)
    if stale:
        return {"failure": {"step": "lock", "state": "refused", "reason": stale, "message": f"{run.id} is out of date"}}
    forbidden = _forbidden(context, connection, run, None)
    if forbidden:
        return {"failure": {"step": "lock", **forbidden}}
    epoch = raise_epoch(connection, run.place)
    connection.execute(
        sql("UPDATE places SET open_run_id = :run WHERE service = :service AND env = :env"),
        {**_keys(run.place), "run": run.id},
    )
    move(connection, run, RunState.RUNNING)
    incident = _incident(connection, run)
    trigger = incident["trigger_name"] if incident else None
    from_version = version_of(connection, run.from_digest)
    body = {
        "incident_id": run.incident_id,
        "trigger": trigger,
        "from_digest": run.from_digest,
        "from_version": from_version,
        "epoch": epoch,
        "playbook_sha256": context.playbook.sha256,
        "settings_sha256": context.settings.sha256,
        "requested_by": run.requested_by,
    }
    _note(context, connection, run, "rollback_started", body)
    why = Trigger(trigger).label if trigger else "requested by hand"
    notices.tell(context, connection, run, "begun", from_version, None, why, "running")
    return {"epoch": epoch, "begun_at": asdict(context.clock.now())}


def _forbidden(context: RecoveryContext, connection: Connection, run: Run, to_digest: str | None) -> State | None:
    """State, reason and message of a run that may not act now, or None: brakes and approval, read before the act (R30)."""
    settings = context.settings.find(run.place)
    now = context.clock.now()
    brake = held_back(settings, connection, now, requested_by=run.requested_by) if settings else None
    if brake is not None:
        state = "refused" if brake.refuses else "cancelled"
        return {"state": state, "reason": brake.value, "message": f"{brake.value} holds {run.place}"}
    missing = not_approved(context, connection, run, to_digest)
    if missing:
        return {"state": "refused", "reason": missing, "message": f"{run.id} has no approval that holds"}
    return None


def _no_longer_meant(context: RecoveryContext, connection: Connection, run: Run) -> str:
    """Why a run that waited for an officer must not begin any more, or empty.

    `incident_closed`: somebody closed the incident that it was to mend. `active_changed`: another digest was deployed
    after the run was asked for. `run_expired`: it was asked for longer ago than its deadline, and nobody approved it
    since; the next breaching window asks for an automatic one anew, if the breach is still there.
    """
    incident = _incident(connection, run)
    if incident is not None and incident["state"] == "closed":
        return "incident_closed"
    newest = connection.execute(
        sql(
            "SELECT digest, started_at FROM deployments WHERE service = :service AND env = :env "
            "AND state = 'active' ORDER BY id DESC LIMIT 1"
        ),
        _keys(run.place),
    ).first()
    if (
        newest is not None
        and newest.digest != run.from_digest
        and elapsed(run.requested_at, decode_instant(newest.started_at)).ns > 0
    ):
        return "active_changed"
    return RUN_EXPIRED if waited_too_long(context, connection, run, run.requested_at) else ""


def freeze(context: RecoveryContext, connection: Connection, run: Run, _state: State) -> State:
    """From here on our own `deploy` refuses this place until the run is closed."""
    _note(context, connection, run, "deployments_frozen", {"until": "rollback_closed"})
    return {}


def selected(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """Who may be the target, in order, and who may not."""
    body = {"candidates": state["candidates"], "rejected": state["rejected"]}
    _note(context, connection, run, "target_selected", body)
    return {}


def verified(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """The proof of the target's bytes; candidates that failed it lose their standing in the registry.

    The last look for a cancel: it and this record are one transaction each, so a cancel either comes before and is
    honoured here, or comes after and is refused.
    """
    if cancel_requested(connection, run.id) and not state.get("tried"):
        message = "cancelled by hand before traffic moved"
        return {"failure": {"step": "verify", "state": "cancelled", "reason": "cancelled", "message": message}}
    forbidden = _forbidden(context, connection, run, state["to_digest"])
    if forbidden and state.get("tried"):
        # Traffic has moved: a ladder that was begun before a freeze is brought to its end; otherwise it stops where it is.
        frozen = forbidden["reason"] == Brake.FREEZE.value
        forbidden = None if frozen else {**forbidden, "state": "failed"}
    if forbidden:
        return {"failure": {"step": "verify", **forbidden}}
    for failure in state["unusable"]:
        _note_proof(context, connection, run, failure["digest"], _failed_proof(failure))
    if state["renewed"] is not None:
        _note_proof(context, connection, run, state["to_digest"], Verification(**state["renewed"]))
    connection.execute(sql("UPDATE runs SET to_digest = :to WHERE id = :id"), {"to": state["to_digest"], "id": run.id})
    body = {
        "digest": state["to_digest"],
        "version": state["to_version"],
        "t4_proof": state["t4_proof"],
        "view_rebuilt": state.get("view_rebuilt", False),
        "unusable": [*state["unusable"], *state.get("passed_over", ())],
    }
    _note(context, connection, run, "target_verified", body)
    return {}


def _note_proof(context: RecoveryContext, connection: Connection, run: Run, digest: str, outcome: Verification) -> None:
    checkpoint = registry.get(connection, digest)
    assert checkpoint is not None
    now = context.clock.now()
    tell_fault(connection, checkpoint, outcome, now)
    registry.note_verification(connection, checkpoint, outcome, now=now, run_id=run.id)


def _failed_proof(failure: State) -> Verification:
    return Verification(
        ok=False, code=failure["code"], message=failure["message"], load_ms=None, peak_rss_bytes=None, receipt=""
    )


def activated(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """Traffic moved: the old deployment ends, the digest that was rolled back is quarantined (R29)."""
    baseline = connection.execute(
        sql("SELECT baseline FROM deployments WHERE service = :service AND env = :env ORDER BY id DESC LIMIT 1"),
        _keys(run.place),
    ).scalar()
    connection.execute(
        sql(
            "UPDATE deployments SET state = CASE WHEN digest = :rolled_back THEN 'rolled_back' "
            "WHEN state = 'activating' THEN 'failed' ELSE 'ended' END "
            "WHERE service = :service AND env = :env AND state IN ('active', 'activating')"
        ),
        {**_keys(run.place), "rolled_back": run.from_digest},
    )
    connection.execute(
        sql(
            "INSERT INTO deployments (service, env, digest, version, source, state, started_at, baseline) "
            "VALUES (:service, :env, :digest, :version, 'rollback', 'activating', :at, :baseline)"
        ),
        {
            **_keys(run.place),
            "digest": state["to_digest"],
            "version": state["to_version"],
            "at": json.dumps(state["activated_at"]),
            "baseline": baseline,
        },
    )
    if run.from_digest is not None:
        _quarantine(context, connection, run, run.from_digest)
    body = {
        "from_digest": run.from_digest,
        "to_digest": state["to_digest"],
        "to_version": state["to_version"],
        "epoch": state["epoch"],
        "key": idempotency_key(run, state, "activate"),
        "rung": state.get("rung", 1),
        "quarantined": run.from_digest,
        "warm": state.get("warm"),
    }
    _note(context, connection, run, "traffic_switched", body)
    return {}


def probed(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """The restored digest answered its golden predictions."""
    body = {
        "digest": state["to_digest"],
        "golden_answered": state["golden_answered"],
        "t5_mono_ns": str(state["t5"]["mono_ns"]),
    }
    _note(context, connection, run, "golden_answered", body)
    return {}


def held(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """The window held."""
    body = {
        "digest": state["to_digest"],
        "judged_by": state["judged_by"],
        "samples": state["window_samples"],
        "probes": state["window_probes"],
        "t6_mono_ns": str(state["t6"]["mono_ns"]),
        "t7_mono_ns": str(state["t7"]["mono_ns"]),
    }
    _note(context, connection, run, "window_held", body)
    return {}


def next_rung(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """Why a rung is lost; the next one begins under an epoch of its own, so that no order of the lost one can follow it.

    What is known of the lost rung's instants is taken back: t3 ... t7 are those of the rung that holds.
    """
    lost = state["failure"]
    epoch = raise_epoch(connection, run.place)
    body = {
        "rung": state["rung"],
        "digest": state["to_digest"],
        "version": state["to_version"],
        "step": lost["step"],
        "reason": lost["reason"],
        "message": lost["message"],
        "epoch": epoch,
    }
    _note(context, connection, run, "rung_lost", body)
    why = f"{state['to_version']} did not restore it either ({lost['reason']})"
    from_version = version_of(connection, run.from_digest)
    notices.tell(context, connection, run, f"rung {state['rung']} lost", from_version, None, why, "running")
    taken_back = dict.fromkeys(("t3", "t4", "t5", "t6", "t7", "failure"))
    guilty = [*state.get("guilty", ())]
    if lost["reason"] in AGAINST_CHECKPOINT:
        guilty.append(state["to_digest"])
    return {**taken_back, "epoch": epoch, "tried": [*state.get("tried", ()), state["to_digest"]], "guilty": guilty}


def _quarantine(context: RecoveryContext, connection: Connection, run: Run, digest: str) -> None:
    connection.execute(
        sql(
            "INSERT INTO quarantine (service, env, digest, run_id, since) VALUES (:service, :env, :digest, :run, :since) "
            "ON CONFLICT (service, env, digest) DO NOTHING"
        ),
        {**_keys(run.place), "digest": digest, "run": run.id, "since": encode_instant(context.clock.now())},
    )


def _quarantine_lost(context: RecoveryContext, connection: Connection, run: Run, state: State) -> list[str]:
    """The rungs of a ladder that held in the end which were lost by fault of their checkpoint, and not of the target.

    When no rung held, they are not quarantined: what breaks every version is most likely not the versions.
    """
    lost = list(state.get("guilty", ()))
    for digest in lost:
        _quarantine(context, connection, run, digest)
        connection.execute(
            sql(
                "UPDATE deployments SET state = 'rolled_back' WHERE id = (SELECT MAX(id) FROM deployments "
                "WHERE service = :service AND env = :env AND digest = :digest)"
            ),
            {**_keys(run.place), "digest": digest},
        )
    return lost


def finish(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """Everything that the report will say of this run, in one record; nothing when it was ended by hand before it began."""
    if run.state in TERMINAL:
        return {"final_state": run.state.value, "reason": run.reason, "ended_before": True}
    failure = state.get("failure")
    if failure and failure["step"] == "verify":
        for unusable in state.get("unusable", ()):  # the step's own record, which notes them otherwise, was not written
            _note_proof(context, connection, run, unusable["digest"], _failed_proof(unusable))
    final = RunState(failure["state"]) if failure else RunState.SUCCEEDED
    reason = failure["reason"] if failure else ""
    if failure and state.get("tried") and reason in LOST:
        reason = LADDER_EXHAUSTED  # the message tells what the last rung died of
    incident = _incident(connection, run)
    trigger = incident["trigger_name"] if incident else None
    from_version = version_of(connection, run.from_digest)
    if run.state is RunState.REQUESTED and final is not RunState.REFUSED and final is not RunState.CANCELLED:
        move(connection, run, RunState.RUNNING)  # it failed before its lock was recorded
        run = replace(run, state=RunState.RUNNING)
    move(connection, run, final, reason)
    connection.execute(
        sql("UPDATE runs SET ended_at = :at WHERE id = :id"),
        {"at": encode_instant(context.clock.now()), "id": run.id},
    )
    lost = _quarantine_lost(context, connection, run, state) if final is RunState.SUCCEEDED else []
    if state.get("activated_at"):
        # A target that said yes and goes on with another digest: what never answered is not said to serve.
        answered = reason != "wrong_digest_answers"
        connection.execute(
            sql(
                "UPDATE deployments SET state = :state WHERE service = :service AND env = :env AND state = 'activating'"
            ),
            {**_keys(run.place), "state": "active" if answered else "failed"},
        )
    timeline = timeline_of(run, incident, state)
    settings = context.settings.find(run.place)  # None when the place left the file in mid-run
    body = {
        "incident_id": run.incident_id,
        "trigger": trigger,
        "state": final.value,
        "reason": reason,
        "failed_step": failure["step"] if failure else None,
        "message": failure["message"] if failure else "",
        "requested_by": run.requested_by,
        "from_version": from_version,
        "to_version": state.get("to_version"),
        "from_digest": run.from_digest,
        "to_digest": state.get("to_digest"),
        "rungs": state.get("rung", 1),
        "tried": list(state.get("tried", ())),
        "quarantined": lost,
        "t4_proof": state.get("t4_proof"),
        "judged_by": state.get("judged_by"),
        "window_samples": state.get("window_samples"),
        "playbook_sha256": context.playbook.sha256,
        "deadline_ms": settings.recovery.deadline_s * 1000 if settings else None,
        "rto_scope": "full" if incident else "declared",
        **recovery_figures(context, run, timeline),
    }
    if final is RunState.REFUSED:
        refusal = {"incident_id": run.incident_id, "trigger": trigger, "reason": reason, "from_version": from_version}
        _note(context, connection, run, "rollback_refused", refusal)
    _note(context, connection, run, "rollback_finished", body)
    why = Trigger(trigger).label if trigger else "requested by hand"
    notices.tell(context, connection, run, "ended", from_version, state.get("to_version"), why, final.value, reason)
    return {"final_state": final.value, "reason": reason}


def timeline_of(run: Run, incident: Any, state: State) -> Timeline:
    """t0 ... t7 of a run; a run without an incident begins when it was asked for."""
    t0 = decode_instant(incident["t0"]) if incident else run.requested_at
    t1 = decode_instant(incident["t1"]) if incident else run.requested_at
    later = (Instant(**state[name]) if state.get(name) else None for name in ("t2", "t3", "t4", "t5", "t6", "t7"))
    return Timeline(t=(t0, t1, *later))


def recovery_figures(context: RecoveryContext, run: Run, timeline: Timeline) -> dict[str, Any]:
    """RTO, its parts and RPO, as evidence: nanoseconds as decimal strings, milliseconds as integers that sum exactly."""
    rto_ns = timeline.rto_ns()
    offsets = timeline.offsets_ms()
    settings = context.settings.find(run.place)
    stateless = settings is not None and settings.stateless
    objectives = context.settings.objectives
    return {
        "t": [
            None if t is None else {"ts": t.rfc3339_ms(), "mono_ns": str(t.mono_ns), "boot_id": t.boot_id}
            for t in timeline.t
        ],
        "offsets_ms": list(offsets),
        "parts_ms": timeline.parts_ms(),
        "clock_step_ms": timeline.clock_step_ms(),
        "rto_achieved_ns": str(rto_ns) if rto_ns is not None else None,
        "rto_achieved_ms": offsets[6] if rto_ns is not None else None,
        "rto_objective_ms": objectives.rto_objective_ms,
        "rpo_achieved_ms": 0 if stateless else None,
        "rpo_objective_ms": objectives.rpo_objective_ms,
        "rpo_basis": "stateless" if stateless else "unmeasured",
    }


def close(context: RecoveryContext, connection: Connection, run: Run, state: State) -> State:
    """Let go of the place; the incident of a rollback that succeeded is closed."""
    if state.get("ended_before"):
        return {}
    connection.execute(
        sql("UPDATE places SET open_run_id = NULL WHERE service = :service AND env = :env AND open_run_id = :run"),
        {**_keys(run.place), "run": run.id},
    )
    if run.incident_id is not None and state["final_state"] == RunState.SUCCEEDED.value:
        closed = connection.execute(
            sql("UPDATE incidents SET state = 'closed' WHERE n = :n AND state = 'open'"),
            {"n": int(run.incident_id[2:])},
        )
        if closed.rowcount:
            body = {"incident_id": run.incident_id, "false_positive": False, "by": "rollback"}
            _note(context, connection, run, "incident_closed", body)
    _note(context, connection, run, "rollback_closed", {"state": state["final_state"]})
    return {}
