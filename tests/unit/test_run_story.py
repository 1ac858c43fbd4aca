"""A run's steps as people read them, put together from the engine's notes, the attempts and the records."""

from __future__ import annotations

from typing import Any

from rearguard.model.evidence import Record
from rearguard.model.time import NS_PER_MS, Instant
from rearguard.officer.story import Attempts, StepRow, step_rows

RUN = "run_0m7sg412f2pdzqcb"
DAY_MS = 1_700_000_000_000
"""2023-11-14T22:13:20Z."""


def note(name: str, started_ms: int, ended_ms: int, error: str | None = None) -> dict[str, Any]:
    return {
        "function_name": name,
        "started_at_epoch_ms": DAY_MS + started_ms,
        "completed_at_epoch_ms": DAY_MS + ended_ms,
        "error": error,
    }


def tried(tries: int, first_ms: int, last_error: str = "") -> Attempts:
    first = Instant(wall_ns=(DAY_MS + first_ms) * NS_PER_MS, mono_ns=0, boot_id="b")
    return Attempts(tries=tries, first_at=first, last_at=first, last_error=last_error)


def record(kind: str, **body: Any) -> Record:
    return Record(
        id=1,
        ts="2023-11-14T22:13:20Z",
        monotonic_ns="0",
        boot_id="b",
        run_id=RUN,
        service="fraud",
        env="prod",
        kind=kind,
        body=body,
        prev="",
        hash="",
    )


def only(rows: tuple[StepRow, ...]) -> StepRow:
    (row,) = rows
    return row


def test_a_step_takes_from_its_first_attempt_to_the_end_of_its_record() -> None:
    notes = [note("activate.effect", 5_000, 5_400), note("activate.record", 5_410, 5_430)]
    row = only(step_rows(RUN, notes, {"activate": tried(2, 1_000)}, (), {}))
    assert (row.started_at, row.took_ms, row.attempts) == ("2023-11-14T22:13:21.000Z", 4_430, 2)


def test_a_step_with_its_record_is_done() -> None:
    notes = [note("lock.effect", 0, 1), note("lock.record", 1, 3)]
    row = only(step_rows(RUN, notes, {}, (), {"lock": "ops_commander"}))
    assert (row.state, row.owner, row.attempts, row.error) == ("done", "ops_commander", None, "")


def test_a_step_of_the_second_rung_has_its_own_key_and_the_owner_of_its_name() -> None:
    notes = [note("activate#2.effect", 0, 1), note("activate#2.record", 1, 3)]
    row = only(step_rows(RUN, notes, {}, (), {"activate": "infra_guardian"}))
    assert (row.name, row.key, row.owner) == ("activate#2", f"{RUN}:activate#2", "infra_guardian")


def test_a_step_with_attempts_and_without_a_note_is_under_way() -> None:
    row = only(step_rows(RUN, [], {"verify": tried(3, 0, "target_down: no answer")}, (), {}))
    assert (row.state, row.took_ms, row.attempts, row.error) == ("under_way", None, 3, "target_down: no answer")


def test_the_step_that_a_run_failed_at_has_the_reason() -> None:
    finished = record("rollback_finished", failed_step="window", reason="too_few_samples", message="none", rungs=1)
    notes = [note("window.effect", 0, 80), note("record.effect", 81, 82), note("record.record", 82, 90)]
    rows = step_rows(RUN, notes, {"window": tried(1, 0)}, (finished,), {})
    assert [(r.name, r.state, r.took_ms, r.error) for r in rows] == [
        ("window", "failed", 80, "too_few_samples: none"),
        ("record", "done", 9, ""),
    ]


def test_each_lost_rung_has_its_own_reason() -> None:
    lost = record("rung_lost", rung=1, step="probe", reason="golden_differs", message="request 1")
    finished = record("rollback_finished", failed_step="window", reason="slo_still_breached", message="", rungs=2)
    notes = [note("probe.effect", 0, 1), note("probe#2.effect", 2, 3), note("probe#2.record", 3, 4)]
    notes.append(note("window#2.effect", 4, 5))
    rows = step_rows(RUN, notes, {}, (lost, finished), {})
    assert [(r.name, r.state, r.error) for r in rows] == [
        ("probe", "failed", "golden_differs: request 1"),
        ("probe#2", "done", ""),
        ("window#2", "failed", "slo_still_breached: "),
    ]


def test_an_error_that_a_later_attempt_overcame_is_not_shown() -> None:
    notes = [note("activate.effect", 0, 1), note("activate.record", 1, 2)]
    row = only(step_rows(RUN, notes, {"activate": tried(2, 0, "target_down: no answer")}, (), {}))
    assert (row.state, row.error) == ("done", "")


def test_steps_stand_in_the_order_in_which_they_were_begun() -> None:
    notes = [note("lock.effect", 0, 1), note("lock.record", 1, 2), note("next#2.record", 3, 4)]
    rows = step_rows(RUN, notes, {"verify#2": tried(1, 9), "activate": tried(1, 5)}, (), {})
    assert [row.name for row in rows] == ["lock", "next#2", "activate", "verify#2"]
