"""The watch: telemetry in, incidents and rollbacks out, in one supervised process.

One loop judges all places; runs execute on the engine's threads; the house (`housekeeping`) projects evidence, renews
proofs of checkpoints and probes the data plane of silent places, so that nothing slow stands between a breach and its
rollback. The office's beat is given only while the loop and the runs make progress.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from rearguard.database import Presence, sql, write_lock_holders
from rearguard.engine.durable import Engine, step_history
from rearguard.errors import ConflictError, DatabaseBusyError, DependencyError, IntegrityError, RearguardError
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.handoffs.courier import Couriers
from rearguard.model.breach import Judgement
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant, elapsed
from rearguard.officer import deployments, housekeeping, incidents, last_words, retention, rollbacks, standing
from rearguard.officer.grey import GreyZones
from rearguard.officer.housekeeping import Housekeeper, Job, Notify, RunNews
from rearguard.officer.mirroring import LOOK_S as MIRROR_LOOK_S
from rearguard.officer.mirroring import Mirroring
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.officer.outages import Outages
from rearguard.officer.scrub import SCRUB_LOOK_S, Scrub
from rearguard.officer.standby import LOOK_EVERY_S, StandbyKeeper
from rearguard.officer.store_look import StoreLook
from rearguard.officer.supervision import Component, ComponentHealth, Pulse, Supervisor
from rearguard.ports import Message
from rearguard.recovery.context import run_from_row
from rearguard.watch import memory
from rearguard.watch.watcher import DigestAnswers, Event, Heard, Judged, PlaceWatch, Silent, breaches

TICK_S = 0.1
LOOP_PARTS = ("watch", "runs")
"""What of an officer has a pulse and no thread of its own."""
LOOP_LIMIT_S = 10.0
"""A loop without a turn for so long is hung. Chosen below the office's lease: whoever asks hears of it before a
successor takes over."""
RUN_MARGIN_S = 60.0
"""Beyond its own deadline and its longest step a run that has noted nothing for so long stands still. Chosen."""
HOUSE_PATIENCE_S = 5.0
COURIER_LIMIT_S = 60.0
"""A delivery may take 10 s and a note of it wait 30 s for the database. Chosen above both."""
BUSY_CRY_S = 15.0
"""So long another process may keep the officer from writing before somebody is paged. Chosen: a backup takes less."""
TELEMETRY_BEFORE_S = 30
"""Seconds of counts before the breaching window that an incident keeps. Chosen."""
SUPERSEDED = "officer_superseded"


@operation(Effect.COMMIT)
def watch(
    office: Office,
    stop: threading.Event,
    notify: Notify = lambda _name, _fields: None,
    *,
    supervisor: Supervisor | None = None,
    attend: Callable[[_Officer], Sequence[Component]] = lambda _officer: (),
    each_turn: Callable[[], None] = lambda: None,
) -> bool:
    """Watch every declared place until `stop` is set, then hand over.

    Returns False when an order to a target is still under way: the officer's lock then dies with this process, which
    must end at once. `attend` names further threads to keep alive while this officer is in office; `each_turn` is called
    by the loop, so that it is not called by one that hangs.

    Takes the officer's lock first: raises `ConflictError` `officer_alive` when another watch works on this state
    directory. Runs that a dead officer left behind are taken up at once. Raises `ConflictError` `officer_superseded` when
    another officer took over while this one hung: nothing more is touched, and this process must end at once. Raises
    `IntegrityError` `database_damaged` after somebody was paged, without a record.
    """
    try:
        return _watch(office, stop, notify, supervisor or Supervisor(office.clock.now, notify, stop), attend, each_turn)
    except IntegrityError as error:
        last_words.cry_damaged(office, notify, error)
        raise


def _watch(
    office: Office,
    stop: threading.Event,
    notify: Notify,
    supervisor: Supervisor,
    attend: Callable[[_Officer], Sequence[Component]],
    each_turn: Callable[[], None],
) -> bool:
    settings = office.settings
    _ = office.playbook
    office.refuse_silent_channels()
    engine = rollbacks.build_engine(office)
    since = office.clock.now()  # the engine resumes runs as it starts
    replaced = engine.start()
    superseded = landed = False
    try:
        officer = _Officer(office, engine, notify, since, supervisor)
        notify("watch_started", {"places": [str(p.place) for p in settings.places], "state": str(office.state)})
        if replaced is not None:
            officer.tell_replaced(replaced)
        officer.take_up_runs()
        for component in (officer.house_component(stop), *officer.courier_components(stop), *attend(officer)):
            supervisor.start(component)
        while not stop.wait(TICK_S):
            officer.turn()
            supervisor.look()
            each_turn()
        officer.close_house()
    except ConflictError as error:
        superseded = error.code == SUPERSEDED
        raise
    finally:
        if not superseded:
            landed = engine.stop()
            office.publish(registry_changed=True)
            notify("watch_stopped", {"handed_over": len(rollbacks.unfinished(office))})
    return landed


class _Officer:
    """State of one watch."""

    def __init__(
        self, office: Office, engine: Engine, notify: Notify, since: Instant, supervisor: Supervisor | None = None
    ) -> None:
        self._office = office
        self._engine = engine
        self._notify = notify
        now = office.clock.now()
        self._watches = {p.place: PlaceWatch(office.feed_of(p.place), now) for p in office.settings.places}
        self._pending: dict[Place, list[Event]] = {place: [] for place in self._watches}
        """What was seen and could not be written yet."""
        self._submitted: set[str] = set()
        self._closed: dict[Place, int] = {}
        self._news = RunNews(office, engine, notify, since.wall_ns // NS_PER_MS)
        self._outages = Outages(office, self._watches, notify, self._on_outage)
        self._supervisor = supervisor or Supervisor(office.clock.now, notify, threading.Event())
        watch_part, runs_part = LOOP_PARTS
        self._pulse = self._supervisor.pulse(watch_part, LOOP_LIMIT_S)
        self._runs_pulse = self._supervisor.pulse(runs_part, math.inf)  # judged by the loop: see `_runs_move`
        self._noted: dict[str, tuple[int, Instant]] = {}
        """Of each run that executes: how many notes the engine had of it, and since when."""
        self._looked_ns = 0
        self._busy_since: Instant | None = None
        self._saving = threading.Lock()
        self._standbys = StandbyKeeper(office, notify)
        self._scrub = Scrub(office, notify, engine.held)
        self._mirroring = Mirroring(office, notify, engine.held)
        self.store_look = StoreLook(office)
        self._housekeeper = Housekeeper(self._jobs(), office.clock.now, notify, engine.held)
        self._couriers = Couriers(office.database, office.clock, office.channels(), notify)
        self._grey = GreyZones(office)

    @property
    def watches(self) -> tuple[PlaceWatch, ...]:
        """The watch over each place."""
        return tuple(self._watches.values())

    @property
    def standbys(self) -> StandbyKeeper:
        """Who keeps the warm standbys."""
        return self._standbys

    @property
    def housekeeper(self) -> Housekeeper:
        """Who runs the jobs."""
        return self._housekeeper

    def held(self) -> bool:
        """False once another officer has taken over."""
        return self._engine.held()

    def health(self) -> tuple[ComponentHealth, ...]:
        """How everything that this officer consists of is."""
        return self._supervisor.health()

    def _jobs(self) -> tuple[Job, ...]:
        every_s = housekeeping.HOUSEKEEPING_S
        return housekeeping.table(
            self._office,
            self._engine,
            self._notify,
            tuple(self._watches),
            Job(name="outages", every_s=every_s, work=self._outages.look),
            Job(name="run_news", every_s=every_s, work=self._news.tell),
            Job(name="memory", every_s=memory.SAVE_EVERY_S, work=self._save),
            Job(name="proofs", every_s=SCRUB_LOOK_S, work=self._scrub.turn),
            Job(name="second_copy", every_s=MIRROR_LOOK_S, work=self._mirroring.turn),
            Job(name="retention", every_s=retention.LOOK_S, work=self.store_look.turn),
            Job(name="warm_standby", every_s=LOOK_EVERY_S, work=self._standbys.look),
        )

    def _save(self) -> None:
        # One at a time: a save that hangs has the newest changes, and a later one without them must not overtake it.
        if not self._saving.acquire(timeout=HOUSE_PATIENCE_S):
            return
        try:
            memory.save(self._office.database, self._watches.values(), self._office.clock.now())
        finally:
            self._saving.release()

    def house_component(self, stop: threading.Event) -> Component:
        """The housekeeper's thread."""

        def keep_house(pulse: Pulse) -> None:
            while not stop.wait(housekeeping.HOUSEKEEPING_S / 2):
                self._housekeeper.turn()
                pulse.beat()

        return Component(name="housekeeper", body=keep_house, limit_s=LOOP_LIMIT_S)

    def courier_components(self, stop: threading.Event) -> tuple[Component, ...]:
        """A thread for each channel."""

        def component(name: str) -> Component:
            run = self._couriers.run
            return Component(name=f"courier-{name}", body=lambda p: run(name, stop, p.beat), limit_s=COURIER_LIMIT_S)

        return tuple(component(name) for name in self._couriers.names)

    def close_house(self) -> None:
        """Begin no more jobs, and tell what ended since the last one."""
        self._scrub.stop()
        self._mirroring.stop()
        self._housekeeper.close(HOUSE_PATIENCE_S)
        self._couriers.rest(HOUSE_PATIENCE_S)
        for last in (self._news.tell, self._save):
            with contextlib.suppress(RearguardError):
                last()

    def turn(self) -> None:
        """One look at everything. Raises `ConflictError` `officer_superseded`: this process must then end at once.

        What cannot be written now (a full disk) is kept and tried again at the next turn; no beat is given meanwhile, except
        while another process holds the database's write lock: a successor could do no better.
        """
        now = self._office.clock.now()
        if not self._engine.held():
            raise ConflictError(SUPERSEDED, "another officer has taken over while this one was hung", "this one ends")
        try:
            for place, place_watch in self._watches.items():
                pending = self._pending[place]
                pending += place_watch.tick(now)
                while pending:
                    self._on(place, place_watch, pending[0])
                    del pending[0]
                place_watch.settle()
                self._beat_between_places()
            self.take_up_runs()
            self._grey.look(self._watches.values(), now)
            moving = self._runs_move(now)
        except DatabaseBusyError as error:
            self._wait_for_database(error)
            return
        except DependencyError as error:
            if error.code == "database_unavailable":
                last_words.cry(self._office, self._couriers, last_words.CANNOT_WRITE, error)
            if self._pulse.trouble != error.code:
                self._notify("turn_failed", {"code": error.code, "message": error.message})
            self._pulse.fail(error.code)
            return
        if moving:
            self._engine.beat(now)
        self._busy_since = None
        self._pulse.beat()

    def _wait_for_database(self, error: DatabaseBusyError) -> None:
        """Another turn in which somebody else held the write lock; somebody is paged once that has lasted."""
        now = self._office.clock.now()
        self._busy_since = self._busy_since or now
        if elapsed(self._busy_since, now).ns > BUSY_CRY_S * NS_PER_S:
            last_words.cry(self._office, self._couriers, last_words.CANNOT_WRITE, error)
        if self._pulse.trouble != error.code:
            self._notify("turn_failed", {"code": error.code, "message": error.message, "next": error.hint})
        if os.getpid() in write_lock_holders(self._office.database.path):
            self._pulse.fail(error.code)  # a thread of our own hangs in its transaction: a successor is the cure
            return
        self._pulse.wait(error.code)
        if not self._runs_pulse.trouble:
            self._engine.beat(now)

    def _beat_between_places(self) -> None:
        """Reading the backlog of many places takes longer than a lease; an officer that reads is not one that hangs."""
        if not self._pulse.trouble and not self._runs_pulse.trouble:
            self._engine.beat(self._office.clock.now())
            self._pulse.beat()

    def _runs_move(self, now: Instant) -> bool:
        """False when a run that executes has noted nothing for longer than all its own limits allow."""
        if now.mono_ns - self._looked_ns < NS_PER_S:
            return not self._runs_pulse.trouble
        self._looked_ns = now.mono_ns
        executing = self._engine.executing()
        self._noted = {run_id: noted for run_id, noted in self._noted.items() if run_id in executing}
        for run_id in executing:
            count = len(step_history(self._office.database, run_id))
            known = self._noted.get(run_id)
            if known is None or known[0] != count:
                self._noted[run_id] = (count, now)
            elif elapsed(known[1], now).ns > self._run_limit_s() * NS_PER_S:
                self._runs_pulse.fail(f"{run_id} has not moved since {known[1].rfc3339()}", stuck=True)
                return False
        self._runs_pulse.beat()
        return True

    def _run_limit_s(self) -> float:
        places = self._office.settings.places
        longest_step_s = max(step.timeout_s for step in self._office.playbook.steps)
        approval_s = max((p.approval.expires_s for p in places if p.approval.required), default=0)
        return max(p.recovery.deadline_s for p in places) + longest_step_s + approval_s + RUN_MARGIN_S

    def tell_replaced(self, replaced: Presence) -> None:
        """Another officer was hung and this one took its office: recorded, and somebody is paged."""
        office = self._office
        idle_s = int(replaced.idle_s or 0)
        fields = {"pid": replaced.pid or 0, "idle_s": idle_s}
        with office.database.transaction() as connection:
            record = append(connection, now=office.clock.now(), kind="officer_replaced", body=fields)
            message = Message(
                key=f"officer-replaced-{record.id}",
                title=f"Officer {replaced.pid or 'unknown'} hung for {idle_s} s and was replaced",
                fields={"state": str(office.state), "pid": str(replaced.pid or ""), "idle_s": str(idle_s)},
                cause="officer",
                severity="page",
            )
            outbox.post(connection, message, office.clock.now())
        self._notify("officer_replaced", fields)

    def take_up_runs(self) -> None:
        """Hand every run that has not ended to the engine; a second hand-over changes nothing.

        One that waits for approval is left alone, unless somebody cancelled it: the engine then ends it.
        """
        with self._office.database.reading() as connection:
            rows = connection.execute(
                sql(
                    "SELECT * FROM runs WHERE state IN ('requested', 'running') "
                    "AND (approval != 'needed' OR cancel_requested = 1)"
                )
            ).all()
        rows = [row for row in rows if row.id not in self._submitted]
        stranded = standing.stranded_runs(self._office) if rows else ()
        for row in rows:
            found = run_from_row(row._mapping)
            fields = {"run_id": found.id, "place": str(found.place)}
            if found.id in stranded:
                standing.tell_stranded(self._office, found.id)
                self._notify("run_stranded", {**fields, "next": standing.mend_command(found.id)})
            else:
                self._engine.submit(found.id)
                self._notify("run_taken_up", fields)
                self._news.follow(found.id)
            self._submitted.add(found.id)

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
                self._outages.heard(place)
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
        if self._moved_on(place_watch, digest, at, judged=not note):
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

    def _moved_on(self, place_watch: PlaceWatch, digest: Digest, at: Instant, *, judged: bool) -> bool:
        """True when the active deployment is another digest, and it answers: what was judged are answers in flight.

        Also when the judged digest has not answered since the switch to that deployment: it is history (F19).
        """
        counts = place_watch.feed.counts
        with self._office.database.reading() as connection:
            active = deployments.newest(connection, place_watch.place)
            if active is None or active.digest == digest:
                return False
            last_ns = counts.last_seen(digest)
            if judged and last_ns is not None:
                last_at = at.plus(last_ns - at.mono_ns)
                after_ns = deployments.since_switch_ns(connection, place_watch.place, last_at)
                if after_ns is not None and after_ns < 0:
                    return True
        answered_ns = counts.last_seen(active.digest)
        return answered_ns is not None and at.mono_ns - answered_ns < deployments.STRAGGLERS_S * NS_PER_S

    def _on_outage(self, place_watch: PlaceWatch, digest: Digest, judgement: Judgement, at: Instant) -> None:
        self._breach(place_watch, digest, (judgement,), at, incidents.DATA_PLANE_DOWN)
