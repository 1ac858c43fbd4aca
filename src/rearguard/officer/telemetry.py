"""What telemetry said of a place lately, per minute and digest: what the on-call engineer looks at first.

From the counts that the watch saves every few seconds, so it works beside a living officer, without one, and on a state
directory that the caller may not write.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from rearguard.config.reader import duration_of
from rearguard.database import Connection
from rearguard.errors import UsageError
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import SecondCounts
from rearguard.model.time import NS_PER_S, rfc3339, rfc3339_ms
from rearguard.officer.office import Office
from rearguard.officer.operation import Effect, operation
from rearguard.recovery.context import version_of
from rearguard.rules.breach.window import total
from rearguard.watch import memory

_MINUTE_S = 60
_RATIO = Decimal("0.000001")
_SCORE = Decimal("0.001")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryMinute:
    """Counts of one minute of the wall clock, for one digest. A share of nothing is None."""

    at: str
    """The minute's beginning, RFC 3339 in UTC."""
    digest: Digest
    version: str | None
    requests: int
    failures: int
    error_ratio: Decimal | None
    timed: int
    over_latency: int
    over_latency_ratio: Decimal | None
    """Of the requests with a latency: above 0.05 the p95 is over its limit (R21). As it was when they were counted."""
    scores: int
    mean_score: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryView:
    """The minutes that hold an observation, in order, the older digest first."""

    place: Place
    from_ts: str
    to_ts: str
    saved_at: str | None
    """When the watch saved last; None when it never did."""
    rejected: int
    """Lines that the watch could not understand since it began."""
    late: int
    """Observations that the watch had to leave out since it began."""
    minutes: tuple[TelemetryMinute, ...]


@operation(Effect.READ)
def telemetry(office: Office, *, service: str, env: str | None, last: str) -> TelemetryView:
    """The counts of the whole minutes that reach into the `last` span (`1h`, `90 min`), up to 24 h.

    Raises `NotFoundError` as `Office.place` does, `UsageError` `span_invalid`.
    """
    place = office.place(service, env).place
    span_ms = duration_of(last)
    if span_ms is None or not _MINUTE_S * 1000 <= span_ms <= memory.KEEP_S * 1000:
        raise UsageError(
            "span_invalid", f"--last {last!r} is no span from 1 min to 24 h", "write it as 30min, 1h or 24h"
        )
    now = office.clock.now()
    to_s = now.wall_ns // NS_PER_S + 1
    from_s = (to_s - span_ms // 1000) // _MINUTE_S * _MINUTE_S
    with office.database.reading() as connection:
        rows = memory.recent(connection, place, from_s, to_s)
        saved = memory.last_saved(connection, place)
        minutes = _minutes(connection, rows)
    return TelemetryView(
        place=place,
        from_ts=rfc3339(from_s * NS_PER_S),
        to_ts=rfc3339(to_s * NS_PER_S),
        saved_at=rfc3339_ms(saved[0]) if saved else None,
        rejected=saved[1].rejected if saved else 0,
        late=saved[1].late if saved else 0,
        minutes=minutes,
    )


def _minutes(connection: Connection, rows: Iterable[tuple[Digest, int, SecondCounts]]) -> tuple[TelemetryMinute, ...]:
    grouped: dict[tuple[int, Digest], list[SecondCounts]] = {}
    first_seen: dict[Digest, int] = {}
    for digest, wall_s, counts in rows:
        grouped.setdefault((wall_s // _MINUTE_S, digest), []).append(counts)
        first_seen[digest] = min(wall_s, first_seen.get(digest, wall_s))
    versions = {digest: version_of(connection, digest) for digest in first_seen}
    found = []
    for minute, digest in sorted(grouped, key=lambda key: (key[0], first_seen[key[1]], key[1])):
        summed = total(grouped[minute, digest])
        found.append(
            TelemetryMinute(
                at=rfc3339(minute * _MINUTE_S * NS_PER_S),
                digest=digest,
                version=versions[digest],
                requests=summed.requests,
                failures=summed.failures,
                error_ratio=_share(Decimal(summed.failures), summed.requests, _RATIO),
                timed=summed.timed,
                over_latency=summed.over_latency,
                over_latency_ratio=_share(Decimal(summed.over_latency), summed.timed, _RATIO),
                scores=summed.scores,
                mean_score=_share(summed.score_sum, summed.scores, _SCORE),
            )
        )
    return tuple(found)


def _share(part: Decimal, whole: int, digits: Decimal) -> Decimal | None:
    return (part / whole).quantize(digits) if whole else None
