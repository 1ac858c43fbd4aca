"""What every source of observations must do: the promises of `rearguard.ports.TelemetrySource` as tests.

An author of an adapter subclasses `TelemetryConformance` in a test file, under a name that pytest collects, and says
how to open the source and how to make its outside speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from rearguard.model.service import Digest, Place
from rearguard.model.telemetry import Observation, RequestSeen, ScoreSeen
from rearguard.model.time import NS_PER_S, Instant
from rearguard.ports import TelemetrySource


class TelemetryConformance:
    """The tests. A subclass gives `open_source`, `emit` and `emit_nonsense`; a fresh outside for each test is its job.

    Instants are whole milliseconds of one boot, and `emit` speaks of the boot of `NOW`.
    """

    PLACE = Place(service="fraud", env="prod")
    DIGEST = Digest("sha256:" + "ab" * 32)
    NOW = Instant(
        wall_ns=1_795_425_243 * NS_PER_S, mono_ns=5_000 * NS_PER_S, boot_id="0c1c6f4e-6a3b-4d58-9f3e-2f0a8d1b7c55"
    )
    SINCE = NOW.plus(-600 * NS_PER_S)

    def open_source(self, place: Place, since: Instant) -> TelemetrySource:
        """A source for `place` over the outside of this test."""
        raise NotImplementedError

    def emit(self, observations: Sequence[Observation]) -> None:
        """Make the outside say these, in this order."""
        raise NotImplementedError

    def emit_nonsense(self) -> None:
        """Make the outside say one thing that the source cannot understand."""
        raise NotImplementedError

    def request(
        self,
        seconds_ago: int = 10,
        latency_ms: str | None = "12.5",
        failed: bool = False,
        place: Place = PLACE,
        digest: Digest = DIGEST,
    ) -> RequestSeen:
        """A request that completed `seconds_ago` before `NOW`."""
        at = self.NOW.plus(-seconds_ago * NS_PER_S)
        return RequestSeen(
            place=place,
            digest=digest,
            at_mono_ns=at.mono_ns,
            at_wall_ns=at.wall_ns,
            latency_ms=None if latency_ms is None else Decimal(latency_ms),
            failed=failed,
        )

    def score(self, seconds_ago: int = 10, score: str = "97.5", place: Place = PLACE) -> ScoreSeen:
        """A score given `seconds_ago` before `NOW`."""
        at = self.NOW.plus(-seconds_ago * NS_PER_S)
        return ScoreSeen(
            place=place, digest=self.DIGEST, at_mono_ns=at.mono_ns, at_wall_ns=at.wall_ns, score=Decimal(score)
        )

    def poll_all(self, source: TelemetrySource, now: Instant = NOW) -> list[Observation]:
        """All that the source has now: polls until nothing more comes."""
        seen: list[Observation] = []
        while found := source.poll(now):
            seen.extend(found)
        return seen

    def test_a_source_with_nothing_to_say_gives_nothing_and_is_healthy(self) -> None:
        """Silence is no error."""
        source = self.open_source(self.PLACE, self.SINCE)
        assert self.poll_all(source) == []
        health = source.health()
        assert (health.accepted, health.rejected, health.last_at_mono_ns, health.last_rejection) == (0, 0, None, "")
        source.close()

    def test_a_request_comes_back_as_it_was(self) -> None:
        """Place, digest, both instants, latency and failure survive the way."""
        said = self.request(failed=True)
        self.emit([said])
        source = self.open_source(self.PLACE, self.SINCE)
        assert self.poll_all(source) == [said]
        source.close()

    def test_a_request_without_latency_has_none(self) -> None:
        """A missing latency is None, not zero."""
        self.emit([self.request(latency_ms=None)])
        source = self.open_source(self.PLACE, self.SINCE)
        assert [seen.latency_ms for seen in self.poll_all(source) if isinstance(seen, RequestSeen)] == [None]
        source.close()

    def test_numbers_keep_their_decimal_digits(self) -> None:
        """R23: 125.001 stays 125.001, and 0.1 does not become the nearest binary fraction."""
        self.emit([self.request(latency_ms="125.001")])
        self.emit([self.score(score="0.1")])
        source = self.open_source(self.PLACE, self.SINCE)
        found = {seen.score if isinstance(seen, ScoreSeen) else seen.latency_ms for seen in self.poll_all(source)}
        assert found == {Decimal("125.001"), Decimal("0.1")}
        source.close()

    def test_each_observation_is_handed_out_once(self) -> None:
        """What was polled is not polled again; what is said later comes later."""
        source = self.open_source(self.PLACE, self.SINCE)
        self.emit([self.request(20)])
        assert self.poll_all(source) == [self.request(20)]
        self.emit([self.request(10)])
        assert self.poll_all(source) == [self.request(10)]
        assert self.poll_all(source) == []
        source.close()

    def test_observations_of_other_places_are_left_out_silently(self) -> None:
        """One object serves one place, and other places are no fault."""
        self.emit([self.request(place=Place(service="fraud", env="staging")), self.request(30)])
        source = self.open_source(self.PLACE, self.SINCE)
        assert self.poll_all(source) == [self.request(30)]
        assert source.health().rejected == 0
        source.close()

    def test_observations_older_than_since_are_left_out(self) -> None:
        """`since` itself is still wanted."""
        self.emit([self.request(601), self.request(600), self.request(599)])
        source = self.open_source(self.PLACE, self.SINCE)
        assert self.poll_all(source) == [self.request(600), self.request(599)]
        source.close()

    def test_nonsense_is_counted_with_a_reason_and_stops_nothing(self) -> None:
        """Counted, never guessed; what follows is read."""
        self.emit([self.request(20)])
        self.emit_nonsense()
        self.emit([self.request(10)])
        source = self.open_source(self.PLACE, self.SINCE)
        assert self.poll_all(source) == [self.request(20), self.request(10)]
        health = source.health()
        assert (health.accepted, health.rejected) == (2, 1)
        assert health.last_rejection
        source.close()

    def test_health_names_the_newest_observation_not_the_last_read(self) -> None:
        """A late line does not make the source look older."""
        self.emit([self.request(10), self.request(300)])
        source = self.open_source(self.PLACE, self.SINCE)
        self.poll_all(source)
        assert source.health().last_at_mono_ns == self.request(10).at_mono_ns
        source.close()

    def test_a_new_source_over_the_same_span_sees_the_same(self) -> None:
        """A restarted officer reads again what it needs."""
        said = [self.request(30), self.request(20), self.request(10)]
        self.emit(said)
        first = self.open_source(self.PLACE, self.SINCE)
        assert self.poll_all(first) == said
        first.close()
        second = self.open_source(self.PLACE, self.SINCE)
        assert self.poll_all(second) == said
        second.close()

    def test_closing_twice_is_harmless(self) -> None:
        """Clean-up code may run twice."""
        source = self.open_source(self.PLACE, self.SINCE)
        source.close()
        source.close()
