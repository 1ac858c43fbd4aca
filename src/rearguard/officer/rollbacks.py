"""Operations on rollbacks: plan, run, list, show, cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints import registry, standbys
from rearguard.database import Connection, officer_alive, officer_presence, sql
from rearguard.engine.durable import Engine, Execution, Steps, run_execution, step_history
from rearguard.errors import ConfigError, ConflictError, RearguardError, RefusedError
from rearguard.evidence.log import append, read
from rearguard.model.evidence import Record
from rearguard.model.run import TERMINAL, Run, RunState
from rearguard.model.service import Digest, Place
from rearguard.model.standby import StandbyState
from rearguard.model.time import Instant
from rearguard.officer import approvals, calling_off, checkpoints, deployments, incidents, refusals, remedies, standing
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.progress import Follower, StepDone
from rearguard.officer.standing import Stands
from rearguard.officer.story import Attempts, StepRow, step_rows
from rearguard.recovery import brakes
from rearguard.recovery.candidates import candidates
from rearguard.recovery.context import read_run, run_from_row, version_of
from rearguard.recovery.rollback import rollback
from rearguard.rules.selection import Selection

UNDER_WAY = ("ENQUEUED", "PENDING", "DELAYED")
"""The engine's words for a run that has not ended."""
_LOOK_EVERY_S = 0.2
_LOOKS_FOR_CLOSE = 10
"""Looks for a run's last step after its state is final; one that ended without it is not waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlan:
    """What a rollback would do, and why it is safe or refused."""

    place: Place
    from_digest: Digest | None
    from_version: str | None
    selection: Selection
    refusals: tuple[str, ...]
    """Codes; empty when nothing stands in the way."""
    remedy: str
    """What to do where nothing can be rolled back to; else empty."""
    steps: tuple[tuple[str, str, int], ...]
    """Step, owner, limit in seconds, as the playbook declares them."""
    warm: bool | None
    """Whether the best candidate stands loaded at the target; None: no officer looks after it, so nobody knows."""
    expected_load_ms: int | None
    """How long the target will load it: 0 when it is warm, else its cold load at the last verification."""
    automation_held_by: str | None
    """Code of the brake that would hold an automatic rollback back now; a person is the override."""
    automation_held_until: Instant | None
    """When that brake lets go; None when only a person can release it."""


@operation(Effect.PROPOSE)
def plan(office: Office, *, service: str, env: str | None, to: str | None = None) -> RollbackPlan:
    """Compute what `run` would do; changes nothing."""
    settings = office.place(service, env)
    place = settings.place
    named = checkpoints.find(office, service=service, version=to) if to else None
    wanted = named.digest if named is not None else None
    active = active_digest(office, place)
    now = office.clock.now()
    with office.database.reading() as connection:
        hold = brakes.hold_on(settings, connection, now)
        selection = candidates(
            connection,
            place,
            active=active,
            policy=office.settings.checkpoints,
            now=office.clock.now(),
            wanted=wanted,
            count_rest=True,
        )
        open_run = connection.execute(
            sql("SELECT open_run_id FROM places WHERE service = :service AND env = :env"),
            {"service": service, "env": place.env},
        ).scalar()
        from_version = version_of(connection, active)
        standby = standbys.get(connection, place)
        remedy = "" if selection.candidates else remedies.of_place(office, connection, place, selection.rejected)
    best = selection.candidates[0].checkpoint if selection.candidates else None
    warm: bool | None = None
    if officer_alive(office.state) and best is not None:
        standing = standby.digest if standby is not None and standby.state is StandbyState.STANDING else None
        warm = standing == best.digest
    codes = refusals.codes(settings, named, active, selection, busy=bool(open_run))
    return RollbackPlan(
        place=place,
        from_digest=active,
        from_version=from_version,
        selection=selection,
        refusals=codes,
        remedy=refusals.remedy(codes, remedy),
        steps=tuple((s.name, s.owner, s.timeout_s) for s in office.playbook.steps),
        warm=warm,
        expected_load_ms=None if best is None else 0 if warm else best.load_ms,
        automation_held_by=hold.brake.value if hold else None,
        automation_held_until=hold.until if hold else None,
    )


def active_digest(office: Office, place: Place) -> Digest | None:
    """What answers now, as the target says; the newest deployment when it does not answer."""
    try:
        found = office.target_of(place).active()
    except RearguardError:
        found = None
    if found is not None:
        return found
    with office.database.reading() as connection:
        known = deployments.newest(connection, place)
    return known.digest if known else None


@operation(Effect.COMMIT)
def run(
    office: Office,
    *,
    service: str,
    env: str | None,
    to: str | None,
    by: str,
    progress: Callable[[str], None] = lambda _run_id: None,
    on_waiting: Callable[[approvals.ApprovalRequest], None] = lambda _asked: None,
    on_step: Callable[[StepDone], None] = lambda _done: None,
) -> Run:
    """Roll back by hand and wait for the end.

    The living officer does it; with none alive it runs here, under the officer's lock. Attaches to the place's open
    incident. Raises `RefusedError` (`already_served`, `no_verified_checkpoint`, `format_answers_nothing`,
    `another_run_open`): refused before anything is written; `ConflictError` `officer_superseded`: this process must end at once.
    """
    proposal = plan(office, service=service, env=env, to=to)
    refusals.refuse(proposal, to)
    wanted = checkpoints.find(office, service=service, version=to).digest if to else None
    presence = officer_presence(office.state, office.clock.now())
    if presence.held and not presence.hung:  # from one that hangs, this process takes over
        run_id = _request(office, proposal, wanted, by, in_office=False)
        progress(run_id)
        _tell_waiting(office, run_id, on_waiting)
        return _wait_for_officer(office, run_id, on_step)
    engine = build_engine(office)
    engine.start()  # before anything is written: whoever loses the race for the lock leaves nothing behind
    superseded = False
    try:
        run_id = _request(office, proposal, wanted, by, in_office=True)
        progress(run_id)
        if _tell_waiting(office, run_id, on_waiting):
            office.deliver()
            _wait_for_approval(office, engine, run_id)
        engine.submit(run_id)  # a run that was refused or cancelled meanwhile ends at its first step
        follower = Follower(office.database, run_id, on_step)
        while engine.status(run_id) in UNDER_WAY:
            _stay_in_office(engine)
            engine.beat(office.clock.now())
            follower.look()
            office.clock.sleep(_LOOK_EVERY_S)
        engine.wait(run_id)
        follower.look()
    except ConflictError as error:
        superseded = error.code == "officer_superseded"
        raise
    finally:
        if not superseded:
            engine.stop()
            try:
                office.deliver()  # first: people are told before files are written
            finally:
                office.publish(registry_changed=True)
    return _get(office, run_id)


def _stay_in_office(engine: Engine) -> None:
    if not engine.held():
        raise ConflictError(
            "officer_superseded",
            "another officer has taken this rollback over while this process was hung",
            "nothing more was touched; see `rearguard status`",
        )


def _request(office: Office, proposal: RollbackPlan, wanted: Digest | None, by: str, *, in_office: bool) -> str:
    """Write a run by hand, attached to the place's open incident; returns its id.

    One run of a place is open at a time: raises `RefusedError` `another_run_open`. Whoever is the officer calls off what
    waits there and has not begun, for nobody else would take it up.
    """
    run_id = office.ids.run_id()
    with office.database.transaction() as connection:
        for other in _open_runs(connection, proposal.place):
            if other.state is RunState.RUNNING or not in_office:
                raise RefusedError(
                    "another_run_open",
                    f"{other.id} of {proposal.place}, asked for by {other.requested_by}, is {other.state.value}",
                    f"wait for it: rearguard runs show {other.id}; or rearguard runs cancel {other.id}",
                )
            why = f"{by} asked for {run_id} instead, before it began"
            calling_off.end_unbegun(office, connection, other, by=by, why=why, now=office.clock.now())
        incident = incidents.open_at(connection, proposal.place)
        incidents.insert_run(
            connection,
            run_id,
            proposal.place,
            incident_id=incident.id if incident else None,
            from_digest=proposal.from_digest,
            by=by,
            now=office.clock.now(),
            wanted=wanted,
        )
        if incident is not None:
            connection.execute(
                sql("UPDATE incidents SET run_id = :run WHERE n = :n"), {"run": run_id, "n": int(incident.id[2:])}
            )
        approvals.request(office, connection, run_id)
    return run_id


def _open_runs(connection: Connection, place: Place) -> tuple[Run, ...]:
    rows = connection.execute(
        sql(
            "SELECT * FROM runs WHERE service = :service AND env = :env AND state IN ('requested', 'running') "
            "ORDER BY state = 'requested', rowid"
        ),
        {"service": place.service, "env": place.env},
    )
    return tuple(run_from_row(row._mapping) for row in rows)


def _tell_waiting(office: Office, run_id: str, on_waiting: Callable[[approvals.ApprovalRequest], None]) -> bool:
    with office.database.reading() as connection:
        waits = approvals.is_waiting(connection, run_id)
    if waits:
        on_waiting(approvals.show(office, run_id))
    return waits


def _wait_for_approval(office: Office, engine: Engine, run_id: str) -> None:
    """Until it is given, expires, or the run is cancelled."""
    while True:
        engine.beat(office.clock.now())
        approvals.expire(office)
        with office.database.reading() as connection:
            if not approvals.is_waiting(connection, run_id):
                return
        office.clock.sleep(_LOOK_EVERY_S)


def build_engine(office: Office) -> Engine:
    """The durable engine with the rollback as its body."""

    def body(steps: Steps, run_id: str) -> dict[str, Any]:
        return rollback(office.recovery_context(), steps, run_id)

    engine = Engine(
        office.database,
        office.state,
        body,
        office.stopping,
        office.clock.now,
        settings_sha256=office.settings.sha256,
        playbook_sha256=office.playbook.sha256,
    )
    office.held = engine.held
    return engine


def _wait_for_officer(office: Office, run_id: str, on_step: Callable[[StepDone], None]) -> Run:
    follower = Follower(office.database, run_id, on_step)
    looks_after_end = 0
    while True:
        found = _get(office, run_id)
        follower.look()
        if found.state in TERMINAL:
            looks_after_end += 1
            if "close" in follower.seen or looks_after_end > _LOOKS_FOR_CLOSE:
                return found
            office.clock.sleep(_LOOK_EVERY_S)
            continue
        presence = officer_presence(office.state, office.clock.now())
        if presence.hung:
            raise ConflictError(
                "officer_hung",
                f"the officer (process {presence.pid}) has made no progress for {int(presence.idle_s or 0)} s; "
                f"{run_id} is durable",
                "start another one (`rearguard run`): it takes over and goes on where the run stopped",
            )
        if not presence.held:
            _left_alone(office, found)
        office.clock.sleep(_LOOK_EVERY_S)


def _left_alone(office: Office, run: Run) -> None:
    """The officer is gone. A run that has not begun is called off, for nobody may ever come to take it up.

    Raises `ConflictError` `officer_died`, unless the run ended meanwhile or another officer is there by now.
    """
    if run.state is RunState.RUNNING:
        raise ConflictError(
            "officer_died",
            f"the officer that worked on {run.id} died; the run is durable",
            "start one again (`rearguard watch`) and it is taken up where it stopped",
        )
    with office.database.transaction() as connection:
        found = read_run(connection, run.id)
        if found.state is not RunState.REQUESTED or officer_alive(office.state):
            return
        why = "the officer left before it began"
        calling_off.end_unbegun(office, connection, found, by=run.requested_by, why=why, now=office.clock.now())
        # No person gave the incident up: the next officer may act on it.
        connection.execute(
            sql(
                "UPDATE incidents SET run_id = (SELECT id FROM runs WHERE incident_id = :incident AND id != :run "
                "ORDER BY rowid DESC LIMIT 1) WHERE run_id = :run"
            ),
            {"incident": run.incident_id, "run": run.id},
        )
    office.publish()
    raise ConflictError(
        "officer_died",
        f"the officer left before it began {run.id}; the run is called off, and nothing was touched",
        f"ask again: rearguard rollback run {run.place.service} --env {run.place.env} --execute",
    )


def _get(office: Office, run_id: str) -> Run:
    with office.database.reading() as connection:
        return read_run(connection, run_id)


@operation(Effect.READ)
def list_runs(office: Office, *, state: str | None = None) -> tuple[Run, ...]:
    """All runs, oldest first."""
    where = "state = :state" if state else "1 = 1"
    with office.database.reading() as connection:
        rows = connection.execute(sql(f"SELECT * FROM runs WHERE {where} ORDER BY rowid"), {"state": state})
        return tuple(run_from_row(row._mapping) for row in rows)


@operation(Effect.READ)
def unfinished(office: Office) -> tuple[Run, ...]:
    """Runs that were asked for and have not ended."""
    return tuple(run for run in list_runs(office) if run.state not in TERMINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStory:
    """A run with its steps, what the engine says of it, and its evidence."""

    run: Run
    from_version: str | None
    to_version: str | None
    stands: Stands
    execution: Execution | None
    """None while no engine has heard of it: it was asked for, and no officer has been alive since."""
    steps: tuple[StepRow, ...]
    records: tuple[Record, ...]


@operation(Effect.READ)
def show(office: Office, run_id: str) -> RunStory:
    """One run, whole. Raises `NotFoundError` `run_unknown`."""
    found = _get(office, run_id)
    with office.database.reading() as connection:
        story = tuple(read(connection, run_id=run_id))
        names = version_of(connection, found.from_digest), version_of(connection, found.to_digest)
        rows = connection.execute(sql("SELECT * FROM attempts WHERE run_id = :run"), {"run": run_id}).all()
    attempts = {
        row.step: Attempts(
            tries=int(row.tries),
            first_at=registry.decode_instant(row.first_at),
            last_at=registry.decode_instant(row.last_at),
            last_error=row.last_error,
        )
        for row in rows
    }
    return RunStory(
        run=found,
        from_version=names[0],
        to_version=names[1],
        stands=standing.standings(office, (found,))[run_id],
        execution=run_execution(office.database, run_id),
        steps=step_rows(run_id, step_history(office.database, run_id), attempts, story, _owners(office)),
        records=story,
    )


def _owners(office: Office) -> dict[str, str]:
    """Owner of each step; none when the playbook cannot be read, which must not hide what a run did."""
    try:
        return {step.name: step.owner for step in office.playbook.steps}
    except ConfigError:
        return {}


@operation(Effect.COMMIT)
def cancel(office: Office, run_id: str, *, by: str) -> Run:
    """Ask a run to end before traffic moves.

    Raises `ConflictError` `run_ended`, or `run_past_cancel` once traffic may have moved: a service that has been
    switched and is not yet proven is never abandoned.
    """
    with office.database.transaction() as connection:
        found = read_run(connection, run_id)
        if found.state in TERMINAL:
            raise ConflictError("run_ended", f"{run_id} ended as {found.state.value}", "nothing to cancel")
        done = {r.kind for r in read(connection) if r.run_id == run_id}
        if "target_verified" in done:
            raise ConflictError(
                "run_past_cancel", f"{run_id} is moving traffic or proving it", f"rearguard runs show {run_id}"
            )
        connection.execute(sql("UPDATE runs SET cancel_requested = 1 WHERE id = :id"), {"id": run_id})
        approvals.withdraw(connection, run_id, office.clock.now())
        append(
            connection,
            now=office.clock.now(),
            kind="cancel_requested",
            body={"by": by},
            place=found.place,
            run_id=run_id,
        )
        if found.state is RunState.REQUESTED and not officer_alive(office.state):
            calling_off.end(office, connection, found, "cancelled by hand before it began")  # nobody else would
    office.publish()
    return _get(office, run_id)
