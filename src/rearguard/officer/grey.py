"""The grey zone of every place: a page within a minute that a limit is exceeded, while the rule has not decided.

Owns what was entered and left: it is in the evidence, so a restart neither forgets nor repeats it. While an incident or a
rollback of a place is open, that one's own messages stand and this rule keeps still.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from rearguard.database import Connection, sql
from rearguard.evidence.log import append
from rearguard.handoffs import outbox
from rearguard.model.breach import Trigger
from rearguard.model.evidence import Record
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant, elapsed, parse_rfc3339
from rearguard.officer.office import Office
from rearguard.ports import Message
from rearguard.recovery.context import version_of
from rearguard.rules.breach import grey
from rearguard.rules.breach.grey import Change, Finding, GreyState, Move, Zone
from rearguard.rules.breach.wording import worded
from rearguard.watch.watcher import GRACE_NS, PlaceWatch

SETTLED = "in_limit"
INCIDENT = "incident_opened"
MOVED_ON = "another_digest_answers"


class GreyZones:
    """What one officer knows of the grey zones; used by one thread."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._states: dict[Place, dict[Digest, GreyState]] = {}

    def look(self, watches: Iterable[PlaceWatch], now: Instant) -> None:
        """Look at each place once a second.

        Raises `DependencyError` when what was found could not be recorded: nothing is then remembered of it, and the
        next look finds it again.
        """
        for watch in watches:
            if watch.place not in self._states:
                self._states[watch.place] = self._remembered(watch.place, now)
            if watch.digest is not None:
                self._look(watch, watch.digest, now)

    def _look(self, watch: PlaceWatch, digest: Digest, now: Instant) -> None:
        states = self._states[watch.place]
        state = states.get(digest, GreyState(digest=digest))
        now_s = (now.mono_ns - GRACE_NS) // NS_PER_S
        if state.looked_s is not None and now_s <= state.looked_s:
            return
        policy, counts = watch.feed.settings.rule, watch.feed.counts
        length_s = grey.window_s(policy)
        seconds = counts.seconds(digest, now_s - length_s, now_s)
        after, changes = grey.look(state, policy, watch.feed.limits_of(digest), seconds, now_s)
        others = {
            other: known
            for other, known in states.items()
            if other != digest and known.inside and _gone(counts.last_seen(other), now, length_s)
        }
        if (changes or after.inside or others) and self._answered(watch.place):
            # The incident has messages of its own; what this look would have entered was never told.
            others = {other: known for other, known in states.items() if known.inside and other != digest}
            left = [_nothing(trigger) for trigger in state.inside]
            after, changes, why = replace(grey.leave(state), looked_s=now_s), (), INCIDENT
        else:
            left, why = [], MOVED_ON
        if changes or left or others:
            with self._office.database.transaction() as connection:
                for change in changes:
                    if change.move is Move.ENTERED:
                        self._enter(connection, watch, digest, change, now)
                    else:
                        self._leave(connection, watch.place, digest, change.finding, SETTLED, now)
                for finding in left:
                    self._leave(connection, watch.place, digest, finding, why, now)
                for other, known in others.items():
                    for trigger in known.inside:
                        self._leave(connection, watch.place, other, _nothing(trigger), why, now)
        states = {**states, **{other: grey.leave(known) for other, known in others.items()}, digest: after}
        self._states[watch.place] = _pruned(states, digest, now_s)

    def _answered(self, place: Place) -> bool:
        """True while an incident or a rollback of the place is open."""
        incident = "SELECT 1 FROM incidents WHERE service = :service AND env = :env AND state = 'open'"
        run = "SELECT 1 FROM runs WHERE service = :service AND env = :env AND state IN ('requested', 'running')"
        with self._office.database.reading() as connection:
            keys = {"service": place.service, "env": place.env}
            return connection.execute(sql(f"{incident} UNION ALL {run} LIMIT 1"), keys).first() is not None

    def _enter(self, connection: Connection, watch: PlaceWatch, digest: Digest, change: Change, now: Instant) -> None:
        place, found = watch.place, change.finding
        window = {"start_s": change.window_start_s, "end_s": change.window_end_s}
        body = {**_figures(change.finding, digest), "window": window}
        run_id = self._office.ids.run_id()
        record = append(connection, now=now, kind="grey_zone_entered", body=body, place=place, run_id=run_id)
        words = worded(
            found.trigger,
            observed=found.observed,
            limit=found.limit,
            p95_ms=watch.feed.counts.p95_ms(digest, change.window_start_s, change.window_end_s),
            p95_limit_ms=watch.feed.limits_of(digest).latency_limit_ms,
        )
        version = version_of(connection, digest) or digest[7:19]
        title = f"{place}: {version}, {words}: over its limit, not decided yet"
        message = _message(place, change.finding.trigger, record, title, "grey")
        outbox.post(connection, replace(message, severity="page", action="open"), now)

    def _leave(
        self, connection: Connection, place: Place, digest: Digest, finding: Finding, reason: str, now: Instant
    ) -> None:
        body = {**_figures(finding, digest), "reason": reason}
        run_id = self._office.ids.run_id()
        record = append(connection, now=now, kind="grey_zone_left", body=body, place=place, run_id=run_id)
        what = {
            SETTLED: "is in limit again",
            INCIDENT: "is an incident now",
            MOVED_ON: "was over its limit; another version answers",
        }[reason]
        message = _message(place, finding.trigger, record, f"{place}: {finding.trigger.label} {what}", reason)
        outbox.post(connection, replace(message, severity="info", action="resolve"), now)

    def _remembered(self, place: Place, now: Instant) -> dict[Digest, GreyState]:
        """What an earlier officer entered and left, from the evidence."""
        states: dict[Digest, GreyState] = {}
        with self._office.database.reading() as connection:
            rows = connection.execute(
                sql(
                    "SELECT id, kind, ts, monotonic_ns, boot_id, json_extract(body, '$.digest') AS digest, "
                    "json_extract(body, '$.trigger') AS trigger_name FROM evidence WHERE service = :service AND env = :env "
                    "AND kind IN ('grey_zone_entered', 'grey_zone_left') ORDER BY id DESC LIMIT 100"
                ),
                {"service": place.service, "env": place.env},
            ).all()
        for row in reversed(rows):
            digest = Digest(row.digest)
            at = Instant(wall_ns=parse_rfc3339(row.ts), mono_ns=int(row.monotonic_ns), boot_id=row.boot_id)
            at_s = (now.mono_ns - elapsed(at, now).ns) // NS_PER_S
            known = states.get(digest, GreyState(digest=digest))
            if row.kind == "grey_zone_entered":
                zone = Zone(inside=True, entered_s=at_s, over_s=at_s)
            else:
                zone = Zone(entered_s=known.zone(Trigger(row.trigger_name)).entered_s)
            states[digest] = grey.with_zone(known, Trigger(row.trigger_name), zone)
        return states


def _gone(last_seen_ns: int | None, now: Instant, length_s: int) -> bool:
    return last_seen_ns is None or now.mono_ns - last_seen_ns > length_s * NS_PER_S


def _nothing(trigger: Trigger) -> Finding:
    return Finding(trigger=trigger, samples=0, exceedances=0, observed=None, limit=None, over=None)


def _figures(finding: Finding, digest: Digest) -> dict[str, Any]:
    return {
        "trigger": finding.trigger.value,
        "digest": digest,
        "observed": _plain(finding.observed),
        "limit": _plain(finding.limit),
        "samples": finding.samples,
        "exceedances": finding.exceedances,
    }


def _message(place: Place, trigger: Trigger, record: Record, title: str, state: str) -> Message:
    fields = {
        "service": place.service,
        "env": place.env,
        "why": trigger.label,
        "state": state,
        "since": record.ts,
        "next": f"rearguard rollback plan {place.service} --env {place.env}",
    }
    for name in ("digest", "observed", "limit", "samples", "exceedances"):
        fields[name] = "" if record.body[name] is None else str(record.body[name])
    cause = f"grey:{place}:{trigger.value}"
    return Message(key=f"{cause}:{record.id}", title=title, fields=fields, cause=cause)


def _pruned(states: dict[Digest, GreyState], digest: Digest, now_s: int) -> dict[Digest, GreyState]:
    """Without those that have nothing to remember any more."""

    def kept(state: GreyState) -> bool:
        zones = [state.zone(trigger) for trigger in Trigger]
        return any(z.inside or (z.entered_s is not None and now_s - z.entered_s < grey.QUIET_S) for z in zones)

    return {d: s for d, s in states.items() if d == digest or kept(s)}


def _plain(value: Decimal | None) -> str | None:
    """A decimal as text without exponent, at most six decimals."""
    if value is None:
        return None
    text = f"{value:.6f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
