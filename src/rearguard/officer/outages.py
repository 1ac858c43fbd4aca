"""Silence and a dead data plane: a place whose telemetry went quiet is asked whether it still answers (R31).

Silence alone is never a breach. Silence and failed probes over the same span are one, of the error trigger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rearguard.checkpoints import golden, registry
from rearguard.errors import IntegrityError, RearguardError
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.outcome import Outcome
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant
from rearguard.officer.housekeeping import Notify
from rearguard.officer.office import Office
from rearguard.watch.watcher import PlaceWatch

DATA_PLANE_FAILURES = 3
"""Failed probes in a row, one a housekeeping turn, before silence becomes a breach of the error trigger (R31)."""
DOWN_PROBE_EVERY_S = 5.0
"""Between probes of a place whose outage became an incident: a hanging target must not hold up the house. Chosen."""

Breached = Callable[[PlaceWatch, Digest, Judgement, Instant], None]
"""Told of an outage that has become a breach."""


@dataclass
class _DataPlane:
    """Probes of one silent place; the housekeeper's, a new one after each silence."""

    failures: int = 0
    probed_ns: int = 0
    reported: bool = False


class Outages:
    """Probes of silent places. `look` is called by one thread, `heard` by another."""

    def __init__(self, office: Office, watches: Mapping[Place, PlaceWatch], notify: Notify, breached: Breached) -> None:
        self._office = office
        self._watches = watches
        self._notify = notify
        self._breached = breached
        self._planes = {place: _DataPlane() for place in watches}
        self._down: set[Place] = set()
        """Places whose last probe failed; only `look` touches it."""

    def heard(self, place: Place) -> None:
        """Telemetry is back: what was counted in its silence is over."""
        self._planes[place] = _DataPlane()

    def look(self) -> None:
        """Probe each place that is silent, or was down at the last look.

        A place that fails keeps no other waiting; the first failure is raised at the end.
        """
        failed: list[Exception] = []
        for place, place_watch in self._watches.items():
            try:
                self._look_at(place, place_watch)
            except Exception as error:  # whatever it is, it is this place's; it is raised below
                failed.append(error)
        if failed:
            raise failed[0]

    def _look_at(self, place: Place, place_watch: PlaceWatch) -> None:
        plane = self._planes[place]
        digest = place_watch.digest
        silent = place_watch.silent_since is not None
        down = place in self._down
        if digest is None or not (silent or down):
            return
        now_ns = self._office.clock.now().mono_ns
        if plane.reported and now_ns - plane.probed_ns < DOWN_PROBE_EVERY_S * NS_PER_S:
            return
        answers = self._answers(place, digest)
        plane.probed_ns = self._office.clock.now().mono_ns
        if answers:
            plane.failures = 0
            if down:
                self._down.discard(place)
                self._notify("target_back", {"place": str(place)})
            return
        if not down:
            self._down.add(place)
            self._notify("target_unreachable", {"place": str(place)})
        if not silent:
            return
        plane.failures += 1
        if plane.failures >= DATA_PLANE_FAILURES:
            # Told again at each failed probe: what a brake held back begins once the brake lets go.
            plane.reported = True
            now = self._office.clock.now()
            self._breached(place_watch, digest, _unreachable(place_watch, digest, now), now)

    def _answers(self, place: Place, digest: Digest) -> bool:
        with self._office.database.reading() as connection:
            known = registry.get(connection, digest)
        target = self._office.target_of(place)
        try:
            if known is None or not known.golden_sha256:
                return target.active() is not None
            recorded = golden.decode(self._office.store.get_bytes(known.golden_sha256))
            target.probe(recorded.requests[0], 2.0)
        except IntegrityError:
            return True  # our own copy of the question is damaged; that says nothing of the service
        except RearguardError:
            return False
        return True


def _unreachable(place_watch: PlaceWatch, digest: Digest, now: Instant) -> Judgement:
    """Silence and a dead data plane over the same span are a breach of the error trigger (R31)."""
    since = place_watch.silent_since or now
    return Judgement(
        trigger=Trigger.ERRORS,
        digest=digest,
        outcome=Outcome.FAIL,
        reason="data_plane_down",
        window_start_s=since.mono_ns // NS_PER_S,
        window_end_s=now.mono_ns // NS_PER_S,
        samples=DATA_PLANE_FAILURES,
        exceedances=DATA_PLANE_FAILURES,
        observed=None,
        limit=place_watch.feed.limits_of(digest).error_limit_ratio,
        streak=1,
        first_bad_mono_ns=since.mono_ns,
    )
