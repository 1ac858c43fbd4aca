"""A law of restarts: whenever a watch is stopped or killed, the one after it judges as if there had been no break."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rearguard.adapters.telemetry.jsonl import build
from rearguard.database import Database, open_database
from rearguard.model.breach import Judgement, LiteralPolicy
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.settings import AdapterSettings, PlaceSettings, RecoveryPolicy, TriggerSettings
from rearguard.model.time import NS_PER_S, Instant, rfc3339_ms
from rearguard.watch import memory
from rearguard.watch.feed import Feed
from rearguard.watch.watcher import Judged, PlaceWatch

DIGEST = Digest("sha256:" + "aa" * 32)
START_S, LENGTH_S = 50_000, 24
START = Instant(wall_ns=1_795_425_243 * NS_PER_S, mono_ns=START_S * NS_PER_S, boot_id="boot")
SETTINGS = PlaceSettings(
    place=Place(service="fraud", env="prod"),
    stateless=True,
    target=AdapterSettings(adapter="command", options={}),
    telemetry=AdapterSettings(adapter="jsonl", options={}),
    triggers=TriggerSettings(compliance_drop_points=None),
    rule=LiteralPolicy(),
    baseline_s=3600,
    no_data_after_s=3600,
    recovery=RecoveryPolicy(),
)


@dataclass(frozen=True)
class Second:
    """What is logged in a second, and what happens to the watch at its end."""

    good: int
    failed: int
    late: int
    """Failed requests that are logged now and were answered two seconds ago, when their window may be judged already."""
    then: str
    """`go on`; `save`; `kill`: nothing is saved; `stop`: it saves and ends; `rotate`: the log is renamed."""
    away_s: int
    """After a kill or a stop nobody watches for so long."""


SECONDS = st.builds(
    Second,
    good=st.integers(0, 3),
    failed=st.integers(0, 2),
    late=st.sampled_from([0, 0, 0, 1]),
    then=st.sampled_from(["go on", "go on", "save", "kill", "stop", "rotate"]),
    away_s=st.integers(0, 4),
)
POLICIES = st.builds(
    LiteralPolicy,
    window_s=st.integers(1, 4),
    step_s=st.integers(1, 4),
    for_windows=st.integers(1, 3),
    min_samples=st.integers(0, 3),
)


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder:
        opened = open_database(Path(folder) / "state")
        yield opened
        opened.close()


@dataclass
class Story:
    """One log, and the watches over it."""

    database: Database
    settings: PlaceSettings
    log: Path
    told: list[Judgement] = field(default_factory=list)
    watch: PlaceWatch | None = None
    rotated: int = 0
    rotated_unsaved: bool = False

    def write(self, at_s: float, status: int) -> None:
        mono_ns = round(at_s * NS_PER_S)
        line = {
            "ts": rfc3339_ms(START.wall_ns - START.mono_ns + mono_ns),
            "mono_ns": mono_ns,
            "boot_id": START.boot_id,
            "service": self.settings.place.service,
            "env": self.settings.place.env,
            "digest": DIGEST,
            "version": "7",
            "status": status,
            "latency_ms": 10,
            "id": "",
            "probe": False,
        }
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def look(self, now: Instant) -> None:
        if self.watch is None:
            remembered = memory.load(self.database, self.settings, now)
            source = build(self.settings.place, {"requests": str(self.log)}, now.plus(-3600 * NS_PER_S))
            self.watch = PlaceWatch(Feed(self.settings, source, remembered), now)
        for event in self.watch.tick(now):
            if isinstance(event, Judged):
                self.told.extend(event.judgements)
        self.watch.settle()

    def save(self, now: Instant) -> None:
        if self.watch is not None:
            memory.save(self.database, [self.watch], now)
            self.rotated_unsaved = False

    def end(self) -> None:
        if self.watch is not None:
            self.watch.feed.close()
        self.watch = None

    def rotate(self) -> None:
        if self.rotated_unsaved:
            return  # two rotations between two saves: docs/explanation/limits.md
        self.rotated_unsaved = True
        self.rotated += 1
        os.rename(self.log, f"{self.log}.{self.rotated}")
        self.log.touch()


def tell(story: Story, seconds: list[Second], *, breaks: bool) -> None:
    """Log the seconds and look ten times in each, as far as somebody watches; at the end somebody does."""
    story.log.touch()
    story.write(START_S + 0.01, 200)
    story.look(START.plus(NS_PER_S // 10))
    story.save(START.plus(NS_PER_S // 10))
    away_s = 0
    for number, second in enumerate(seconds):
        at_s = START_S + number
        for i in range(second.good):
            story.write(at_s + 0.1 + i / 10, 200)
        for i in range(second.failed):
            story.write(at_s + 0.15 + i / 10, 500)
        for _ in range(second.late if number > 2 else 0):
            story.write(at_s - 1.5, 500)
        now = START.plus(number * NS_PER_S + 900_000_000)
        away_s = max(0, away_s - 1)
        if away_s and breaks:
            continue
        story.look(START.plus(number * NS_PER_S + 500_000_000))
        story.look(now)
        if not breaks:
            continue
        match second.then:
            case "save":
                story.save(now)
            case "stop":
                story.save(now)
                story.end()
                away_s = second.away_s
            case "kill":
                story.end()
                away_s = second.away_s
            case "rotate":
                story.rotate()
    story.look(START.plus((len(seconds) + 8) * NS_PER_S))


def begun(told: list[Judgement]) -> dict[tuple[str, int | None], int]:
    """Of each breach, by trigger and t0: the end of the first window that told of it."""
    found: dict[tuple[str, int | None], int] = {}
    for judgement in told:
        if judgement.outcome is Outcome.FAIL:
            key = (judgement.trigger.value, judgement.first_bad_mono_ns)
            found[key] = min(found.get(key, judgement.window_end_s), judgement.window_end_s)
    return found


_told = Counter[str]()


@settings(max_examples=50)
@given(st.lists(SECONDS, min_size=6, max_size=LENGTH_S), POLICIES, st.booleans())
def test_the_watch_after_a_break_judges_as_if_there_had_been_none(
    database: Database, seconds: list[Second], policy: LiteralPolicy, late: bool
) -> None:
    # A line that is late by more than its window's grace counts, or not, by when it is read: only without breaks is that
    # the same instant. So the law is of lines that are in time, and with late ones of the counts alone.
    if not late:
        seconds = [replace(second, late=0) for second in seconds]
    _told["examples"] += 1
    stories = []
    with tempfile.TemporaryDirectory() as folder:
        for breaks in (False, True):
            place = Place(service=f"s{_told['examples']}", env="broken" if breaks else "whole")
            story = Story(database, replace(SETTINGS, place=place, rule=policy), Path(folder) / f"{breaks}.jsonl")
            tell(story, seconds, breaks=breaks)
            stories.append(story)
        whole, broken = stories
        assert whole.watch is not None
        assert broken.watch is not None
        counted = [s.watch.feed.counts.seconds(DIGEST, 0, 10**6) for s in stories if s.watch is not None]
        assert counted[0] == counted[1]
        if not late:
            assert begun(broken.told).keys() == begun(whole.told).keys()
            last = [s.watch.snapshot(START).state.rules for s in stories if s.watch is not None]
            assert last[0] == last[1]
        whole.end()
        broken.end()


@settings(max_examples=25)
@given(st.lists(SECONDS, min_size=6, max_size=LENGTH_S), POLICIES)
def test_after_a_stop_no_window_is_judged_a_second_time(
    database: Database, seconds: list[Second], policy: LiteralPolicy
) -> None:
    seconds = [replace(second, then="stop" if second.then == "kill" else second.then) for second in seconds]
    _told["examples"] += 1
    with tempfile.TemporaryDirectory() as folder:
        place = Place(service=f"s{_told['examples']}", env="stopped")
        story = Story(database, replace(SETTINGS, place=place, rule=policy), Path(folder) / "requests.jsonl")
        tell(story, seconds, breaks=True)
        story.end()
    judged = Counter((j.trigger, j.window_end_s) for j in story.told)
    assert max(judged.values(), default=1) == 1


@settings(max_examples=10)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 40))
def test_probation_does_not_begin_again(database: Database, gaps_s: list[int], away_s: int) -> None:
    _told["examples"] += 1
    place = Place(service=f"s{_told['examples']}", env="probation")
    with tempfile.TemporaryDirectory() as folder:
        story = Story(database, replace(SETTINGS, place=place), Path(folder) / "requests.jsonl")
        story.write(START_S + 0.5, 200)
        now = START.plus(NS_PER_S)
        story.look(now)
        for gap_s in gaps_s:
            story.save(now)
            story.end()
            now = now.plus((gap_s + away_s) * NS_PER_S)
            story.write(now.mono_ns / NS_PER_S - 0.5, 200)
            story.look(now)
        assert story.watch is not None
        (rule,) = story.watch.snapshot(now).state.rules
        assert rule.start_s == START_S
        story.end()
