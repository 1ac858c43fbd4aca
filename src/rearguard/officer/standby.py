"""Keeps the best rollback target of each place loaded beside what serves, so that the next rollback needs no load.

Owns what is known of the standbys (table `standbys`, evidence on change, the figures of `/metrics`). What should stand
is decided by `rules.standby`; the target loads it. Laws: nothing is loaded at a place that is not armed, or is paused
(R30), nor while a run or a deploy is at work there; nothing is loaded whose bytes are not what was last proven, and
nothing stands whose bytes were written since; what is quarantined is no candidate and so never stands. A rollback waits for
nothing here: the house gives this job a thread of
its own, and a target that holds standbys lets an order go before a load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rearguard.checkpoints import registry, standbys
from rearguard.database import Connection, sql
from rearguard.errors import DependencyError, IntegrityError, RearguardError, RefusedError
from rearguard.evidence.log import append
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.model.settings import PlaceSettings
from rearguard.model.standby import StandbyState, WarmStandby
from rearguard.model.time import Instant
from rearguard.officer import checkpoints, deployments
from rearguard.officer.office import Office
from rearguard.ports import Standby, WarmTarget
from rearguard.recovery import effects
from rearguard.recovery.brakes import is_armed, pauses_at
from rearguard.recovery.candidates import candidates
from rearguard.rules import standby as rule
from rearguard.rules.brakes import Brake
from rearguard.rules.selection import Candidate

LOOK_EVERY_S = 3.0
"""Chosen: a lost standby is noticed about as fast as a breach, and one look costs one small request."""
MANY_TRIES = 16
"""As many, and the pause has its full length."""
UNSUPPORTED = "standby_unsupported"
_EVIDENCE = {StandbyState.STANDING: "standby_standing", StandbyState.LOST: "standby_lost"}


class StandbyKeeper:
    """The job. `look` is called by one thread; `rss_bytes` may be asked by any."""

    def __init__(self, office: Office, notify: Callable[[str, dict[str, Any]], None]) -> None:
        self._office = office
        self._notify = notify
        self._tries: dict[Place, rule.Tries] = {}
        self._rss: dict[Place, int] = {}

    def rss_bytes(self) -> dict[Place, int]:
        """Resident memory of each standby that stood at the last look, where the target tells it."""
        return dict(self._rss)

    def look(self) -> None:
        """One look at every place; loads what should stand and does not.

        A place that fails keeps no other waiting; the first failure is raised at the end.
        """
        failed: list[Exception] = []
        for settings in self._office.settings.places:
            if self._office.stopping.is_set():
                return
            try:
                if settings.standby:
                    self._look_at(settings)
                else:
                    self._forget(settings.place)
            except Exception as error:  # whatever it is, it is this place's; it is raised below
                failed.append(error)
        if failed:
            raise failed[0]

    def _look_at(self, settings: PlaceSettings) -> None:
        place = settings.place
        best, busy = self._best(place)
        if busy:
            return
        target, known = self._office.target_of(place), self._known(place)
        if not isinstance(target, WarmTarget):
            self._note(place, _unsupported(best, f"the adapter {settings.target.adapter} cannot hold a standby"), None)
            return
        if best is None:
            self._note(place, rule.judge(None, {}, known, untouched=True), None)
            self._unload_quarantined(place, target, None)
            return
        digest, now = best.checkpoint.digest, self._office.clock.now()
        if known is not None and known.state is StandbyState.UNSUPPORTED and not self._is_due(place, digest, now):
            return  # it may have been replaced by a server that can; that is seen in a while
        finding, held = self._ask(target, best, known)
        if finding.arm:
            finding = rule.held_back(finding, known, self._hands_off(place))
        if finding.state is StandbyState.UNSUPPORTED:
            self._tries[place] = rule.Tries(digest=digest, count=MANY_TRIES, last_at=now)
        elif finding.arm and self._is_due(place, digest, now):
            self._note(place, finding, None)
            finding, held = self._arm(place, target, best, finding)
        if finding.state is StandbyState.STANDING:
            self._settle(place)
        self._note(place, finding, next((s for s in held if s.digest == finding.digest), None))
        self._unload_quarantined(place, target, held)

    def _hands_off(self, place: Place) -> str:
        """Code of the brake that forbids to touch the target of a place, or empty; those that hold rollbacks alone do not."""
        with self._office.database.reading() as connection:
            if not is_armed(connection, place):
                return Brake.OBSERVE.value
            return Brake.PAUSED.value if pauses_at(connection, place) else ""

    def _is_due(self, place: Place, digest: Digest, now: Instant) -> bool:
        return rule.is_due(self._tries.get(place), digest, now)

    def _best(self, place: Place) -> tuple[Candidate | None, bool]:
        """The best rollback target, and whether somebody is at work at the place."""
        office = self._office
        with office.database.reading() as connection:
            if _is_busy(connection, place):
                return None, True
            active = deployments.newest(connection, place)
            selection = candidates(
                connection,
                place,
                active=active.digest if active else None,
                policy=office.settings.checkpoints,
                now=office.clock.now(),
            )
        return (selection.candidates[0] if selection.candidates else None), False

    def _ask(
        self, target: WarmTarget, best: Candidate, known: WarmStandby | None
    ) -> tuple[rule.Finding, tuple[Standby, ...]]:
        """What stands now; a target that does not answer has lost whatever stood."""
        try:
            held = target.standbys()
        except DependencyError as error:
            return (_unsupported(best, error.message) if error.code == UNSUPPORTED else _lost(best, error)), ()
        reasons = {s.digest: "" if s.ready else s.reason or "it is not ready" for s in held}
        return rule.judge(best, reasons, known, untouched=self._is_untouched(best.checkpoint)), held

    def _arm(
        self, place: Place, target: WarmTarget, best: Candidate, finding: rule.Finding
    ) -> tuple[rule.Finding, tuple[Standby, ...]]:
        """Have the target load it; what stands afterwards."""
        digest = best.checkpoint.digest
        try:
            if finding.reason == rule.BYTES_CHANGED and not (self._may_load(place) and self._let_go(target, digest)):
                return finding, ()
            checkpoint = self._proven(best.checkpoint)
            if not self._may_load(place):
                return finding, ()
            self._load(place, target, checkpoint)
        except RearguardError as error:
            return (_unsupported(best, error.message) if error.code == UNSUPPORTED else _lost(best, error)), ()
        finally:
            self._tries[place] = rule.after_try(self._tries.get(place), digest, self._office.clock.now())
        after, held = self._ask(target, best, None)  # what was known of it was known of the one before
        if after.state is StandbyState.NONE:
            detail = "the target took the order and does not hold it"
            after = replace(after, state=StandbyState.LOST, reason="standby_gone", detail=detail)
        return after, held

    def _proven(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint, its bytes untouched since the last proof by their receipt, or proven anew.

        Raises `IntegrityError` when they are not what was registered; the registry then holds the failure.
        """
        return checkpoint if self._is_untouched(checkpoint) else checkpoints.verify(self._office, checkpoint)

    def _is_untouched(self, checkpoint: Checkpoint) -> bool:
        """True when the stored files were not written since their last proof, by their receipt."""
        with self._office.database.reading() as connection:
            receipt = registry.receipt_of(connection, checkpoint.digest)
        try:
            return bool(receipt) and receipt == self._office.store.receipt(checkpoint.files)
        except IntegrityError:
            return False

    def _unload_quarantined(self, place: Place, target: WarmTarget, held: tuple[Standby, ...] | None) -> None:
        """End what was rolled back here and is loaded still; the target keeps it while nothing else answers.

        `held` is what the target holds, None when it was not asked.
        """
        with self._office.database.reading() as connection:
            quarantined = registry.quarantined(connection, place)
        if not quarantined:
            return
        if held is None:
            try:
                held = target.standbys()
            except DependencyError:
                return  # a target that does not answer is told elsewhere, and asked again at the next look
        for digest in (s.digest for s in held if s.digest in quarantined):
            if self._may_load(place) and self._let_go(target, digest):
                self._notify("standby_unloaded", {"place": str(place), "digest": digest})

    def _let_go(self, target: WarmTarget, digest: Digest) -> bool:
        """Have the target unload it; False when it refuses (the last one that answers stays) or does not answer."""
        try:
            target.unload(digest)
        except (RefusedError, DependencyError):
            return False  # asked again at a later look
        return True

    def _may_load(self, place: Place) -> bool:
        if self._office.stopping.is_set() or not self._office.held() or self._hands_off(place):
            return False
        with self._office.database.reading() as connection:
            return not _is_busy(connection, place)

    def _load(self, place: Place, target: WarmTarget, checkpoint: Checkpoint) -> None:
        office = self._office
        with office.database.reading() as connection:
            epoch = connection.execute(
                sql("SELECT epoch FROM places WHERE service = :s AND env = :e"), {"s": place.service, "e": place.env}
            ).scalar()
        order = effects.activation(
            office.recovery_context(), checkpoint, epoch=int(epoch or 0), key=f"standby:{checkpoint.digest}"
        )
        self._notify("standby_loading", {"place": str(place), "version": checkpoint.version})
        target.prepare(order, checkpoint.peak_rss_bytes)

    def _settle(self, place: Place) -> None:
        left = rule.after_standing(self._tries.get(place), self._office.clock.now())
        if left is None:
            self._tries.pop(place, None)

    def _known(self, place: Place) -> WarmStandby | None:
        with self._office.database.reading() as connection:
            return standbys.get(connection, place)

    def _note(self, place: Place, finding: rule.Finding, held: Standby | None) -> None:
        """Keep what was found; evidence when it stands, or is lost, and did not before."""
        office = self._office
        rss = held.rss_bytes if held is not None and finding.state is StandbyState.STANDING else None
        if rss is None:
            self._rss.pop(place, None)
        else:
            self._rss[place] = rss
        known = self._known(place)
        if known is not None and _key(known) == _key(finding):
            return
        now = office.clock.now()
        note = WarmStandby(
            place=place,
            digest=finding.digest,
            version=finding.version,
            state=finding.state,
            reason=finding.reason,
            detail=finding.detail[:500],
            since=now,
        )
        told = known is None or (known.state, known.digest) != (finding.state, finding.digest)
        kind = _EVIDENCE.get(finding.state) if told else None
        body: dict[str, Any] = {"digest": finding.digest, "version": finding.version}
        if finding.state is StandbyState.STANDING:
            body["rss_bytes"] = rss
        else:
            body.update(reason=finding.reason, message=finding.detail[:500])
        with office.database.transaction() as connection:
            standbys.put(connection, note)
            if kind is not None:
                append(connection, now=now, kind=kind, body=body, place=place, run_id=office.ids.run_id())
        office.publish(registry_changed=True)
        if kind is not None:
            self._notify(kind, {"place": str(place), **body})

    def _forget(self, place: Place) -> None:
        if self._known(place) is not None:
            with self._office.database.transaction() as connection:
                standbys.forget(connection, place)


def _key(value: WarmStandby | rule.Finding) -> tuple[StandbyState, Digest | None, str]:
    """What makes a change; words that hold figures do not."""
    return value.state, value.digest, value.reason


def _lost(best: Candidate, error: RearguardError) -> rule.Finding:
    return rule.Finding(
        state=StandbyState.LOST,
        digest=best.checkpoint.digest,
        version=best.checkpoint.version,
        reason=error.code,
        detail=error.message,
    )


def _unsupported(best: Candidate | None, why: str) -> rule.Finding:
    return rule.Finding(
        state=StandbyState.UNSUPPORTED,
        digest=best.checkpoint.digest if best is not None else None,
        version=best.checkpoint.version if best is not None else "",
        reason=UNSUPPORTED,
        detail=why,
    )


def _is_busy(connection: Connection, place: Place) -> bool:
    """True while a run is at work at a place, or about to be, or a deploy is."""
    return bool(
        connection.execute(
            sql(
                "SELECT EXISTS (SELECT 1 FROM places WHERE service = :s AND env = :e AND open_run_id IS NOT NULL) "
                "OR EXISTS (SELECT 1 FROM runs WHERE service = :s AND env = :e AND (state = 'running' "
                "OR (state = 'requested' AND approval != 'needed'))) "
                "OR EXISTS (SELECT 1 FROM deployments WHERE service = :s AND env = :e AND state = 'activating' "
                "AND source = 'deploy')"
            ),
            {"s": place.service, "e": place.env},
        ).scalar()
    )
