"""Counts of what telemetry says of one place, per digest and monotonic second, kept in memory for about an hour.

Owns folding, the bound on memory, what is read from the counts for display and for the compliance baseline, and which
seconds are not saved yet. Deciding is left to the rules, saving to `memory`. Every method may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from rearguard.model.breach import Limits
from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import Observation, RequestSeen, ScoreSeen, SecondCounts
from rearguard.model.time import NS_PER_S
from rearguard.rules.breach.window import EXACT

MAX_DIGESTS = 16
"""Chosen: more versions than a place serves in an hour, few enough to hold."""
MAX_LATENCIES = 20_000
"""Newest raw latencies kept for a digest, for display only."""
MAX_UNSAVED = 100_000
"""Seconds that left the memory and still wait to be saved. Chosen: a day and some, for a disk that is full so long."""

Changes = Mapping[tuple[Digest, int], SecondCounts]
"""Counts by digest and second."""


def baseline(history: Sequence[Decimal]) -> Decimal | None:
    """The median of a gauge's history, None when there is none (R20).

    Of an even number it is the mean of the two middle values, exactly.
    """
    if not history:
        return None
    ordered = sorted(history)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return EXACT.multiply(EXACT.add(ordered[middle - 1], ordered[middle]), Decimal("0.5"))


class Counts:
    """Counts of one place.

    `limits_of` gives the limits of a digest; it is asked again by every `add`, so a baseline that is set later counts
    from then on. It is called without the lock held. `keep_s` is how far behind the newest observation counts are
    kept: 65 minutes by default, an hour's baseline and some. At most `MAX_DIGESTS` digests are kept, those seen last.
    """

    def __init__(self, place: Place, limits_of: Callable[[Digest], Limits], keep_s: int = 3900) -> None:
        self.place = place
        self._limits_of = limits_of
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._kept: dict[Digest, _Kept] = {}
        self._newest_s: int | None = None
        self._newest_request: tuple[Digest, int] | None = None
        self._changed: set[tuple[Digest, int]] = set()
        self._unsaved: dict[tuple[Digest, int], SecondCounts] = {}
        self._restored_to_s: int | None = None
        self._left_out = 0

    def add(self, observations: Iterable[Observation]) -> None:
        """Count observations, late ones into their own second; those of other places are left out."""
        wanted = [(seen, self._limits_of(seen.digest)) for seen in observations if seen.place == self.place]
        if not wanted:
            return
        with self._lock:
            newest_before = self._newest_s
            for seen, limits in wanted:
                second = seen.at_mono_ns // NS_PER_S
                self._newest_s = second if self._newest_s is None else max(self._newest_s, second)
                self._count(seen, limits)
            if self._newest_s != newest_before:
                self._forget()

    def seconds(self, digest: Digest, start_s: int, end_s: int) -> tuple[SecondCounts, ...]:
        """Counts of the seconds in [start_s, end_s) that hold an observation, in order."""
        with self._lock:
            kept = self._kept.get(digest)
            return () if kept is None else tuple(kept.counts[s].frozen(s) for s in kept.present(start_s, end_s))

    def restore(self, saved: Changes, newest_request: tuple[Digest, int] | None) -> None:
        """Begin with counts that an earlier process saved. They are not changed, and their single latencies are gone."""
        with self._lock:
            for (digest, second), counts in saved.items():
                kept = self._kept.setdefault(digest, _Kept(last_ns=second * NS_PER_S))
                kept.last_ns = max(kept.last_ns, second * NS_PER_S)
                kept.counts[second] = _Second.of(counts)
            if saved:
                self._newest_s = self._restored_to_s = max(second for _, second in saved)
            if newest_request is not None:
                self._newest_request = newest_request
                if newest_request[0] in self._kept:
                    self._kept[newest_request[0]].last_ns = newest_request[1]
            if self._newest_s is not None:
                self._forget()

    def take_changes(self) -> dict[tuple[Digest, int], SecondCounts]:
        """Every second that changed since the last call, with all that was counted in it."""
        with self._lock:
            taken = self._unsaved
            self._unsaved = {}
            for digest, second in self._changed:
                if digest in self._kept and second in self._kept[digest].counts:
                    taken[digest, second] = self._kept[digest].counts[second].frozen(second)
            self._changed = set()
            return taken

    def put_back(self, changes: Changes) -> None:
        """These could not be saved: they count as changed again, with what was counted meanwhile."""
        with self._lock:
            for (digest, second), counts in changes.items():
                if digest in self._kept and second in self._kept[digest].counts:
                    self._changed.add((digest, second))
                else:
                    self._keep_unsaved(digest, counts)

    def left_out(self) -> int:
        """Observations that came too late to be kept."""
        with self._lock:
            return self._left_out

    def newest_digest(self) -> tuple[Digest, int] | None:
        """Digest and monotonic nanoseconds of the newest request, answered or failed; None before the first."""
        with self._lock:
            return self._newest_request

    def last_seen(self, digest: Digest) -> int | None:
        """Monotonic nanoseconds of the newest observation of a digest; None when nothing of it is kept."""
        with self._lock:
            kept = self._kept.get(digest)
            return None if kept is None else kept.last_ns

    def digests(self) -> tuple[Digest, ...]:
        """The digests that are kept, the last seen first."""
        with self._lock:
            return tuple(sorted(self._kept, key=lambda digest: (-self._kept[digest].last_ns, digest)))

    def p95_ms(self, digest: Digest, start_s: int, end_s: int) -> Decimal | None:
        """Nearest-rank p95 of the latencies in [start_s, end_s), for display only: rules count exceedances (R21).

        Of the newest `MAX_LATENCIES` latencies; None without any, and of seconds that were counted before a restart.
        """
        with self._lock:
            if self._restored_to_s is not None and start_s <= self._restored_to_s:
                return None
            kept = self._kept.get(digest)
            latencies = [] if kept is None else [value for s, value in kept.latencies if start_s <= s < end_s]
        if not latencies:
            return None
        latencies.sort()
        return latencies[-(-95 * len(latencies) // 100) - 1]

    def gauge_history(
        self, digest: Digest, window_s: int, start_s: int, end_s: int, min_scores: int = 1
    ) -> tuple[Decimal, ...]:
        """Mean score of each trailing window [e - window_s, e) for each whole second e in (start_s, end_s].

        Windows with fewer than `min_scores` scores are left out. A mean is rounded to 28 significant digits.
        """
        with self._lock:
            kept = self._kept.get(digest)
            present = [] if kept is None else kept.present(start_s + 1 - window_s, end_s)
            scored = {s: (kept.counts[s].scores, kept.counts[s].score_sum) for s in present} if kept else {}
        if not scored:
            return ()
        means = []
        number, amount = 0, Decimal(0)
        nothing = (0, Decimal(0))
        first_end_s, last_end_s = present[0] + 1, min(end_s, present[-1] + window_s)
        for e in range(first_end_s, last_end_s + 1):
            entering, leaving = scored.get(e - 1, nothing), scored.get(e - 1 - window_s, nothing)
            number += entering[0] - leaving[0]
            amount = EXACT.subtract(EXACT.add(amount, entering[1]), leaving[1])
            if e > start_s and number >= max(1, min_scores):
                means.append(amount / number)
        return tuple(means)

    def _count(self, seen: Observation, limits: Limits) -> None:
        second = seen.at_mono_ns // NS_PER_S
        if second < self._floor_s():
            self._left_out += 1
            return
        kept = self._kept.get(seen.digest)
        if kept is None:
            kept = self._kept[seen.digest] = _Kept(last_ns=seen.at_mono_ns)
            if len(self._kept) > MAX_DIGESTS:
                oldest = min(self._kept, key=lambda digest: self._kept[digest].last_ns)
                self._save_later(oldest, self._kept.pop(oldest).counts)
        self._changed.add((seen.digest, second))
        kept.last_ns = max(kept.last_ns, seen.at_mono_ns)
        counts = kept.counts.setdefault(second, _Second())
        if isinstance(seen, ScoreSeen):
            counts.count_score(seen, limits)
            return
        counts.count_request(seen, limits)
        if seen.latency_ms is not None:
            kept.latencies.append((second, seen.latency_ms))
        if self._newest_request is None or seen.at_mono_ns >= self._newest_request[1]:
            self._newest_request = (seen.digest, seen.at_mono_ns)

    def _floor_s(self) -> int:
        assert self._newest_s is not None
        return self._newest_s - self._keep_s

    def _forget(self) -> None:
        floor_s = self._floor_s()
        for digest, kept in list(self._kept.items()):
            self._save_later(digest, {s: counts for s, counts in kept.counts.items() if s < floor_s})
            kept.forget_before(floor_s)
            if not kept.counts:
                del self._kept[digest]

    def _save_later(self, digest: Digest, forgotten: Mapping[int, _Second]) -> None:
        for second, counts in forgotten.items():
            if (digest, second) in self._changed:
                self._changed.discard((digest, second))
                self._keep_unsaved(digest, counts.frozen(second))

    def _keep_unsaved(self, digest: Digest, counts: SecondCounts) -> None:
        if len(self._unsaved) < MAX_UNSAVED:
            self._unsaved[digest, counts.second] = counts


@dataclass(slots=True)
class _Second:
    """A second that is still being counted; `SecondCounts` is its frozen form."""

    requests: int = 0
    failures: int = 0
    timed: int = 0
    over_latency: int = 0
    first_failure_ns: int | None = None
    first_over_latency_ns: int | None = None
    scores: int = 0
    score_sum: Decimal = Decimal(0)
    first_low_score_ns: int | None = None

    @classmethod
    def of(cls, counts: SecondCounts) -> _Second:
        return cls(**{name: getattr(counts, name) for name in cls.__slots__})

    def count_request(self, seen: RequestSeen, limits: Limits) -> None:
        self.requests += 1
        if seen.failed:
            self.failures += 1
            self.first_failure_ns = _earlier(self.first_failure_ns, seen.at_mono_ns)
        if seen.latency_ms is not None:
            self.timed += 1
            if limits.latency_limit_ms is not None and seen.latency_ms > limits.latency_limit_ms:
                self.over_latency += 1
                self.first_over_latency_ns = _earlier(self.first_over_latency_ns, seen.at_mono_ns)

    def count_score(self, seen: ScoreSeen, limits: Limits) -> None:
        self.scores += 1
        self.score_sum = EXACT.add(self.score_sum, seen.score)
        if limits.compliance_baseline is not None and seen.score < limits.compliance_baseline:
            self.first_low_score_ns = _earlier(self.first_low_score_ns, seen.at_mono_ns)

    def frozen(self, second: int) -> SecondCounts:
        return SecondCounts(
            second=second,
            requests=self.requests,
            failures=self.failures,
            timed=self.timed,
            over_latency=self.over_latency,
            first_failure_ns=self.first_failure_ns,
            first_over_latency_ns=self.first_over_latency_ns,
            scores=self.scores,
            score_sum=self.score_sum,
            first_low_score_ns=self.first_low_score_ns,
        )


@dataclass(slots=True)
class _Kept:
    """What is kept of one digest."""

    last_ns: int
    counts: dict[int, _Second] = field(default_factory=dict)
    latencies: deque[tuple[int, Decimal]] = field(default_factory=lambda: deque(maxlen=MAX_LATENCIES))

    def present(self, start_s: int, end_s: int) -> list[int]:
        """The counted seconds in [start_s, end_s), in order."""
        if end_s - start_s < len(self.counts):
            return [s for s in range(start_s, end_s) if s in self.counts]
        return sorted(s for s in self.counts if start_s <= s < end_s)

    def forget_before(self, floor_s: int) -> None:
        self.counts = {s: counts for s, counts in self.counts.items() if s >= floor_s}
        if any(s < floor_s for s, _ in self.latencies):
            kept = (entry for entry in self.latencies if entry[0] >= floor_s)
            self.latencies = deque(kept, maxlen=MAX_LATENCIES)


def _earlier(known: int | None, at_ns: int) -> int:
    return at_ns if known is None or at_ns < known else known
