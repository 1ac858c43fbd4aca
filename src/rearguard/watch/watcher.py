"""Judging one place, second by second: telemetry in, events out.

Owns the rule's state and the silence clock of one place. It decides nothing about rollbacks and writes nothing: the
officer turns its events into incidents, records and runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rearguard.errors import RearguardError
from rearguard.model.breach import Judgement
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import SourceHealth
from rearguard.model.time import NS_PER_MS, NS_PER_S, Instant
from rearguard.rules.breach import literal
from rearguard.watch.feed import Feed
from rearguard.watch.memory import Snapshot

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
    """The watch over one place; it goes on where the one that its feed remembers was saved."""

    def __init__(self, feed: Feed, started: Instant) -> None:
        self.feed = feed
        self.place = feed.settings.place
        self.digest: Digest | None = None
        self.judgements: tuple[Judgement, ...] = ()
        self.silent_since: Instant | None = None
        self._states: dict[Digest, literal.RuleState] = {}
        if feed.remembered is not None:
            self.digest = feed.remembered.digest
            self.silent_since = feed.remembered.silent_since
            self._states = {rule.digest: rule for rule in feed.remembered.rules}
        self._settled = self._states
        """The rules when everything that follows from them was done (`settle`). A window that was judged since then is
        judged again after a crash: better than a breach that nobody acted on."""
        self._begun = False
        self._heard_at = self.silent_since or started
        self._seen: int | None = None
        self._source_error = ""
        self._health_then = feed.health()
        """Of the source when a request was last heard of."""

    def tick(self, now: Instant) -> list[Event]:
        """Read what is new and judge every window that is complete."""
        events: list[Event] = []
        try:
            # What was written while nobody watched is read whole before the first window is judged.
            (self.feed.poll if self._begun else self.feed.catch_up)(now)
            self._source_error = ""
        except RearguardError as error:
            self._source_error = error.code
        events += self._listen(now)
        newest = self.feed.counts.newest_digest()
        if newest is None:
            return events
        digest, at_ns = newest
        if digest != self.digest or not self._begun:
            seen_at = now.plus(at_ns - now.mono_ns)
            before_digest = self.digest if digest != self.digest else None
            events.append(DigestAnswers(place=self.place, digest=digest, before=before_digest, at=seen_at))
            self.digest = digest
            self._begun = True
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

    def settle(self) -> None:
        """Everything that follows from the events so far was done: the rules may be saved as they are."""
        self._settled = dict(self._states)

    def snapshot(self, now: Instant) -> Snapshot:
        """What is to be saved. May be called by another thread than the one that ticks."""
        rules = tuple(self._settled.values())  # before the counts: they must not be behind the rules
        taken = self.feed.snapshot(now)
        state = replace(taken.state, digest=self.digest, rules=rules, silent_since=self.silent_since)
        return replace(taken, state=state)

    def not_saved(self, snapshot: Snapshot) -> None:
        """Take the changes back: the next snapshot has them again."""
        self.feed.counts.put_back(snapshot.changes)

    def _first_second(self, digest: Digest, at_ns: int) -> int:
        newest_s = at_ns // NS_PER_S
        kept = self.feed.counts.seconds(digest, newest_s - self.feed.settings.rule.window_s, newest_s + 1)
        return kept[0].second if kept else newest_s

    def _listen(self, now: Instant) -> list[Event]:
        """Silence is a state of its own: never a pass, never by itself a breach."""
        newest = self.feed.counts.newest_digest()
        last_ns = newest[1] if newest is not None else None  # of requests: labels of old answers may come in for hours
        if last_ns is not None and last_ns != self._seen:
            self._seen = last_ns
            self._health_then = self.feed.health()
            self._heard_at = now.plus(min(0, last_ns - now.mono_ns))
        limit_ns = self.feed.settings.no_data_after_s * NS_PER_S
        quiet = now.mono_ns - self._heard_at.mono_ns > limit_ns
        if quiet and self.silent_since is None:
            self.silent_since = self._heard_at
            reason = self._source_error or _why_nothing(self._health_then, self.feed.health())
            return [Silent(place=self.place, since=self._heard_at, at=now, reason=reason)]
        if not quiet and self.silent_since is not None:
            self.silent_since = None
            return [Heard(place=self.place, at=now)]
        return []


def _why_nothing(then: SourceHealth, now: SourceHealth) -> str:
    """Why nothing is heard although the source can be read; a misnamed metric must not look like a night without traffic.

    `lines_rejected`: lines came, and none was understood. `other_places_only`: all that came names another service or
    environment. `no_data`: nothing came.
    """
    if now.rejected > then.rejected:
        return "lines_rejected"
    return "other_places_only" if now.elsewhere > then.elsewhere else "no_data"


def breaches(judgements: tuple[Judgement, ...]) -> tuple[Judgement, ...]:
    """Those that persisted, the earliest t0 first: it names the incident, the others attach."""
    found = [j for j in judgements if j.outcome is Outcome.FAIL and j.first_bad_mono_ns is not None]
    return tuple(sorted(found, key=lambda j: (j.first_bad_mono_ns or 0, j.trigger.value)))
