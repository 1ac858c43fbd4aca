"""What a watch saves in the database, and what another process finds there: counts, rules, place in the log, labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest

from rearguard.adapters.telemetry.jsonl import build
from rearguard.database import Database, open_database, sql
from rearguard.errors import DependencyError, IntegrityError
from rearguard.model.breach import LiteralPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.settings import AdapterSettings, PlaceSettings, RecoveryPolicy, TriggerSettings
from rearguard.model.telemetry import SecondCounts, SourceHealth
from rearguard.model.time import NS_PER_S, Instant, rfc3339_ms
from rearguard.rules.breach.literal import RuleState, Streak
from rearguard.watch import memory
from rearguard.watch.counts import Changes
from rearguard.watch.feed import Feed
from rearguard.watch.memory import Snapshot, WatchState
from rearguard.watch.watcher import DigestAnswers, PlaceWatch

PLACE = Place(service="fraud", env="prod")
A, B = Digest("sha256:" + "aa" * 32), Digest("sha256:" + "bb" * 32)
BOOT, NEXT_BOOT = "0c1c6f4e-6a3b-4d58-9f3e-2f0a8d1b7c55", "7d1f0e2a-53bb-4b0e-8c65-111122223333"
WALL_S = 1_795_425_243
NOW = Instant(wall_ns=WALL_S * NS_PER_S, mono_ns=50_000 * NS_PER_S, boot_id=BOOT)
SETTINGS = PlaceSettings(
    place=PLACE,
    stateless=True,
    target=AdapterSettings(adapter="command", options={}),
    telemetry=AdapterSettings(adapter="jsonl", options={}),
    triggers=TriggerSettings(latency_target_p95_ms=Decimal(100), compliance_baseline=Decimal(98)),
    rule=LiteralPolicy(window_s=60, step_s=60, for_windows=2, min_samples=3),
    baseline_s=3600,
    no_data_after_s=30,
    recovery=RecoveryPolicy(),
)
RULE = RuleState(
    digest=A,
    start_s=49_000,
    last_end_s=49_960,
    latency=Streak(windows=3, first_bad_mono_ns=49_790_500_000_000),
    errors=Streak(windows=1, first_bad_mono_ns=49_901_250_000_000),
)


def later(seconds: int) -> Instant:
    return NOW.plus(seconds * NS_PER_S)


def counted(second: int, requests: int = 7) -> SecondCounts:
    return SecondCounts(
        second=second,
        requests=requests,
        failures=2,
        timed=6,
        over_latency=1,
        first_failure_ns=second * NS_PER_S + 250_000_000,
        first_over_latency_ns=second * NS_PER_S + 5,
        scores=3,
        score_sum=Decimal("291.0000000000000000000000000000001"),
        first_low_score_ns=second * NS_PER_S + 999_999_999,
    )


@dataclass
class Held:
    """A watch that holds what a test says, in place of what it judged."""

    changes: Changes
    at: Instant = NOW
    rules: tuple[RuleState, ...] = (RULE,)
    settings: PlaceSettings = SETTINGS
    given_back: Changes | None = None

    def snapshot(self, now: Instant) -> Snapshot:
        state = WatchState(
            at=now,
            digest=A,
            newest_request=(A, now.mono_ns - 5),
            rules=self.rules,
            silent_since=now.plus(-9 * NS_PER_S),
            position={"requests": {"path": "requests.jsonl", "files": []}},
            health=SourceHealth(accepted=9, rejected=2, last_at_mono_ns=5, last_rejection="requests: not_json", late=4),
        )
        return Snapshot(settings=self.settings, state=state, changes=self.changes)

    def not_saved(self, snapshot: Snapshot) -> None:
        self.given_back = snapshot.changes


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path / "state")
    yield opened
    opened.close()


def save(database: Database, *seconds: tuple[Digest, int], at: Instant = NOW, requests: int = 7) -> None:
    memory.save(database, [Held({key: counted(key[1], requests) for key in seconds})], at)


def labels(database: Database) -> list[tuple[int, int]]:
    """Monotonic and wall second of every row."""
    with database.reading() as connection:
        rows = connection.execute(sql("SELECT mono_s, wall_s FROM counts ORDER BY mono_s, wall_s")).all()
    return [(row.mono_s, row.wall_s) for row in rows]


def test_nothing_is_remembered_of_a_place_that_was_never_saved(database: Database) -> None:
    assert memory.load(database, SETTINGS, NOW) is None


def test_what_was_saved_comes_back_as_it_was(database: Database) -> None:
    save(database, (A, 49_990), (B, 49_990), (A, 49_999))
    found = memory.load(database, SETTINGS, later(60))
    assert found is not None
    assert found.counts == {(A, 49_990): counted(49_990), (B, 49_990): counted(49_990), (A, 49_999): counted(49_999)}
    assert found.counted_to.mono_ns == 50_000 * NS_PER_S
    assert found.state == Held({}).snapshot(NOW).state


def test_a_second_that_changed_replaces_what_was_saved_of_it(database: Database) -> None:
    save(database, (A, 49_999), requests=3)
    save(database, (A, 49_999), requests=5, at=later(5))
    found = memory.load(database, SETTINGS, later(6))
    assert found is not None
    assert found.counts == {(A, 49_999): counted(49_999, requests=5)}


def test_only_the_asked_span_before_the_save_is_loaded(database: Database) -> None:
    save(database, (A, 49_000), (A, 49_899), (A, 49_900), (A, 49_999))
    found = memory.load(database, SETTINGS, NOW, keep_s=100)
    assert found is not None
    assert sorted(second for _, second in found.counts) == [49_900, 49_999]


def test_rows_older_than_24_h_are_deleted_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "DELETE_BATCH", 2)
    save(database, *((A, 49_000 + n) for n in range(5)), (B, 49_999))
    # 49,004 is 86,400 s old at 135,404: not older than that yet.
    then = later(135_404 - 50_000)
    memory.save(database, [Held({})], then)
    assert [mono for mono, _ in labels(database)] == [49_002, 49_003, 49_004, 49_999]
    memory.save(database, [Held({})], then)
    assert [mono for mono, _ in labels(database)] == [49_004, 49_999]


def test_a_failed_save_gives_the_changes_back_and_writes_nothing(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            sql("CREATE TRIGGER full BEFORE INSERT ON watches BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        )
    held = Held({(A, 49_999): counted(49_999)})
    with pytest.raises(DependencyError):
        memory.save(database, [held], NOW)
    assert held.given_back == held.changes
    assert labels(database) == []


def test_after_a_reboot_counts_are_placed_by_the_wall_clock_and_streaks_are_dropped(database: Database) -> None:
    save(database, (A, 49_999))
    # 100 s later by the wall clock, the new boot is 40 s old: second 49,999 was 101 s ago, at -61.
    booted = Instant(wall_ns=(WALL_S + 100) * NS_PER_S, mono_ns=40 * NS_PER_S, boot_id=NEXT_BOOT)
    found = memory.load(database, SETTINGS, booted)
    assert found is not None
    expected = replace(
        counted(-61), first_failure_ns=-61 * NS_PER_S + 250_000_000, first_over_latency_ns=-61 * NS_PER_S + 5
    )
    assert found.counts == {(A, -61): expected}
    # 49,000 was 1,000 s before the save, which was 100 s before second 40.
    assert found.state.rules == (RuleState(digest=A, start_s=-1060, last_end_s=-100),)


def test_counts_of_two_boots_stand_beside_each_other(database: Database) -> None:
    save(database, (A, 49_999))
    booted = Instant(wall_ns=(WALL_S + 100) * NS_PER_S, mono_ns=40 * NS_PER_S, boot_id=NEXT_BOOT)
    save(database, (A, 39), at=booted)
    assert sorted(wall for _, wall in labels(database)) == [WALL_S - 1, WALL_S + 99]


def test_a_clock_put_back_relabels_what_this_boot_saved(database: Database) -> None:
    save(database, (A, 49_998), (A, 49_999))
    stepped = Instant(wall_ns=(WALL_S + 10 - 3600) * NS_PER_S, mono_ns=50_010 * NS_PER_S, boot_id=BOOT)
    save(database, (A, 50_009), at=stepped)
    assert labels(database) == [(49_998, WALL_S - 3602), (49_999, WALL_S - 3601), (50_009, WALL_S - 3591)]


def test_a_clock_put_forward_keeps_old_labels_also_of_a_second_saved_again(database: Database) -> None:
    save(database, (A, 49_999))
    stepped = Instant(wall_ns=(WALL_S + 10 + 3600) * NS_PER_S, mono_ns=50_010 * NS_PER_S, boot_id=BOOT)
    save(database, (A, 49_999), (A, 50_009), at=stepped)
    assert labels(database) == [(49_999, WALL_S - 1), (50_009, WALL_S + 3609)]


def test_a_step_of_the_wall_clock_leaves_the_counts_of_this_boot_where_they_were(database: Database) -> None:
    save(database, (A, 49_999))
    for hours in (3, -3):
        stepped = Instant(wall_ns=(WALL_S + hours * 3600) * NS_PER_S, mono_ns=50_010 * NS_PER_S, boot_id=BOOT)
        save(database, (A, 50_009), at=stepped)
        found = memory.load(database, SETTINGS, stepped)
        assert found is not None
        assert sorted(second for _, second in found.counts) == [49_999, 50_009]


def test_with_another_rule_the_watch_begins_anew_where_it_was(database: Database) -> None:
    save(database, (A, 49_999))
    changed = replace(SETTINGS, rule=replace(SETTINGS.rule, for_windows=1))
    found = memory.load(database, changed, later(60))
    assert found is not None
    assert found.state.rules == (RuleState(digest=A, start_s=49_960, last_end_s=49_960),)


def test_a_watch_saved_by_a_newer_release_is_refused(database: Database) -> None:
    save(database, (A, 49_999))
    with database.transaction() as connection:
        connection.execute(sql("UPDATE watches SET body = json_set(body, '$.version', 2)"))
    with pytest.raises(IntegrityError) as refused:
        memory.load(database, SETTINGS, NOW)
    assert refused.value.code == "watch_unreadable"


# A real log, from here on.


@dataclass
class World:
    """A request log and the state directory."""

    database: Database
    log: Path

    def write(self, *at_s: float, digest: Digest = A, status: int = 200, boot_id: str = BOOT) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            for at in at_s:
                mono_ns = round(at * NS_PER_S)
                line = {
                    "ts": rfc3339_ms(NOW.wall_ns - NOW.mono_ns + mono_ns),
                    "mono_ns": mono_ns,
                    "boot_id": boot_id,
                    "service": "fraud",
                    "env": "prod",
                    "digest": digest,
                    "version": "7",
                    "status": status,
                    "latency_ms": 10,
                    "id": "",
                    "probe": False,
                }
                file.write(json.dumps(line) + "\n")

    def start(self, now: Instant) -> PlaceWatch:
        """As an officer does: what was saved, and then the log."""
        remembered = memory.load(self.database, SETTINGS, now)
        source = build(PLACE, {"requests": str(self.log)}, now.plus(-3600 * NS_PER_S))
        return PlaceWatch(Feed(SETTINGS, source, remembered), now)

    def requests(self, watch: PlaceWatch, digest: Digest = A) -> dict[int, int]:
        return {s.second: s.requests for s in watch.feed.counts.seconds(digest, 0, 10**6)}


@pytest.fixture
def world(tmp_path: Path, database: Database) -> World:
    return World(database, tmp_path / "requests.jsonl")


def test_what_came_after_the_save_is_read_once_and_what_came_before_is_not_read_again(world: World) -> None:
    world.write(49_998.1, 49_999.2)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.write(49_999.9, 50_000.5)  # also a line of the very second that was saved in part
    first.tick(later(2))  # counted, and then the process is killed
    second = world.start(later(3))
    second.tick(later(3))
    assert world.requests(second) == {49_998: 1, 49_999: 2, 50_000: 1}


def test_a_line_that_comes_late_after_a_restart_counts_into_its_own_second(world: World) -> None:
    world.write(49_998.1, 49_999.2)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    second = world.start(later(1))
    second.tick(later(1))
    world.write(49_998.5)
    second.tick(later(2))
    assert world.requests(second) == {49_998: 2, 49_999: 1}
    assert second.feed.health().late == 0


def test_a_log_renamed_while_nobody_watched_is_read_to_its_end_and_so_is_the_new_one(world: World) -> None:
    world.write(49_998.1)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.write(49_998.2)
    world.log.rename(world.log.with_name("requests.jsonl.1"))
    world.write(49_998.3, 50_001.0)
    second = world.start(later(3))
    second.tick(later(3))
    assert world.requests(second) == {49_998: 3, 50_001: 1}


def test_a_log_that_is_gone_costs_nothing_that_was_saved(world: World) -> None:
    world.write(49_998.1, 49_999.2)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.log.unlink()
    second = world.start(later(3))
    second.tick(later(3))
    assert world.requests(second) == {49_998: 1, 49_999: 1}


def test_a_copy_in_place_of_the_log_counts_nothing_twice_and_says_what_it_left_out(world: World) -> None:
    world.write(49_998.1, 49_999.2)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    copied = world.log.read_bytes()
    world.log.rename(world.log.parent.parent / "elsewhere.jsonl")
    world.log.write_bytes(copied)
    world.write(50_001.0)
    second = world.start(later(3))
    second.tick(later(3))
    assert world.requests(second) == {49_998: 1, 49_999: 1, 50_001: 1}
    assert second.feed.health().late == 2


def test_a_log_that_was_cut_while_nobody_watched_is_read_from_its_start(world: World) -> None:
    world.write(49_998.1, 49_999.2)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.log.write_bytes(b"")
    world.write(50_001.0)
    second = world.start(later(3))
    second.tick(later(3))
    assert world.requests(second) == {49_998: 1, 49_999: 1, 50_001: 1}


def test_a_log_that_was_cut_and_has_outgrown_our_place_is_read_from_its_start(world: World) -> None:
    world.write(49_998.1, 49_999.2)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.log.write_bytes(b"")
    world.write(50_001.0, 50_001.1, 50_001.2)
    second = world.start(later(3))
    second.tick(later(3))
    assert world.requests(second) == {49_998: 1, 49_999: 1, 50_001: 3}


def test_a_log_that_did_not_exist_yet_is_new_when_it_comes(world: World) -> None:
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.write(49_990.0)
    second = world.start(later(3))
    second.tick(later(3))
    assert world.requests(second) == {49_990: 1}


def test_an_officer_that_was_away_for_hours_saves_what_was_logged_meanwhile(world: World) -> None:
    world.write(49_998.1)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.write(50_100.0, 53_000.0, 60_000.0)  # 60,000 - 3,900 is beyond 53,000: no longer in memory
    back = later(10_001)
    second = world.start(back)
    second.tick(back)
    memory.save(world.database, [second], back)
    assert [mono for mono, _ in labels(world.database)] == [49_998, 50_100, 53_000, 60_000]


def test_more_than_one_poll_of_backlog_is_read_before_the_first_window_is_judged(world: World) -> None:
    world.write(49_900.0)
    first = world.start(later(-60))
    first.tick(later(-60))
    memory.save(world.database, [first], later(-60))
    world.write(*(49_941 + n / 2000 for n in range(100_001)))  # two polls hold 100,000 lines
    second = world.start(later(5))
    second.tick(later(5))
    assert sum(world.requests(second).values()) == 100_002


def test_the_digest_that_answered_before_is_known_after_a_restart(world: World) -> None:
    world.write(49_998.1)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.write(50_001.0, digest=B)
    events = world.start(later(3)).tick(later(3))
    assert [(e.digest, e.before) for e in events if isinstance(e, DigestAnswers)] == [(B, A)]


def test_a_silence_that_was_told_is_not_told_again_by_the_next_watch(world: World) -> None:
    world.write(49_900.0)
    first = world.start(NOW)
    assert [type(e).__name__ for e in first.tick(NOW)].count("Silent") == 1
    memory.save(world.database, [first], NOW)
    second = world.start(later(1))
    assert [type(e).__name__ for e in second.tick(later(1))].count("Silent") == 0
    world.write(50_001.0)
    assert [type(e).__name__ for e in second.tick(later(2))].count("Heard") == 1


def test_p95_of_seconds_from_before_the_restart_is_unknown_and_not_guessed(world: World) -> None:
    world.write(49_998.1)
    first = world.start(NOW)
    first.tick(NOW)
    memory.save(world.database, [first], NOW)
    world.write(49_998.5, 50_001.0)
    second = world.start(later(3))
    second.tick(later(3))
    assert second.feed.counts.p95_ms(A, 49_998, 50_002) is None
    assert second.feed.counts.p95_ms(A, 50_000, 50_002) == 10
