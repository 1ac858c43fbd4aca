"""The watch: telemetry in, incidents and rollbacks out, in one supervised process.

One loop judges all places; runs execute on the engine's threads; a housekeeper thread projects evidence, delivers
messages, renews proofs of checkpoints and probes the data plane of silent places, so that nothing slow stands between a
breach and its rollback.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rearguard.checkpoints import golden, registry
from rearguard.database import sql
from rearguard.engine.durable import Engine
from rearguard.errors import ConflictError, IntegrityError, RearguardError
from rearguard.evidence.log import append
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.run import TERMINAL, RunState
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant
from rearguard.officer import checkpoints, deployments, incidents, rollbacks
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.progress import Follower, StepDone
from rearguard.recovery import records
from rearguard.recovery.context import read_run, run_from_row
from rearguard.watch.watcher import DigestAnswers, Event, Heard, Judged, PlaceWatch, Silent, breaches

TICK_S = 0.1
HOUSEKEEPING_S = 0.5
REVERIFY_EVERY_S = 60.0
TELEMETRY_BEFORE_S = 30
"""Seconds of counts before the breaching window that an incident keeps. Chosen."""
DATA_PLANE_FAILURES = 3
"""Failed probes in a row, one a housekeeping turn, before silence becomes a breach of the error trigger (R31)."""
DOWN_PROBE_EVERY_S = 5.0
"""Between probes of a place whose outage became an incident: a hanging target must not hold up the house. Chosen."""

Notify = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and fields; for people and logs, never for decisions."""


@dataclass
class _DataPlane:
    """Probes of one silent place; the housekeeper's, a new one after each silence."""

    failures: int = 0
    probed_ns: int = 0
    reported: bool = False


@operation(Effect.COMMIT)
def watch(office: Office, stop: threading.Event, notify: Notify = lambda _name, _fields: None) -> bool:
    """Watch every declared place until `stop` is set, then hand over.

    Returns False when an order to a target is still under way: the officer's lock then dies with this process, which
    must end at once.

    Takes the officer's lock first: raises `ConflictError` `officer_alive` when another watch works on this state
    directory. Runs that a dead officer left behind are taken up at once.
    """
    settings = office.settings
    _ = office.playbook
    engine = rollbacks.build_engine(office)
    since = office.clock.now()  # the engine resumes runs as it starts
    engine.start()
    try:
        officer = _Officer(office, engine, notify, since)
        notify("watch_started", {"places": [str(p.place) for p in settings.places], "state": str(office.state)})
        officer.take_up_runs()
        housekeeper = threading.Thread(target=officer.keep_house, args=(stop,), name="housekeeper", daemon=True)
        housekeeper.start()
        while not stop.wait(TICK_S):
            officer.turn()
        housekeeper.join(timeout=10)
    finally:
        landed = engine.stop()
        office.publish(registry_changed=True)
        notify("watch_stopped", {"handed_over": len(rollbacks.unfinished(office))})
    return landed


class _Officer:
    """State of one watch."""

    def __init__(self, office: Office, engine: Engine, notify: Notify, since: Instant) -> None:
        self._office = office
        self._engine = engine
        self._notify = notify
        now = office.clock.now()
        self._watches = {p.place: PlaceWatch(office.feed_of(p.place), now) for p in office.settings.places}
        self._planes = {place: _DataPlane() for place in self._watches}
        self._submitted: set[str] = set()
        self._since_ms = since.wall_ns // NS_PER_MS
        self._followed: dict[str, Follower] = {}
        self._down: set[Place] = set()
        """Places whose last probe failed; only the housekeeper touches it."""
        self._closed: dict[Place, int] = {}

    def turn(self) -> None:
        """One look at everything. Raises `ConflictError` `officer_superseded`: this process must then end at once."""
        now = self._office.clock.now()
        if not self._engine.held():
            raise ConflictError(
                "officer_superseded", "another officer has taken over while this one was hung", "this one ends"
            )
        self._engine.beat(now)
        for place, place_watch in self._watches.items():
            for event in place_watch.tick(now):
                self._on(place, place_watch, event)
        self.take_up_runs()

    def take_up_runs(self) -> None:
        """Hand every run that has not ended to the engine; a second hand-over changes nothing."""
        with self._office.database.reading() as connection:
            rows = connection.execute(sql("SELECT * FROM runs WHERE state IN ('requested', 'running')")).all()
        for row in rows:
            if row.id not in self._submitted:
                self._submitted.add(row.id)
                self._engine.submit(row.id)
                found = run_from_row(row._mapping)
                self._notify("run_taken_up", {"run_id": found.id, "place": str(found.place)})
                self._followed[found.id] = Follower(
                    self._office.database, found.id, self._on_step, since_ms=self._since_ms
                )

    def _on(self, place: Place, place_watch: PlaceWatch, event: Event) -> None:
        office = self._office
        match event:
            case DigestAnswers():
                settings = place_watch.feed.settings
                found_as = deployments.note_answering(office, settings, event.digest, event.before, event.at)
                if found_as is deployments.Answering.STRAGGLER:
                    place_watch.digest = event.before  # if it is still so at the next look, it is told again
                    return
                if found_as is deployments.Answering.UNREGISTERED:
                    self._notify("deployment_unregistered", {"place": str(place), "digest": event.digest})
                self._notify("digest_answers", {"place": str(place), "digest": event.digest})
            case Judged():
                office.feed_of(place)  # refreshes the limits in force
                found = breaches(event.judgements)
                if found:
                    self._breach(place_watch, event.digest, found, event.at)
            case Silent():
                body = {"since_ts": event.since.rfc3339(), "outcome": "inconclusive", "reason": event.reason}
                self._append(place, "telemetry_silent", body)
                self._notify("telemetry_silent", {"place": str(place), "since": event.since.rfc3339()})
            case Heard():
                self._planes[place] = _DataPlane()
                self._append(place, "telemetry_back", {})
                incidents.close_outage(office, place)
                self._notify("telemetry_back", {"place": str(place)})

    def _append(self, place: Place, kind: str, body: dict[str, Any]) -> None:
        office = self._office
        with office.database.transaction() as connection:
            append(connection, now=office.clock.now(), kind=kind, body=body, place=place, run_id=office.ids.run_id())

    def _breach(
        self, place_watch: PlaceWatch, digest: Digest, found: tuple[Judgement, ...], at: Instant, note: str = ""
    ) -> None:
        first = found[0]
        counts = place_watch.feed.counts
        if self._moved_on(place_watch, digest, at):
            return
        window = counts.seconds(digest, first.window_start_s - TELEMETRY_BEFORE_S, first.window_end_s)
        p95 = counts.p95_ms(digest, first.window_start_s, first.window_end_s)
        assert first.first_bad_mono_ns is not None
        breach = incidents.Breach(
            place=place_watch.place,
            digest=digest,
            judgement=first,
            also=found[1:],
            t0=at.plus(first.first_bad_mono_ns - at.mono_ns),
            t1=at,
            telemetry=window,
            p95_ms=str(p95) if p95 is not None else None,
            note=note,
        )
        incident, run_id = incidents.open_incident(self._office, breach)
        if run_id is not None:
            self.take_up_runs()
        fields = {
            "incident": incident.id,
            "place": str(incident.place),
            "trigger": first.trigger.label,
            "run_id": run_id or "",
        }
        if self._closed.get(incident.place) != int(incident.id[2:]):
            self._closed[incident.place] = int(incident.id[2:])
            self._notify("incident_opened", fields)

    def _moved_on(self, place_watch: PlaceWatch, digest: Digest, at: Instant) -> bool:
        """True when the active deployment is another digest, and it answers: what was judged are answers in flight."""
        with self._office.database.reading() as connection:
            active = deployments.newest(connection, place_watch.place)
        if active is None or active.digest == digest:
            return False
        answered_ns = place_watch.feed.counts.last_seen(active.digest)
        return answered_ns is not None and at.mono_ns - answered_ns < deployments.STRAGGLERS_S * NS_PER_S

    def keep_house(self, stop: threading.Event) -> None:
        """Everything that may be slow."""
        last_reverify_ns = 0
        while not stop.wait(HOUSEKEEPING_S):
            jobs = [self._probe_silent_places, self._office.deliver, self._tell_runs, self._reap_errors, self._publish]
            jobs += [self._conclude_orphans, self._recover_runs]
            now_ns = self._office.clock.now().mono_ns
            if now_ns - last_reverify_ns > REVERIFY_EVERY_S * NS_PER_S:
                last_reverify_ns = now_ns
                jobs.append(self._renew_proofs)
            for job in jobs:
                try:
                    job()
                except RearguardError as error:
                    # One job that cannot be done must not keep the others from being done.
                    self._notify("housekeeping_failed", {"code": error.code, "message": error.message})
        with contextlib.suppress(RearguardError):
            self._tell_runs()  # what ended since the last turn

    def _publish(self) -> None:
        self._office.publish()
        if self._office.unpublished is not None:
            raise self._office.unpublished

    def _recover_runs(self) -> None:
        for run_id in self._engine.recover():
            self._notify("run_recovered", {"run_id": run_id})

    def _conclude_orphans(self) -> None:
        for place in self._watches:
            deployments.conclude_orphans(self._office, place)

    def _on_step(self, done: StepDone) -> None:
        self._notify("step_done", {"run_id": done.run_id, "step": done.step, "took_ms": done.took_ms})

    def _tell_runs(self) -> None:
        """Tell the steps and the ends of the runs that this officer took up."""
        for run_id, follower in list(self._followed.items()):
            # Before the look at the steps: an engine that is done with a run has noted all of them.
            at_work = self._engine.status(run_id) in rollbacks.UNDER_WAY
            follower.look()
            with self._office.database.reading() as connection:
                found = read_run(connection, run_id)
                finished = connection.execute(
                    sql("SELECT body FROM evidence WHERE run_id = :run AND kind = 'rollback_finished'"),
                    {"run": run_id},
                ).scalar()
            if at_work or found.state not in TERMINAL:
                continue
            del self._followed[run_id]
            figures = json.loads(finished) if finished else {}
            fields = {"run_id": run_id, "state": found.state.value, "rto_ms": figures.get("rto_achieved_ms")}
            self._notify("run_finished", {**fields, "place": str(found.place), "reason": found.reason})

    def _renew_proofs(self) -> None:
        for checkpoint in checkpoints.due_for_verification(self._office):
            try:
                checkpoints.verify(self._office, checkpoint)
            except RearguardError as error:
                self._notify("checkpoint_failed", {"version": checkpoint.version, "code": error.code})

    def _probe_silent_places(self) -> None:
        for place, place_watch in self._watches.items():
            plane = self._planes[place]
            digest = place_watch.digest
            silent = place_watch.silent_since is not None
            down = place in self._down
            if digest is None or not (silent or down):
                continue
            now_ns = self._office.clock.now().mono_ns
            if plane.reported and now_ns - plane.probed_ns < DOWN_PROBE_EVERY_S * NS_PER_S:
                continue
            answers = self._answers(place, digest)
            plane.probed_ns = self._office.clock.now().mono_ns
            if answers:
                plane.failures = 0
                if down:
                    self._down.discard(place)
                    self._notify("target_back", {"place": str(place)})
                continue
            if not down:
                self._down.add(place)
                self._notify("target_unreachable", {"place": str(place)})
            if not silent or plane.reported:
                continue
            plane.failures += 1
            if plane.failures >= DATA_PLANE_FAILURES:
                plane.reported = True
                self._breach(
                    place_watch,
                    digest,
                    (_unreachable(place_watch, self._office.clock.now()),),
                    self._office.clock.now(),
                    incidents.DATA_PLANE_DOWN,
                )

    def _answers(self, place: Place, digest: Digest) -> bool:
        with self._office.database.reading() as connection:
            known = registry.get(connection, digest)
        target = self._office.target_of(place)
        try:
            if known is None:
                return target.active() is not None
            recorded = golden.decode(self._office.store.get_bytes(known.golden_sha256))
            target.probe(recorded.requests[0], 2.0)
        except IntegrityError:
            return True  # our own copy of the question is damaged; that says nothing of the service
        except RearguardError:
            return False
        return True

    def _reap_errors(self) -> None:
        """A run whose execution ended without its own last records lets go of its place here, and is failed."""
        office = self._office
        with office.database.reading() as connection:
            rows = connection.execute(sql("SELECT id FROM runs WHERE state IN ('requested', 'running')")).all()
        for row in rows:
            status = self._engine.status(row.id)
            if status not in ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"):
                continue
            with office.database.transaction() as connection:
                found = read_run(connection, row.id)
                if found.state in TERMINAL:
                    continue
                if found.state is RunState.REQUESTED:
                    records.move(connection, found, RunState.RUNNING)
                    found = read_run(connection, row.id)
                failure = {"step": "engine", "state": "failed", "reason": f"engine_{status.lower()}", "message": status}
                state = {"failure": failure}
                state.update(records.finish(office.recovery_context(), connection, found, state))
                records.close(office.recovery_context(), connection, found, state)
            self._notify("run_failed", {"run_id": row.id, "reason": status})


def _unreachable(place_watch: PlaceWatch, now: Instant) -> Judgement:
    """Silence and a dead data plane over the same span are a breach of the error trigger (R31)."""
    since = place_watch.silent_since or now
    assert place_watch.digest is not None
    return Judgement(
        trigger=Trigger.ERRORS,
        digest=place_watch.digest,
        outcome=Outcome.FAIL,
        reason="data_plane_down",
        window_start_s=since.mono_ns // NS_PER_S,
        window_end_s=now.mono_ns // NS_PER_S,
        samples=DATA_PLANE_FAILURES,
        exceedances=DATA_PLANE_FAILURES,
        observed=None,
        limit=place_watch.feed.limits_of(place_watch.digest).error_limit_ratio,
        streak=1,
        first_bad_mono_ns=since.mono_ns,
    )
