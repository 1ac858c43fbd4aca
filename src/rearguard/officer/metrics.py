"""What `/metrics` says, as values: computed from the database and the living watch, rendered elsewhere.

Counters come from evidence, so a restart does not reset them; each look reads only what was recorded since the last one.
A figure that is not known is left out, never a zero: an alert on it must say `absent`.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rearguard import __version__
from rearguard.checkpoints import standbys
from rearguard.checkpoints.registry import decode_instant
from rearguard.database import SCHEMA_VERSION, Connection, sql
from rearguard.engine.durable import stranded
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.run import TERMINAL
from rearguard.model.service import Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.standby import StandbyState, WarmStandby
from rearguard.model.time import NS_PER_S, Instant, elapsed
from rearguard.officer import deployments, storage
from rearguard.officer import metric_names as names
from rearguard.officer.housekeeping import JobStanding
from rearguard.officer.metric_names import RTO_BUCKETS_S, Metric
from rearguard.officer.office import Office
from rearguard.officer.supervision import ComponentHealth
from rearguard.recovery import brakes
from rearguard.recovery.candidates import candidates
from rearguard.rules.brakes import Brake, Held, frozen_window
from rearguard.watch.watcher import PlaceWatch

SEVERITIES = ("page", "info")
_COUNTED = ("incident_opened", "rollback_finished", "rollback_refused", "rollback_withheld")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One value of one family."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """One histogram: cumulative counts at `RTO_BUCKETS_S`, then of everything."""

    metric: Metric
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    total: float


Figure = Sample | Histogram


class Tally:
    """Counts over the evidence log, brought up to date from where the last look ended."""

    def __init__(self) -> None:
        self.through = 0
        """Id of the newest record that is counted."""
        self.incidents: Counter[tuple[str, ...]] = Counter()
        self.runs: Counter[tuple[str, ...]] = Counter()
        self.refused: Counter[tuple[str, ...]] = Counter()
        self.withheld: Counter[tuple[str, ...]] = Counter()
        self.rto_s: dict[tuple[str, str], list[float]] = {}
        """Per place: counts at each bound and above all of them, then the sum and the newest."""

    def catch_up(self, connection: Connection) -> None:
        """Count the records that are newer than those counted before."""
        newest = connection.execute(sql("SELECT MAX(id) FROM evidence")).scalar() or 0
        marks = ", ".join(f"'{kind}'" for kind in _COUNTED)
        rows = connection.execute(
            sql(
                "SELECT service, env, kind, body FROM evidence "
                f"WHERE id > :after AND id <= :newest AND kind IN ({marks}) ORDER BY id"
            ),
            {"after": self.through, "newest": newest},
        ).all()
        for row in rows:
            self._count((row.service or "", row.env or ""), row.kind, json.loads(row.body))
        self.through = int(newest)

    def _count(self, place: tuple[str, str], kind: str, body: dict[str, Any]) -> None:
        match kind:
            case "incident_opened":
                self.incidents[(*place, str(body["trigger"]))] += 1
            case "rollback_refused":
                self.refused[(*place, str(body["reason"]))] += 1
            case "rollback_withheld":
                self.withheld[(*place, str(body["reason"]))] += 1
            case _:
                self.runs[(*place, str(body["state"]))] += 1
                if body["state"] == "succeeded" and body.get("rto_achieved_ms") is not None:
                    self._add_rto(place, body["rto_achieved_ms"] / 1000)

    def _add_rto(self, place: tuple[str, str], seconds: float) -> None:
        figures = self.rto_s.setdefault(place, [0.0] * (len(RTO_BUCKETS_S) + 3))
        for index, bound in enumerate(RTO_BUCKETS_S):
            figures[index] += seconds <= bound
        figures[-3] += 1
        figures[-2] += seconds
        figures[-1] = seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Living:
    """What only this process knows."""

    up: bool
    started: Instant
    health: tuple[ComponentHealth, ...] = ()
    jobs: tuple[JobStanding, ...] = ()
    watches: tuple[PlaceWatch, ...] = ()
    heartbeat_age_s: float | None = None
    standby_rss_bytes: Mapping[Place, int] = field(default_factory=dict)
    freeable_bytes: int | None = None


class Metrics:
    """All figures of one office; may be asked by several threads."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._tally = Tally()
        self._lock = threading.Lock()

    def collect(self, living: Living, now: Instant) -> tuple[Figure, ...]:
        """Every figure that is known now. Raises `DependencyError` when the database cannot be read."""
        settings = self._office.settings
        figures: list[Figure] = list(_of_process(living))
        figures.append(_sample(names.RTO_OBJECTIVE, settings.objectives.rto_objective_ms / 1000))
        with self._office.database.reading() as connection:
            with self._lock:
                self._tally.catch_up(connection)
                figures += _of_tally(self._tally, [p.place for p in settings.places])
            for declared in settings.places:
                figures += _of_place(self._office, connection, declared, now)
            figures += _of_outbox(connection, now)
            figures += _of_mirror(connection, settings.checkpoints.mirror)
        figures.append(_sample(names.RUNS_STRANDED, len(stranded(self._office.database))))
        for place, rss_bytes in living.standby_rss_bytes.items():
            figures.append(_sample(names.STANDBY_RSS, rss_bytes, place.service, place.env))
        for watch in living.watches:
            figures += of_watch(watch, now)
        return tuple(figures)


def _sample(metric: Metric, value: float, *labels: str) -> Sample:
    assert len(labels) == len(metric.labels), metric.name
    return Sample(metric=metric, labels=labels, value=value)


def _of_process(living: Living) -> Iterator[Figure]:
    yield _sample(names.UP, living.up)
    yield _sample(names.BUILD_INFO, 1, __version__, str(SCHEMA_VERSION))
    yield _sample(names.START_TIME, living.started.wall_ns / NS_PER_S)
    for component in living.health:
        yield _sample(names.COMPONENT_UP, component.ok, component.name)
        yield _sample(names.COMPONENT_IDLE, component.idle_s, component.name)
    for job in living.jobs:
        yield _sample(names.JOB_AGE, job.succeeded_age_s, job.name)
        if job.name == "projection":
            yield _sample(names.PROJECTION_AGE, job.succeeded_age_s)
    if living.freeable_bytes is not None:
        yield _sample(names.STORE_FREEABLE, living.freeable_bytes)
    if living.heartbeat_age_s is not None:
        yield _sample(names.HEARTBEAT_AGE, living.heartbeat_age_s)


def _of_tally(tally: Tally, places: Iterable[Place]) -> Iterator[Figure]:
    """Counters of declared places begin at 0, so that their first increase is seen as one."""
    incidents, runs = Counter(tally.incidents), Counter(tally.runs)
    for place in places:
        incidents.update({(place.service, place.env, trigger.value): 0 for trigger in Trigger})
        runs.update({(place.service, place.env, state.value): 0 for state in TERMINAL})
    counters = (
        (names.INCIDENTS, incidents),
        (names.RUNS, runs),
        (names.REFUSED, tally.refused),
        (names.WITHHELD, tally.withheld),
    )
    for metric, counter in counters:
        for labels, count in sorted(counter.items()):
            yield _sample(metric, count, *labels)
    for place_labels, figures in sorted(tally.rto_s.items()):
        counts = tuple(int(figure) for figure in figures[:-2])
        yield Histogram(metric=names.RTO, labels=place_labels, counts=counts, total=figures[-2])
        yield _sample(names.RTO_LAST, figures[-1], *place_labels)
    yield _sample(names.EVIDENCE, tally.through)


def _of_place(office: Office, connection: Connection, settings: PlaceSettings, now: Instant) -> Iterator[Figure]:
    place = settings.place
    at = (place.service, place.env)
    open_runs = connection.execute(
        sql("SELECT requested_at FROM runs WHERE service = :s AND env = :e AND state IN ('requested', 'running')"),
        {"s": place.service, "e": place.env},
    ).all()
    ages_s = [elapsed(decode_instant(row.requested_at), now).ns / NS_PER_S for row in open_runs]
    yield _sample(names.RUNS_OPEN, len(ages_s), *at)
    if ages_s:
        yield _sample(names.RUN_OPEN_AGE, max(ages_s), *at)
    open_incidents = connection.execute(
        sql("SELECT COUNT(*) FROM incidents WHERE service = :s AND env = :e AND state = 'open'"),
        {"s": place.service, "e": place.env},
    ).scalar()
    yield _sample(names.INCIDENTS_OPEN, open_incidents or 0, *at)

    active = deployments.newest(connection, place)
    policy = office.settings.checkpoints
    selection = candidates(connection, place, active=active.digest if active else None, policy=policy, now=now)
    yield _sample(names.VERSIONS_SERVED, _versions_served(connection, place), *at)
    yield _sample(names.TARGETS, sum(not candidate.stale for candidate in selection.candidates), *at)
    if selection.candidates:
        domains = storage.standing(office, connection, settings, selection.candidates[0].checkpoint).domains
        if domains:
            yield _sample(names.CHECKPOINT_COPIES, len(domains), *at)
    verified_at = selection.candidates[0].checkpoint.verified_at if selection.candidates else None
    if verified_at is not None:
        yield _sample(names.TARGET_AGE, elapsed(verified_at, now).ns / NS_PER_S, *at)
    standby = standbys.get(connection, place)
    if settings.standby and standby is not None and not _wants_none(standby):
        yield _sample(names.STANDBY_READY, standby.state is StandbyState.STANDING, *at)
    yield _sample(names.ARMED, brakes.is_armed(connection, place), *at)
    yield _sample(names.PAUSED, bool(brakes.pauses_at(connection, place)), *at)
    yield _sample(names.FROZEN, frozen_window(settings.brakes, now, what=Held.ROLLBACKS) is not None, *at)
    hold = brakes.hold_on(settings, connection, now)
    for brake in Brake:
        yield _sample(names.HELD_BACK, hold is not None and hold.brake is brake, *at, brake.value)


def _of_mirror(connection: Connection, folder: str) -> Iterator[Figure]:
    if folder:
        behind = connection.execute(
            sql(
                "SELECT COUNT(*) FROM checkpoints LEFT JOIN copies ON copies.digest = checkpoints.digest "
                "AND copies.folder = :folder WHERE copies.verified_at IS NULL OR copies.failure <> ''"
            ),
            {"folder": folder},
        ).scalar_one()
        yield _sample(names.MIRROR_BEHIND, behind)


def _wants_none(standby: WarmStandby) -> bool:
    """True where nothing can stand, or nothing should because the officer keeps its hands off the target."""
    hands_off = standby.state is StandbyState.NONE and standby.reason in (Brake.OBSERVE.value, Brake.PAUSED.value)
    return hands_off or standby.state is StandbyState.UNSUPPORTED


def _versions_served(connection: Connection, place: Place) -> int:
    """One that is being switched to, or never answered, does not count."""
    found = connection.execute(
        sql(
            "SELECT COUNT(DISTINCT digest) FROM deployments WHERE service = :s AND env = :e "
            "AND state IN ('active', 'ended', 'rolled_back')"
        ),
        {"s": place.service, "e": place.env},
    ).scalar()
    return int(found or 0)


def _of_outbox(connection: Connection, now: Instant) -> Iterator[Figure]:
    """Messages that were written by a release without the instant count, and have no age."""
    rows = connection.execute(sql("SELECT severity, posted_at FROM outbox WHERE state = 'open'")).all()
    for severity in sorted({*SEVERITIES, *(row.severity for row in rows)}):
        posted = [row.posted_at for row in rows if row.severity == severity]
        yield _sample(names.OUTBOX, len(posted), severity)
        ages_s = [elapsed(decode_instant(at), now).ns / NS_PER_S for at in posted if at]
        yield _sample(names.OUTBOX_AGE, max(ages_s, default=0.0), severity)
    for row in connection.execute(sql("SELECT name, failures FROM channels ORDER BY name")):
        yield _sample(names.CHANNEL_FAILURES, row.failures, row.name)


def of_watch(watch: PlaceWatch, now: Instant) -> Iterator[Figure]:
    """What the watch over one place saw last."""
    at = (watch.place.service, watch.place.env)
    newest = watch.feed.counts.newest_digest()
    if newest is not None:
        yield _sample(names.SILENCE, max(0, now.mono_ns - newest[1]) / NS_PER_S, *at)
    for judgement in watch.judgements:
        label = (*at, judgement.trigger.value)
        yield _sample(names.SAMPLES, judgement.samples, *label)
        yield _sample(names.MIN_SAMPLES, watch.feed.settings.rule.min_samples, *label)
        for outcome in Outcome:
            yield _sample(names.OUTCOME, outcome is judgement.outcome, *label, outcome.value)
        if judgement.observed is not None:
            yield _sample(names.OBSERVED, float(judgement.observed), *label)
        if judgement.limit is not None:
            yield _sample(names.LIMIT, float(judgement.limit), *label)
        distance = distance_ratio(judgement)
        if distance is not None:
            yield _sample(names.DISTANCE, float(distance), *label)


def distance_ratio(judgement: Judgement) -> Decimal | None:
    """Room left to the limit, as a share of the limit; below 0 the window is over it (compliance: at 0 too, R20).

    None without samples or limit, and for a limit of 0, of which nothing is a share. For compliance, where less is worse,
    the difference is turned round.
    """
    observed, limit = judgement.observed, judgement.limit
    if observed is None or limit is None or limit == 0:
        return None
    room = observed - limit if judgement.trigger is Trigger.COMPLIANCE else limit - observed
    return room / limit
