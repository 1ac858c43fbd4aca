"""F1 to F4 and F16 of what users of rollback tools suffered: what a measurement is, and what is none.

The whole way of an observation is real: lines in a file, the adapter, the counts, the rule. Only time is given, one
look every half second.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rearguard.adapters.telemetry.jsonl import JsonlTelemetry
from rearguard.model.breach import LiteralPolicy, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.settings import AdapterSettings, PlaceSettings, RecoveryPolicy, TriggerSettings
from rearguard.model.time import NS_PER_S, Instant, rfc3339_ms
from rearguard.watch.feed import Feed
from rearguard.watch.watcher import Judged, PlaceWatch, Silent

PLACE = Place(service="fraud", env="prod")
DIGEST = Digest("sha256:" + "ab" * 32)
START_S = 5_000
START = Instant(wall_ns=1_795_425_243 * NS_PER_S, mono_ns=START_S * NS_PER_S, boot_id="this-boot")
POLICY = LiteralPolicy(window_s=10, step_s=10, for_windows=2, min_samples=20)
"""Two windows of ten seconds in a row; the limits are 1 % of errors, 105 ms, and two points below 98."""
NO_DATA_AFTER_S = 30

TOO_FEW = (Outcome.INCONCLUSIVE, "too_few_samples")
IS_A_BREACH = [(Outcome.INCONCLUSIVE, "over_limit"), (Outcome.FAIL, "breach")]

Line = dict[str, Any]


def request(second: int, **changes: Any) -> Line:
    """A healthy request that completed in a second of this boot's monotonic clock."""
    at = START.plus((second - START_S) * NS_PER_S)
    line = {
        "ts": rfc3339_ms(at.wall_ns),
        "mono_ns": at.mono_ns,
        "boot_id": at.boot_id,
        "service": PLACE.service,
        "env": PLACE.env,
        "digest": DIGEST,
        "version": "7",
        "status": 200,
        "latency_ms": 12.5,
        "id": "r",
        "probe": False,
    }
    return {**line, **changes}


def score(second: int, value: Any) -> Line:
    """A labelled sample of a second."""
    line = request(second)
    return {**{name: line[name] for name in ("ts", "service", "env", "digest")}, "score": value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a watch said, and its source."""

    outcomes: dict[Trigger, list[tuple[Outcome, str]]]
    """Of each trigger, window by window."""
    silent: list[str]
    """Reasons."""
    accepted: int
    rejected: int

    def only(self, trigger: Trigger) -> set[tuple[Outcome, str]]:
        """What was said of a trigger at all."""
        return set(self.outcomes[trigger])


def watch(
    folder: Path,
    requests: Callable[[int], Iterable[Line]],
    scores: Callable[[int], Iterable[Line]] = lambda _second: (),
    *,
    policy: LiteralPolicy = POLICY,
    seconds: int = 60,
) -> Seen:
    """Watch for some seconds; `requests(second)` are the lines that are written in a second."""
    settings = PlaceSettings(
        place=PLACE,
        stateless=True,
        target=AdapterSettings(adapter="oip", options={}),
        telemetry=AdapterSettings(adapter="jsonl", options={}),
        triggers=TriggerSettings(latency_target_p95_ms=Decimal(100), compliance_baseline=Decimal(98)),
        rule=policy,
        baseline_s=600,
        no_data_after_s=NO_DATA_AFTER_S,
        recovery=RecoveryPolicy(),
    )
    logs = {folder / "requests.jsonl": requests, folder / "scores.jsonl": scores}
    requests_path, scores_path = map(str, logs)
    source = JsonlTelemetry(place=PLACE, requests_path=requests_path, scores_path=scores_path, since=START)
    place_watch = PlaceWatch(Feed(settings, source), START)
    outcomes: dict[Trigger, list[tuple[Outcome, str]]] = defaultdict(list)
    silent = []
    for half in range(2 * seconds):
        second = START_S + half // 2
        if half % 2 == 0:
            for path, lines in logs.items():
                text = "".join(json.dumps(line) + "\n" for line in lines(second))
                if text:
                    with path.open("a", encoding="utf-8") as log:
                        log.write(text)
        for event in place_watch.tick(START.plus(half * NS_PER_S // 2)):
            match event:
                case Judged():
                    for judgement in event.judgements:
                        outcomes[judgement.trigger].append((judgement.outcome, judgement.reason))
                case Silent():
                    silent.append(event.reason)
                case _:
                    pass
    health = source.health()
    source.close()
    return Seen(outcomes=outcomes, silent=silent, accepted=health.accepted, rejected=health.rejected)


def failing_in(windows: set[int]) -> Callable[[int], list[Line]]:
    """Four requests a second; all fail in the windows named by number, counted from 0."""
    return lambda second: [request(second, status=500 if (second - START_S) // 10 in windows else 200)] * 4


def test_f01_nan_is_no_measurement_neither_a_pass_nor_a_breach(tmp_path: Path) -> None:
    """kayenta#377: a baseline of NaN let every canary pass. Argo: with a failureCondition only, NaN is Successful."""
    nan = float("nan")
    alone = watch(
        tmp_path, lambda second: [request(second, latency_ms=nan)] * 4, lambda second: [score(second, nan)] * 4
    )
    assert (alone.accepted, alone.rejected) == (0, 2 * 4 * 60)
    assert alone.outcomes == {}
    assert len(alone.silent) == 1

    # Of 20 timed requests a window 2 are too slow, more than 5 %. Were the 60 NaN fast ones, 2 of 80 would be in limit.
    (tmp_path / "mixed").mkdir()
    mixed = watch(
        tmp_path / "mixed",
        lambda second: [
            *[request(second, latency_ms=999 if second % 10 == 0 else 10)] * 2,
            *[request(second, latency_ms=nan)] * 6,
        ],
    )
    assert mixed.outcomes[Trigger.LATENCY][:2] == IS_A_BREACH


def test_f02_nothing_measured_is_inconclusive_whatever_the_minimum(tmp_path: Path) -> None:
    """kayenta#799, flagger#1689: empty results passed in one tool and rolled back in the other. argo#1466: crashed."""
    policy = replace(POLICY, min_samples=0)
    (tmp_path / "silence").mkdir()
    silence = watch(tmp_path / "silence", lambda _second: [], policy=policy)
    assert (silence.outcomes, silence.silent) == ({}, ["no_data"])

    # No latency, no score, and after 20 s no request either.
    (tmp_path / "partial").mkdir()
    partial = watch(
        tmp_path / "partial",
        lambda second: [request(second, latency_ms=None)] * 4 if second < START_S + 20 else [],
        policy=policy,
        seconds=41,
    )
    assert partial.only(Trigger.LATENCY) == partial.only(Trigger.COMPLIANCE) == {TOO_FEW}
    assert partial.outcomes[Trigger.ERRORS] == [(Outcome.PASS, "in_limit")] * 2 + [TOO_FEW] * 2

    # Labels that come in late are no sign that anybody is answered.
    (tmp_path / "labels").mkdir()
    labels = watch(
        tmp_path / "labels",
        lambda second: [request(second)] * 4 if second < START_S + 20 else [],
        lambda second: [score(second, 99)],
    )
    assert labels.silent == ["no_data"]


def another_boot(second: int) -> list[Line]:
    """Failing requests as another host writes them: its monotonic clock began long before ours."""
    return [request(second, status=500, boot_id="another-boot", mono_ns=10**17)] * 4


def wall_off_by(hours: int) -> Callable[[int], list[Line]]:
    """Failing requests of a host whose wall clock is wrong and whose monotonic clock is ours."""
    at = START.plus(hours * 3600 * NS_PER_S)
    return lambda second: [request(second, status=500, ts=rfc3339_ms(at.wall_ns + (second - START_S) * NS_PER_S))] * 4


def from_the_future(second: int) -> list[Line]:
    """Failing requests of a host whose clocks are both an hour ahead, and not ours."""
    return [request(second + 3600, status=500, boot_id="another-boot")] * 4


def stuck(second: int) -> list[Line]:
    """A forwarder that writes on and on what was true in the first second."""
    return [request(START_S)] * 4


@pytest.mark.parametrize(
    ("requests", "judged", "silent"),
    [
        pytest.param(None, [], ["telemetry_unreadable"], id="refused"),
        pytest.param(stuck, [(Outcome.PASS, "in_limit"), TOO_FEW, TOO_FEW], ["no_data"], id="stale"),
        pytest.param(wall_off_by(-1), IS_A_BREACH, [], id="wall_an_hour_behind"),
        pytest.param(wall_off_by(1), IS_A_BREACH, [], id="wall_an_hour_ahead"),
        pytest.param(from_the_future, [], ["lines_rejected"], id="future"),
        pytest.param(another_boot, IS_A_BREACH, [], id="another_boot"),
    ],
)
def test_f03_a_source_that_is_down_stale_or_skewed_neither_passes_nor_hides_a_breach(
    tmp_path: Path,
    requests: Callable[[int], list[Line]] | None,
    judged: list[tuple[Outcome, str]],
    silent: list[str],
) -> None:
    """Argo: 40 s of refused connections abort a healthy rollout. flagger#989: a failed read began a canary."""
    if requests is None:
        (tmp_path / "requests.jsonl").mkdir()  # exists and cannot be read, whoever asks
    seen = watch(tmp_path, requests or (lambda _second: []))
    assert seen.outcomes[Trigger.ERRORS][: len(judged)] == judged
    assert seen.silent == silent
    if not judged:
        assert seen.only(Trigger.ERRORS) == set()


def test_f04_below_the_minimum_of_samples_nothing_is_judged(tmp_path: Path) -> None:
    """kortix-ai/suna#3403: one failed request of two at night aborted a rollout. Kayenta judges from two points."""
    (tmp_path / "few").mkdir()
    few = watch(tmp_path / "few", lambda second: [request(second, status=500)] * (2 if second % 10 else 1))
    assert few.only(Trigger.ERRORS) == {TOO_FEW}  # 19 a window, all failed

    (tmp_path / "enough").mkdir()
    enough = watch(tmp_path / "enough", lambda second: [request(second, status=500)] * 2)
    assert enough.outcomes[Trigger.ERRORS][:2] == IS_A_BREACH


def test_f16_blips_that_are_not_consecutive_never_add_up_to_a_breach(tmp_path: Path) -> None:
    """Flagger's FailedChecks and Argo's failureLimit only grow: three blips in hours are a rollback."""
    (tmp_path / "blips").mkdir()
    blips = watch(tmp_path / "blips", failing_in({0, 2, 4, 6, 8}), seconds=101)
    assert blips.outcomes[Trigger.ERRORS] == [(Outcome.INCONCLUSIVE, "over_limit"), (Outcome.PASS, "in_limit")] * 5

    (tmp_path / "breach").mkdir()
    breach = watch(tmp_path / "breach", failing_in({2, 3}), seconds=41)
    assert breach.outcomes[Trigger.ERRORS][-1] == (Outcome.FAIL, "breach")
