"""What the watch of a place must not forget: its counts, the state of its rule, and where it is in its telemetry.

Owns the tables `counts` and `watches`. All of it is written in one transaction, so that counts, rule and place in the
log are of one instant: what comes after that instant is still in the log, and is read from there once. Rows are kept
for 24 h. A second is known by its boot and its monotonic number; its wall second is a label for people, and follows the
wall clock when that is stepped.

The counts of another boot are placed by the wall clock. The streaks of another boot are dropped: their seconds cannot
be placed to the second, and the host was down in between, which ends a streak in any case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Protocol

from rearguard.checkpoints.registry import encode_instant
from rearguard.database import Connection, Database, sql
from rearguard.errors import IntegrityError
from rearguard.model.service import Digest, Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.telemetry import SecondCounts, SourceHealth
from rearguard.model.time import NS_PER_S, Instant
from rearguard.rules.breach.literal import RuleState, Streak
from rearguard.watch.counts import Changes

SAVE_EVERY_S = 5.0
"""Between two saves. Chosen: one commit in five seconds costs nothing; what is not saved yet is still in the log."""
KEEP_S = 86_400
"""How long counts are kept: 24 h (issue 3)."""
DELETE_BATCH = 2_000
"""Old rows of one digest that one save deletes. Chosen: a day that was missed is gone within minutes, no save is slow."""
STEPPED_S = 2
"""The wall clock was stepped, not slewed, when it moved by so much against the monotonic one. Chosen."""
_VERSION = 1
_COUNTED = (
    "requests",
    "failures",
    "timed",
    "over_latency",
    "first_failure_ns",
    "first_over_latency_ns",
    "scores",
    "score_sum",
    "first_low_score_ns",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """What a watch knows beside its counts, all of one instant."""

    at: Instant
    digest: Digest | None
    """The digest that answered last."""
    newest_request: tuple[Digest, int] | None
    """Digest and monotonic nanoseconds of the newest request."""
    rules: tuple[RuleState, ...]
    silent_since: Instant | None
    position: dict[str, Any] | None
    """Of the telemetry source; None when it has none, and then only seconds that are complete are saved."""
    health: SourceHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is to be saved of one place."""

    settings: PlaceSettings
    state: WatchState
    changes: Changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What an earlier process saved of one place, on this boot's clock."""

    state: WatchState
    counts: Changes
    counted_to: Instant
    """The end of the newest second that was saved, in whole or in part."""


class Saveable(Protocol):
    """A watch over one place."""

    def snapshot(self, now: Instant) -> Snapshot:
        """What it knows; the changes are its own no longer."""
        ...

    def not_saved(self, snapshot: Snapshot) -> None:
        """Take the changes back."""
        ...


def save(database: Database, watches: Iterable[Saveable], now: Instant) -> int:
    """Save every watch in one transaction; returns the number of seconds written.

    Raises `DependencyError` `database_unavailable`, `ConflictError` `officer_superseded`: nothing was written, and the
    next call writes all of it.
    """
    taken: list[tuple[Saveable, Snapshot]] = []
    try:
        taken.extend((watch, watch.snapshot(now)) for watch in watches)
        with database.transaction() as connection:
            for _, snapshot in taken:
                _write(connection, snapshot, now)
    except BaseException:
        for watch, snapshot in taken:
            watch.not_saved(snapshot)
        raise
    return sum(len(snapshot.changes) for _, snapshot in taken)


def load(database: Database, settings: PlaceSettings, now: Instant, keep_s: int = 3900) -> Remembered | None:
    """What was saved of a place, None when nothing was; counts of the `keep_s` before the newest.

    The watch of every digest goes on where it was, unless the rule or its limits were changed in the settings: what was
    counted with other limits is not judged with the new ones, and the watch begins anew where the old one ended.
    Raises `IntegrityError` `watch_unreadable`.
    """
    place = settings.place
    with database.reading() as connection:
        body = _read_body(connection, place)
        if body is None:
            return None
        offset_s = _offset_s(now)
        from_wall_s = _label(body["anchors"], body["at"][1] // NS_PER_S - keep_s)
        counts = _read_counts(connection, place, from_wall_s, now.boot_id, offset_s)
    shift_s = 0 if body["boot_id"] == now.boot_id else body["anchors"][-1][1] - offset_s
    same_rule = body["rule"] == _fingerprint(settings)
    rules = tuple(_rule(saved, shift_s, body["boot_id"] == now.boot_id, same_rule) for saved in body["rules"])
    saved_at = _instant(body["at"], body["boot_id"], shift_s)
    silent = body["silent_since"]
    request = body["newest_request"]
    state = WatchState(
        at=saved_at,
        digest=body["digest"],
        newest_request=(Digest(request[0]), request[1] + shift_s * NS_PER_S) if request else None,
        rules=rules,
        silent_since=_instant(silent, body["boot_id"], shift_s) if silent else None,
        position=body["position"],
        health=_health(body),
    )
    end_s = max((second for _, second in counts), default=saved_at.mono_ns // NS_PER_S) + 1
    counted_to = Instant(
        wall_ns=now.wall_ns - now.mono_ns + end_s * NS_PER_S, mono_ns=end_s * NS_PER_S, boot_id=now.boot_id
    )
    return Remembered(state=state, counts=counts, counted_to=counted_to)


def recent(
    connection: Connection, place: Place, from_wall_s: int, to_wall_s: int
) -> tuple[tuple[Digest, int, SecondCounts], ...]:
    """Digest, wall second and counts of what was saved of [from, to), by digest and in order."""
    return tuple(
        (Digest(row.digest), int(row.wall_s), _counts(row, int(row.mono_s)))
        for digest in _digests(connection, place)
        for row in connection.execute(
            sql(
                "SELECT * FROM counts WHERE service = :service AND env = :env AND digest = :digest "
                "AND wall_s >= :from_s AND wall_s < :to_s ORDER BY wall_s"
            ),
            {**_keys(place), "digest": digest, "from_s": from_wall_s, "to_s": to_wall_s},
        )
    )


def last_saved(connection: Connection, place: Place) -> tuple[int, SourceHealth] | None:
    """Wall nanoseconds of the last save of a place, and what its source knew of itself; None before the first."""
    body = _read_body(connection, place)
    return None if body is None else (int(body["at"][0]), _health(body))


def _health(body: dict[str, Any]) -> SourceHealth:
    return SourceHealth(**{name: body["health"][name] for name in _HEALTH})


def _write(connection: Connection, snapshot: Snapshot, now: Instant) -> None:
    place = snapshot.settings.place
    before = _read_body(connection, place)
    anchors = _anchors(connection, place, before, now)
    rows = [
        {
            **_keys(place),
            "digest": digest,
            "wall_s": _label(anchors, second),
            "mono_s": second,
            "boot_id": now.boot_id,
            **{name: getattr(counts, name) for name in _COUNTED if name != "score_sum"},
            "score_sum": str(counts.score_sum),
        }
        for (digest, second), counts in snapshot.changes.items()
    ]
    if rows:
        names = ("service", "env", "digest", "wall_s", "mono_s", "boot_id", *_COUNTED)
        # A row of another boot with this label: the wall clock said the same second twice; the newer one is kept.
        connection.execute(
            sql(f"INSERT OR REPLACE INTO counts ({', '.join(names)}) VALUES ({', '.join(f':{n}' for n in names)})"),
            rows,
        )
    for digest in _digests(connection, place):
        connection.execute(
            sql(
                "DELETE FROM counts WHERE service = :service AND env = :env AND digest = :digest AND wall_s IN "
                "(SELECT wall_s FROM counts WHERE service = :service AND env = :env AND digest = :digest "
                "AND wall_s < :oldest ORDER BY wall_s LIMIT :batch)"
            ),
            {**_keys(place), "digest": digest, "oldest": now.wall_ns // NS_PER_S - KEEP_S, "batch": DELETE_BATCH},
        )
    connection.execute(
        sql(
            "INSERT INTO watches (service, env, body, saved_at) VALUES (:service, :env, :body, :at) "
            "ON CONFLICT (service, env) DO UPDATE SET body = :body, saved_at = :at"
        ),
        {**_keys(place), "body": json.dumps(_body(snapshot, anchors)), "at": encode_instant(now)},
    )


def _anchors(connection: Connection, place: Place, before: dict[str, Any] | None, now: Instant) -> list[list[int]]:
    """`[from_s, offset_s]` in order: the label of a monotonic second is itself and the offset of its anchor.

    A clock that was put forward (or a host that slept) begins a new anchor: labels have a gap. A clock that was put
    back was wrong before, so what was saved on this boot is labelled anew; labels of one boot never repeat.
    """
    offset_s = _offset_s(now)
    if before is None or before["boot_id"] != now.boot_id:
        return [[now.mono_ns // NS_PER_S, offset_s]]  # also of every second before it
    anchors: list[list[int]] = before["anchors"]
    moved_s = offset_s - anchors[-1][1]
    if abs(moved_s) < STEPPED_S:
        return anchors
    if moved_s > 0:
        # From the second after the newest that may have a label already.
        oldest_s = now.mono_ns // NS_PER_S - 2 * KEEP_S
        later = [pair for i, pair in enumerate(anchors) if i == len(anchors) - 1 or anchors[i + 1][0] > oldest_s]
        return [*later, [before["at"][1] // NS_PER_S + 1, offset_s]]
    # Two statements, by way of negative labels: a key must not meet one that is still to be moved.
    keys = {**_keys(place), "boot": now.boot_id, "back": -moved_s}
    where = "WHERE service = :service AND env = :env AND boot_id = :boot"
    connection.execute(sql(f"UPDATE OR REPLACE counts SET wall_s = -(wall_s - :back) {where}"), keys)
    connection.execute(sql(f"UPDATE OR REPLACE counts SET wall_s = -wall_s {where} AND wall_s < 0"), keys)
    return [[from_s, offset + moved_s] for from_s, offset in anchors]


def _body(snapshot: Snapshot, anchors: list[list[int]]) -> dict[str, Any]:
    state = snapshot.state
    return {
        "version": _VERSION,
        "boot_id": state.at.boot_id,
        "at": [state.at.wall_ns, state.at.mono_ns],
        "anchors": anchors,
        "rule": _fingerprint(snapshot.settings),
        "digest": state.digest,
        "newest_request": list(state.newest_request) if state.newest_request else None,
        "rules": [
            {
                "digest": rule.digest,
                "start_s": rule.start_s,
                "last_end_s": rule.last_end_s,
                **{name: _streak_body(getattr(rule, name)) for name in _STREAKS},
            }
            for rule in state.rules
        ],
        "silent_since": [state.silent_since.wall_ns, state.silent_since.mono_ns] if state.silent_since else None,
        "position": state.position,
        "health": {name: getattr(state.health, name) for name in _HEALTH},
    }


_STREAKS = ("compliance", "latency", "errors")
_HEALTH = ("accepted", "rejected", "last_at_mono_ns", "last_rejection", "late")


def _streak_body(streak: Streak) -> list[int | None]:
    return [streak.windows, streak.first_bad_mono_ns]


def _rule(saved: dict[str, Any], shift_s: int, same_boot: bool, same_rule: bool) -> RuleState:
    rule = RuleState(
        digest=Digest(saved["digest"]), start_s=saved["start_s"] + shift_s, last_end_s=saved["last_end_s"] + shift_s
    )
    if not same_rule:
        return replace(rule, start_s=rule.last_end_s)
    if not same_boot:
        return rule
    compliance, latency, errors = (Streak(windows=saved[n][0], first_bad_mono_ns=saved[n][1]) for n in _STREAKS)
    return replace(rule, compliance=compliance, latency=latency, errors=errors)


def _fingerprint(settings: PlaceSettings) -> str:
    """Of everything in the settings that a judgement depends on."""
    return hashlib.sha256(repr((settings.rule, settings.triggers)).encode("utf-8")).hexdigest()


def _read_body(connection: Connection, place: Place) -> dict[str, Any] | None:
    found = connection.execute(
        sql("SELECT body FROM watches WHERE service = :service AND env = :env"), _keys(place)
    ).scalar()
    if found is None:
        return None
    try:
        body: dict[str, Any] = json.loads(found)
        version = body["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "watch_unreadable", f"the saved watch of {place} cannot be read", "restore the state directory from a copy"
        ) from error
    if version != _VERSION:
        raise IntegrityError(
            "watch_unreadable",
            f"the saved watch of {place} has form {version}; this release knows {_VERSION}",
            "run the release that wrote it, or a newer one",
        )
    return body


def _read_counts(
    connection: Connection, place: Place, from_wall_s: int, boot_id: str, offset_s: int
) -> dict[tuple[Digest, int], SecondCounts]:
    """On this boot's clock: seconds of other boots by their wall second."""
    found = {}
    for digest in _digests(connection, place):
        rows = connection.execute(
            sql(
                "SELECT * FROM counts WHERE service = :service AND env = :env AND digest = :digest AND wall_s >= :from_s"
            ),
            {**_keys(place), "digest": digest, "from_s": from_wall_s},
        )
        for row in rows:
            second = int(row.mono_s) if row.boot_id == boot_id else int(row.wall_s) - offset_s
            found[digest, second] = _counts(row, second)
    return found


def _counts(row: Any, second: int) -> SecondCounts:
    """A row's counts at a second; its instants move with it."""
    shift_ns = (second - int(row.mono_s)) * NS_PER_S
    fields = {name: getattr(row, name) for name in _COUNTED}
    for name in ("first_failure_ns", "first_over_latency_ns", "first_low_score_ns"):
        if fields[name] is not None:
            fields[name] += shift_ns
    return SecondCounts(second=second, **(fields | {"score_sum": Decimal(row.score_sum)}))


def _digests(connection: Connection, place: Place) -> tuple[Digest, ...]:
    """The digests of which counts are saved: one step of the key's tree for each, not one for each row."""
    where = "service = :service AND env = :env"
    found = connection.execute(
        sql(
            f"WITH RECURSIVE known (digest) AS (SELECT min(digest) FROM counts WHERE {where} UNION ALL "
            f"SELECT (SELECT min(digest) FROM counts WHERE {where} AND digest > known.digest) FROM known "
            "WHERE known.digest IS NOT NULL) SELECT digest FROM known WHERE digest IS NOT NULL"
        ),
        _keys(place),
    )
    return tuple(Digest(row.digest) for row in found)


def _label(anchors: list[list[int]], second: int) -> int:
    """The wall second of a monotonic one."""
    return second + next((offset for from_s, offset in reversed(anchors) if from_s <= second), anchors[0][1])


def _keys(place: Place) -> dict[str, str]:
    return {"service": place.service, "env": place.env}


def _offset_s(now: Instant) -> int:
    return (now.wall_ns - now.mono_ns) // NS_PER_S


def _instant(saved: list[int], boot_id: str, shift_s: int) -> Instant:
    return Instant(wall_ns=saved[0], mono_ns=saved[1] + shift_s * NS_PER_S, boot_id=boot_id)
