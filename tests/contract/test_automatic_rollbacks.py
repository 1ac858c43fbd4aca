"""What an oscillating signal can cause: the real watch, rule, incidents, brakes and database under a clock of our own.

A run's work on a target is left out, it is other tests' matter: it takes its lock with the run's own first record and
ends with its own last two, five seconds later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rearguard.checkpoints.registry import encode_instant
from rearguard.config.templates import playbook_template
from rearguard.database import open_database, sql
from rearguard.errors import NotFoundError
from rearguard.evidence.log import read
from rearguard.model.evidence import Record
from rearguard.model.run import Run, RunState
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import Observation, RequestSeen, SourceHealth
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant, parse_rfc3339
from rearguard.officer import automation, incidents, rollbacks
from rearguard.officer.office import Office
from rearguard.officer.outages import Outages
from rearguard.recovery import records
from rearguard.recovery.brakes import held_back
from rearguard.recovery.context import read_run
from rearguard.rules.brakes import Brake, allowed_in
from rearguard.watch.feed import Feed
from rearguard.watch.watcher import Judged, PlaceWatch, breaches

PLACE = Place(service="fraud", env="prod")
START = Instant(wall_ns=parse_rfc3339("2026-11-23T12:00:00Z"), mono_ns=50_000 * NS_PER_S, boot_id="boot")
TICK_MS = 500
RUN_TAKES_S = 5
GOOD_FOR_S = 5
"""Seconds of good answers of each version before it goes bad."""
SETTINGS = """\
version: 1
channels: {{oncall: {{kind: file, path: messages.jsonl}}}}
services:
  {service}:
    environments:
      {env}:
        stateless: true
        target: {{adapter: oip, url: "http://127.0.0.1:9", model: fraud}}
        telemetry: {{adapter: jsonl, requests: requests.jsonl}}
        triggers: {{latency: off, compliance: off}}
        rule: {{window: 10 s, step: 10 s, for_windows: 2, min_samples: 10}}
        brakes: {brakes}
"""


class StageClock:
    """`ports.Clock` that stands still until it is moved."""

    def __init__(self) -> None:
        self.instant = START

    def now(self) -> Instant:
        return self.instant

    def sleep(self, seconds: float) -> None:
        self.instant = self.instant.plus(int(seconds * NS_PER_S))


class Ids:
    """`ports.IdSource` that counts."""

    def __init__(self) -> None:
        self.given = 0

    def run_id(self) -> str:
        self.given += 1
        return f"run_{self.given:04d}"


class Traffic:
    """`ports.TelemetrySource`: twenty requests a second, all failed once a version has served for `GOOD_FOR_S`."""

    def __init__(self) -> None:
        self.version = 1
        self.since_s = START.mono_ns // NS_PER_S
        self.next_s = self.since_s
        self.healed = False

    @property
    def digest(self) -> Digest:
        return Digest("sha256:" + f"{self.version:064x}")

    def switch(self, now: Instant) -> None:
        """Another version serves from the second of `now` on."""
        self.version += 1
        self.since_s = now.mono_ns // NS_PER_S

    def poll(self, now: Instant) -> Sequence[Observation]:
        seen: list[Observation] = []
        while self.next_s < now.mono_ns // NS_PER_S:
            at_ns = self.next_s * NS_PER_S
            failed = self.next_s - self.since_s >= GOOD_FOR_S and not self.healed
            for number in range(20):
                seen.append(
                    RequestSeen(
                        place=PLACE,
                        digest=self.digest,
                        at_mono_ns=at_ns + number * 50 * NS_PER_MS,
                        at_wall_ns=START.wall_ns + at_ns - START.mono_ns,
                        latency_ms=Decimal(5),
                        failed=failed,
                    )
                )
            self.next_s += 1
        return seen

    def health(self) -> SourceHealth:
        last = self.next_s * NS_PER_S - 50 * NS_PER_MS
        return SourceHealth(accepted=1, rejected=0, last_at_mono_ns=last, last_rejection="")

    def close(self) -> None:
        pass


class Stage:
    """One armed place whose every version goes bad."""

    def __init__(self, state: Path, brakes: str) -> None:
        text = SETTINGS.format(service=PLACE.service, env=PLACE.env, brakes=brakes)
        (state / "rearguard.yaml").write_text(text, encoding="utf-8")
        (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
        self.clock = StageClock()
        self.office = Office(
            state=state,
            settings_path=state / "rearguard.yaml",
            database=open_database(state),
            clock=self.clock,
            ids=Ids(),
        )
        self.settings = self.office.place(PLACE.service, PLACE.env)
        self.traffic = Traffic()
        self.watch = PlaceWatch(Feed(self.settings, self.traffic), START)
        self.started: list[str] = []
        self.ends: Callable[[Run], RunState] = lambda _run: RunState.SUCCEEDED
        self._due: list[tuple[Instant, str]] = []
        automation.set_armed(self.office, PLACE, armed=True, by="ops")

    def pass_s(self, seconds: int) -> None:
        """Let time pass as the officer's loop sees it."""
        for _ in range(seconds * 1000 // TICK_MS):
            self.clock.instant = self.clock.instant.plus(TICK_MS * NS_PER_MS)
            now = self.clock.now()
            while self._due and self._due[0][0].mono_ns <= now.mono_ns:
                self._end(self._due.pop(0)[1])
            for event in self.watch.tick(now):
                if isinstance(event, Judged) and breaches(event.judgements):
                    self._breach(event)

    def _breach(self, event: Judged) -> None:
        found = breaches(event.judgements)
        assert found[0].first_bad_mono_ns is not None
        breach = incidents.Breach(
            place=PLACE,
            digest=event.digest,
            judgement=found[0],
            also=found[1:],
            t0=event.at.plus(found[0].first_bad_mono_ns - event.at.mono_ns),
            t1=event.at,
            telemetry=(),
            p95_ms=None,
        )
        _, run_id = incidents.open_incident(self.office, breach)
        if run_id is not None:
            self.started.append(run_id)
            self._begin(run_id)

    def _begin(self, run_id: str) -> None:
        with self.office.database.transaction() as connection:
            found = read_run(connection, run_id)
            assert "failure" not in records.lock(self.office.recovery_context(), connection, found, {})
        self._due.append((self.clock.now().plus(RUN_TAKES_S * NS_PER_S), run_id))

    def _end(self, run_id: str) -> None:
        context = self.office.recovery_context()
        with self.office.database.transaction() as connection:
            found = read_run(connection, run_id)
            final = self.ends(found)
            failure = {"step": "window", "state": final.value, "reason": "not_restored", "message": ""}
            state: dict[str, Any] = {} if final is RunState.SUCCEEDED else {"failure": failure}
            state.update(records.finish(context, connection, found, state))
            records.close(context, connection, found, state)
        if final is RunState.SUCCEEDED:
            self.traffic.switch(self.clock.now())

    def force_breach(self) -> None:
        """Long enough for the rule to see one."""
        self.pass_s(GOOD_FOR_S + 21)

    def evidence(self, *kinds: str) -> list[Record]:
        with self.office.database.reading() as connection:
            return [r for r in read(connection) if r.kind in kinds]

    def messages(self) -> list[Any]:
        with self.office.database.reading() as connection:
            return list(connection.execute(sql("SELECT * FROM outbox ORDER BY id")))

    def reasons(self, kind: str) -> Counter[str]:
        return Counter(r.body["reason"] for r in self.evidence(kind))

    def held(self, requested_by: str = "auto") -> Brake | None:
        with self.office.database.reading() as connection:
            return held_back(self.settings, connection, self.clock.now(), requested_by=requested_by)

    def insert(self, run_id: str, *, by: str = "auto", state: str, ended: Instant | None) -> None:
        """A run of the past."""
        with self.office.database.transaction() as connection:
            incidents.insert_run(connection, run_id, PLACE, incident_id=None, from_digest=None, by=by, now=START)
            connection.execute(
                sql("UPDATE runs SET state = :state, ended_at = :at WHERE id = :id"),
                {"state": state, "at": encode_instant(ended) if ended else None, "id": run_id},
            )


SetStage = Callable[[str], Stage]


@pytest.fixture
def set_stage(tmp_path: Path) -> Iterator[SetStage]:
    stages: list[Stage] = []

    def build(brakes: str) -> Stage:
        stages.append(Stage(tmp_path, brakes))
        return stages[-1]

    yield build
    for stage in stages:
        stage.office.close()


# --- ten minutes of an oscillating signal -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("brakes", "expected"),
    [
        ("{cool_down: 30 min}", 1),
        ("{cool_down: 120 s, max_rollbacks: 3}", 3),
        # Each begins 120 s after the end of the one before, when the rule next looks, and takes 5 s:
        # at 20.5, 145.5, 270.5, 395.5 and 520.5 s.
        ("{cool_down: 120 s, max_rollbacks: 1000}", 5),
    ],
)
def test_an_oscillating_signal_causes_exactly_the_allowed_number_of_rollbacks(
    set_stage: SetStage, brakes: str, expected: int
) -> None:
    stage = set_stage(brakes)
    stage.pass_s(600)
    assert len(stage.started) == len(stage.evidence("rollback_started")) == expected
    assert expected <= allowed_in(600, stage.settings.brakes)


def test_each_rollback_that_is_not_begun_is_refused_and_told_once_for_each_reason(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 120 s, max_rollbacks: 3}")
    stage.pass_s(600)
    # The breaches after each of the three rollbacks wait for the cool-down; the last one meets the spent budget then.
    assert stage.reasons("rollback_refused") == {"cool_down": 3, "budget_spent": 1}
    pages = [m for m in stage.messages() if m.severity == "page" and ":run_" not in m.key]
    assert [m.key for m in pages if "cool_down" in m.key or "budget" in m.key] == [
        "R-2:cool_down",
        "R-3:cool_down",
        "R-4:cool_down",
        "R-4:budget_spent",
    ]


def test_a_breach_while_automation_is_paused_is_an_alert_only(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 0 s, max_rollbacks: 1000}")
    automation.pause(stage.office, service=None, env=None, by="ops", reason="audit")
    stage.pass_s(600)
    assert stage.started == []
    assert stage.reasons("rollback_withheld") == {"automation_paused": 1}
    (message,) = stage.messages()
    assert (message.severity, message.cause) == ("page", "R-1")
    assert "rearguard rollback run fraud --env prod --execute" in message.title


def test_what_was_paused_begins_once_automation_is_resumed(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    automation.pause(stage.office, service="fraud", env=None, by="ops", reason="audit")
    stage.force_breach()
    assert stage.started == []
    automation.resume(stage.office, service="fraud", env=None, by="ops")
    stage.pass_s(11)
    assert len(stage.started) == 1
    assert incidents.show(stage.office, "R-1").run_id == stage.started[0]


def test_what_has_healed_while_it_was_paused_is_left_alone(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    automation.pause(stage.office, service=None, env=None, by="ops", reason="audit")
    stage.force_breach()
    stage.traffic.healed = True
    stage.pass_s(20)
    automation.resume(stage.office, service=None, env=None, by="ops")
    stage.pass_s(60)
    assert stage.started == []


def test_a_rollback_begins_at_the_first_look_after_a_freeze(set_stage: SetStage) -> None:
    freeze = "{from: 2026-11-23T12:00:00Z, to: 2026-11-23T12:02:00Z, reason: audit}"
    stage = set_stage(f"{{freeze: [{freeze}]}}")
    stage.pass_s(119)
    assert stage.started == []
    (withheld,) = stage.evidence("rollback_withheld")
    assert (withheld.body["reason"], withheld.body["until_ts"]) == ("freeze_window", "2026-11-23T12:02:00.000Z")
    assert "until 2026-11-23T12:02:00Z" in stage.messages()[0].title
    stage.pass_s(11)
    assert len(stage.started) == 1


# --- another attempt at the same incident -----------------------------------------------------------------------------


def test_what_a_failed_rollback_did_not_mend_is_tried_again_after_the_cool_down(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 120 s}")
    stage.ends = lambda _run: RunState.FAILED
    stage.pass_s(140)
    assert len(stage.started) == 1  # it ended at 25.5 s
    stage.pass_s(20)
    assert len(stage.started) == 2
    assert incidents.show(stage.office, "R-1").run_id == stage.started[1]
    assert stage.reasons("rollback_refused") == {"cool_down": 1}


def test_a_refused_rollback_is_not_asked_for_again_at_every_look(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 120 s, max_rollbacks: 2}")
    stage.ends = lambda _run: RunState.REFUSED
    stage.pass_s(600)
    assert len(stage.started) == 2


def test_a_person_who_cancelled_a_rollback_is_not_overruled(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 0 s}")
    stage.ends = lambda _run: RunState.CANCELLED
    stage.pass_s(21)
    rollbacks.cancel(stage.office, stage.started[0], by="ops")
    stage.pass_s(300)
    assert len(stage.started) == 1


def test_a_rollback_that_a_pause_ended_begins_anew_after_the_resume(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    stage.ends = lambda _run: RunState.CANCELLED
    stage.pass_s(21)
    automation.pause(stage.office, service=None, env=None, by="ops", reason="audit")
    stage.pass_s(60)
    assert len(stage.started) == 1
    automation.resume(stage.office, service=None, env=None, by="ops")
    stage.pass_s(11)
    assert len(stage.started) == 2


def test_an_incident_that_a_person_rolled_back_in_vain_is_left_to_people(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 0 s}")
    automation.pause(stage.office, service=None, env=None, by="ops", reason="audit")
    stage.force_breach()
    stage.insert("run_byhand", by="ops", state="failed", ended=stage.clock.now())
    with stage.office.database.transaction() as connection:
        connection.execute(sql("UPDATE incidents SET run_id = 'run_byhand'"))
    automation.resume(stage.office, service=None, env=None, by="ops")
    stage.pass_s(60)
    assert stage.started == []


def test_nothing_begins_while_a_person_rolls_the_place_back(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    stage.insert("run_byhand", by="ops", state="running", ended=None)
    stage.force_breach()
    assert (stage.started, stage.evidence("rollback_withheld", "rollback_refused")) == ([], [])
    with stage.office.database.transaction() as connection:
        connection.execute(sql("UPDATE runs SET state = 'failed'"))
    stage.pass_s(11)
    assert len(stage.started) == 1


def test_an_outage_is_told_at_each_failed_probe_so_that_what_was_held_back_can_begin(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    stage.pass_s(3)
    stage.watch.silent_since = stage.clock.now()
    told: list[Digest] = []
    outages = Outages(
        stage.office, {PLACE: stage.watch}, lambda _name, _fields: None, lambda _watch, digest, *_: told.append(digest)
    )
    for _ in range(5):  # the third failed probe in a row makes it a breach
        outages.look()
        stage.clock.sleep(6)
    assert told == [stage.traffic.digest] * 3


class Faulty:
    """A target of somebody's, with a fault in it."""

    def active(self) -> Digest | None:
        """Fail as no target may."""
        raise IndexError("list index out of range")

    def close(self) -> None:
        """Nothing is held open."""


def test_a_fault_at_one_place_keeps_no_other_outage_from_being_told(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    stage.pass_s(3)
    stage.watch.silent_since = stage.clock.now()
    faulty = Place(service="faulty", env="prod")
    stage.office._targets[faulty] = Faulty()
    told: list[PlaceWatch] = []
    elsewhere = copy(stage.watch)
    elsewhere.digest = Digest("sha256:" + "0" * 64)
    outages = Outages(
        stage.office,
        {faulty: elsewhere, PLACE: stage.watch},
        lambda _name, _fields: None,
        lambda watch, *_: told.append(watch),
    )
    for _ in range(3):
        with pytest.raises(IndexError):
            outages.look()
        stage.clock.sleep(6)
    assert told == [stage.watch]


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brakes", ["{}", "{cool_down: 0 s, max_rollbacks: 1}"])
@pytest.mark.parametrize(
    ("state", "counts"),
    [("succeeded", True), ("failed", True), ("inconclusive", True), ("refused", False), ("cancelled", False),
     ("running", False)],
)  # fmt: skip
def test_an_automatic_rollback_that_acted_counts(set_stage: SetStage, brakes: str, state: str, counts: bool) -> None:
    stage = set_stage(brakes)
    stage.insert("run_a", state=state, ended=START)
    assert (stage.held() is not None) is counts


def test_a_rollback_by_hand_does_not_count(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    stage.insert("run_a", by="ops", state="succeeded", ended=START)
    assert stage.held() is None


def test_a_cool_down_counts_from_the_end_and_not_from_the_request(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 100 s}")
    stage.insert("run_a", state="succeeded", ended=START.plus(60 * NS_PER_S))
    stage.clock.instant = START.plus(159 * NS_PER_S)
    assert stage.held() is Brake.COOL_DOWN
    stage.clock.instant = START.plus(160 * NS_PER_S)
    assert stage.held() is None


def test_a_run_of_a_release_that_noted_no_end_is_dated_by_its_request(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 100 s}")
    stage.insert("run_a", state="succeeded", ended=None)
    stage.clock.instant = START.plus(99 * NS_PER_S)
    assert stage.held() is Brake.COOL_DOWN


def test_a_person_is_held_back_by_no_brake(set_stage: SetStage) -> None:
    stage = set_stage("{freeze: [{from: 2026-11-23T00:00:00Z, to: 2026-11-24T00:00:00Z, reason: x}]}")
    automation.pause(stage.office, service=None, env=None, by="ops", reason="audit")
    stage.insert("run_a", state="succeeded", ended=START)
    automation.set_armed(stage.office, PLACE, armed=False, by="ops")
    assert stage.held() is Brake.OBSERVE
    assert stage.held("ops") is None


# --- the kill switch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "env", "covers"),
    [(None, None, True), ("fraud", None, True), (None, "prod", True), ("fraud", "prod", True)],
)
def test_a_pause_covers_what_it_names(set_stage: SetStage, service: str | None, env: str | None, covers: bool) -> None:
    stage = set_stage("{}")
    automation.pause(stage.office, service=service, env=env, by="ops", reason="audit")
    assert (stage.held() is Brake.PAUSED) is covers


@pytest.mark.parametrize(("service", "env"), [("other", "*"), ("*", "dev"), ("fraud", "dev"), ("other", "prod")])
def test_a_pause_of_another_place_does_not_hold_this_one(set_stage: SetStage, service: str, env: str) -> None:
    stage = set_stage("{}")
    with stage.office.database.transaction() as connection:
        connection.execute(
            sql("INSERT INTO pauses (service, env, paused_by, reason, since) VALUES (:s, :e, 'ops', 'x', :at)"),
            {"s": service, "e": env, "at": encode_instant(START)},
        )
    assert stage.held() is None


def test_a_narrower_resume_leaves_the_wider_pause(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    automation.pause(stage.office, service=None, env=None, by="ops", reason="audit")
    found = automation.resume(stage.office, service="fraud", env="prod", by="ops")
    assert (found.changed, [(p.service, p.env) for p in found.paused]) == (False, [("*", "*")])
    assert stage.held() is Brake.PAUSED


def test_each_toggle_is_recorded_once(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    for _ in range(2):
        automation.pause(stage.office, service="fraud", env="prod", by="ops", reason="audit")
    for _ in range(2):
        automation.resume(stage.office, service="fraud", env="prod", by="eve", reason="done")
    toggles = stage.evidence("automation_paused", "automation_resumed")
    assert [(r.kind, r.service, r.env, r.body) for r in toggles] == [
        ("automation_paused", "fraud", "prod", {"by": "ops", "reason": "audit", "service": "fraud", "env": "prod"}),
        ("automation_resumed", "fraud", "prod", {"by": "eve", "reason": "done", "service": "fraud", "env": "prod"}),
    ]


def test_a_pause_asks_automatic_runs_to_end_and_leaves_those_by_hand(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    stage.insert("run_auto", state="running", ended=None)
    stage.insert("run_hand", by="ops", state="running", ended=None)
    automation.pause(stage.office, service="fraud", env=None, by="ops", reason="audit")
    with stage.office.database.reading() as connection:
        asked = {r.id: r.cancel_requested for r in connection.execute(sql("SELECT * FROM runs"))}
    assert asked == {"run_auto": 1, "run_hand": 0}


@pytest.mark.parametrize(
    ("service", "env", "code"),
    [("fruad", None, "service_unknown"), ("fraud", "dev", "env_unknown"), (None, "dev", "env_unknown")],
)
def test_a_misspelt_place_is_told_and_pauses_nothing(
    set_stage: SetStage, service: str | None, env: str | None, code: str
) -> None:
    stage = set_stage("{}")
    for switch in (automation.pause, automation.resume):
        with pytest.raises(NotFoundError) as caught:
            switch(stage.office, service=service, env=env, by="ops", reason="audit")
        assert caught.value.code == code
    assert stage.held() is None


def test_everywhere_can_be_paused_while_the_settings_are_broken(set_stage: SetStage) -> None:
    stage = set_stage("{}")
    stage.office.settings_path.write_text("nonsense: [", encoding="utf-8")
    broken = Office(
        state=stage.office.state, settings_path=stage.office.settings_path, database=stage.office.database, ids=Ids()
    )
    assert automation.pause(broken, service=None, env=None, by="ops", reason="audit").changed
    assert stage.held() is Brake.PAUSED


def test_the_standing_of_a_place_says_what_is_left(set_stage: SetStage) -> None:
    stage = set_stage("{cool_down: 100 s, max_rollbacks: 3}")
    stage.insert("run_a", state="succeeded", ended=START)
    stage.clock.instant = replace(START.plus(int(60.5 * NS_PER_S)), wall_ns=START.wall_ns)
    (found,) = automation.standing(stage.office)
    assert (found.automation, found.held_by, found.cool_down_left_s, found.budget_left) == ("armed", "cool_down", 40, 2)
    assert found.until is not None
    assert found.until.mono_ns == START.mono_ns + 100 * NS_PER_S
