"""Judging one place, second by second: telemetry in, events out.

Owns the rule's state and the silence clock of one place. It decides nothing about rollbacks and writes nothing: the
officer turns its events into incidents, records and runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from rearguard.errors import RearguardError
from rearguard.model.breach import Judgement
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant
from rearguard.rules.breach import literal
from rearguard.watch.feed import Feed

GRACE_NS = 200 * NS_PER_MS
"""A second is judged this long after its end, so that lines written in it have arrived. Chosen: a local file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestAnswers:
    """Another digest answers than before."""

    place: Place
    digest: Digest
    before: Digest | None
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The rule looked."""

    place: Place
    digest: Digest
    judgements: tuple[Judgement, ...]
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """Nothing came for longer than the policy allows: INCONCLUSIVE (R31)."""

    place: Place
    since: Instant
    at: Instant
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Telemetry is back."""

    place: Place
    at: Instant


Event = DigestAnswers | Judged | Silent | Heard


class PlaceWatch:
    """The watch over one place."""

    def __init__(self, feed: Feed, started: Instant) -> None:
        self.feed = feed
        self.place = feed.settings.place
        self.digest: Digest | None = None
        self.judgements: tuple[Judgement, ...] = ()
        self.silent_since: Instant | None = None
        self._states: dict[Digest, literal.RuleState] = {}
        self._heard_at = started
        self._seen: int | None = None
        self._source_error = ""

    def tick(self, now: Instant) -> list[Event]:
        """Read what is new and judge every window that is complete."""
        events: list[Event] = []
        try:
            self.feed.poll(now)
            self._source_error = ""
        except RearguardError as error:
            self._source_error = error.code
        events += self._listen(now)
        newest = self.feed.counts.newest_digest()
        if newest is None:
            return events
        digest, at_ns = newest
        if digest != self.digest:
            seen_at = now.plus(at_ns - now.mono_ns)
            events.append(DigestAnswers(place=self.place, digest=digest, before=self.digest, at=seen_at))
            self.digest = digest
        if digest not in self._states:
            # Kept per digest: while traffic of two digests is interleaved in a switch, neither loses its streak.
            self._states = {d: s for d, s in self._states.items() if self.feed.counts.last_seen(d) is not None}
            self._states[digest] = literal.initial(digest, self._first_second(digest, at_ns))
        now_s = (now.mono_ns - GRACE_NS) // NS_PER_S
        policy = self.feed.settings.rule
        before = self._states[digest]
        seconds = self.feed.counts.seconds(digest, literal.needed_from_s(before, policy), now_s)
        after, judgements = literal.judge(before, policy, self.feed.limits_of(digest), digest, seconds, now_s)
        self._states[digest] = after
        if after != before and judgements:
            self.judgements = judgements
            events.append(Judged(place=self.place, digest=digest, judgements=judgements, at=now))
        return events

    def _first_second(self, digest: Digest, at_ns: int) -> int:
        newest_s = at_ns // NS_PER_S
        kept = self.feed.counts.seconds(digest, newest_s - self.feed.settings.rule.window_s, newest_s + 1)
        return kept[0].second if kept else newest_s

    def _listen(self, now: Instant) -> list[Event]:
        """Silence is a state of its own: never a pass, never by itself a breach."""
        last_ns = self.feed.health().last_at_mono_ns
        if last_ns is not None and last_ns != self._seen:
            self._seen = last_ns
            self._heard_at = now.plus(min(0, last_ns - now.mono_ns))
        limit_ns = self.feed.settings.no_data_after_s * NS_PER_S
        quiet = now.mono_ns - self._heard_at.mono_ns > limit_ns
        if quiet and self.silent_since is None:
            self.silent_since = self._heard_at
            reason = self._source_error or "no_data"
            return [Silent(place=self.place, since=self._heard_at, at=now, reason=reason)]
        if not quiet and self.silent_since is not None:
            self.silent_since = None
            return [Heard(place=self.place, at=now)]
        return []


def breaches(judgements: tuple[Judgement, ...]) -> tuple[Judgement, ...]:
    """Those that persisted, the earliest t0 first: it names the incident, the others attach."""
    found = [j for j in judgements if j.outcome is Outcome.FAIL and j.first_bad_mono_ns is not None]
    return tuple(sorted(found, key=lambda j: (j.first_bad_mono_ns or 0, j.trigger.value)))
