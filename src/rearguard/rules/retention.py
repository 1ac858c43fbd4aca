"""Which checkpoints may go, and why each of the others stays (R19): a decision about values, without a disk or a clock.

Whoever asks gathers what is pinned and what a rollback could choose; what happens to a checkpoint that may go is theirs too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from rearguard.model.checkpoint import CheckpointPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant, elapsed


class Keep(Enum):
    """Why a checkpoint stays, in the order in which the reasons are told."""

    ACTIVE = "active"
    """It is in front of traffic, or on its way there, and no other one has followed."""
    STANDBY = "standby"
    """It is, or should be, loaded beside the active one."""
    QUARANTINED = "quarantined"
    """It was rolled back: it is evidence."""
    RUN = "open_run"
    """A run that has not ended names it: as origin, target, wish, candidate, or in the plan that is approved."""
    INCIDENT = "open_incident"
    LADDER = "ladder"
    """A rollback could choose it now."""
    SERVED = "served"
    """It served at the place and was not rolled back since: the newest besides what is active there, whatever its proof
    says, and the newest that may be used; all of them while none may. A proof can be got back, bytes cannot."""
    LAST_VERIFIED = "last_verified"
    """The newest one that is proven, and may be used at the place; also the newest besides what is active there."""
    NOTHING_PROVEN = "nothing_proven"
    """No checkpoint of the service is proven for some place: until one is, none of them goes."""
    NEWEST = "newest"
    """Among the `keep_last` newest of its service."""
    YOUNG = "young"
    """Registered less than `keep` ago, or in the future."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What retention asks of a checkpoint."""

    digest: Digest
    service: str
    version: str
    added_at: Instant
    verified: bool
    """Its last verification passed."""
    allowed: bool
    """The policy allows loading its format."""

    @property
    def usable(self) -> bool:
        """A place could be led back to it."""
        return self.verified and self.allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason, and the place, run or incident that it is about; empty for the service as a whole."""

    keep: Keep
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Something names this checkpoint."""

    digest: Digest
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceView:
    """What a place could be rolled back to."""

    place: Place
    active: Digest | None
    ladder: tuple[Digest, ...]
    """Every candidate, best first, as a rollback would select them now."""
    quarantined: frozenset[Digest]
    served: tuple[Digest, ...]
    """What served here and was neither rolled back since nor is quarantined, newest first, whatever its proof says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A checkpoint and why it stays; no reason: it may go."""

    stored: Stored
    reasons: tuple[Reason, ...]


def judge(
    stored: Sequence[Stored], places: Iterable[PlaceView], pins: Iterable[Pin], policy: CheckpointPolicy, now: Instant
) -> tuple[Judged, ...]:
    """Every checkpoint with its reasons, in the order given: oldest registered first.

    Laws: as long as one checkpoint of a (service, env) is proven and not quarantined there, one of them stays (R19). As
    long as one besides the active served there and was not rolled back, one of them stays, and all until one is proven.
    Whatever of what may go is taken away, nothing else may go then: a second look finds nothing.
    """
    reasons: dict[Digest, list[Reason]] = defaultdict(list)
    for pin in pins:
        reasons[pin.digest].append(pin.reason)
    by_service: dict[str, list[Stored]] = defaultdict(list)
    for one in stored:
        by_service[one.service].append(one)
    unproven: dict[str, str] = {}
    for view in places:
        of_service = by_service.get(view.place.service, [])
        for digest, reason in _for_place(view, of_service):
            reasons[digest].append(reason)
        if not any(one.usable and one.digest not in view.quarantined for one in of_service):
            unproven.setdefault(view.place.service, str(view.place))
    for service, of_service in by_service.items():
        for one in of_service[-policy.keep_last :]:
            reasons[one.digest].append(Reason(keep=Keep.NEWEST))
        if service in unproven:
            for one in of_service:
                reasons[one.digest].append(Reason(keep=Keep.NOTHING_PROVEN, about=unproven[service]))
    for one in stored:
        if elapsed(one.added_at, now).ns < policy.keep_s * NS_PER_S:
            reasons[one.digest].append(Reason(keep=Keep.YOUNG))
    return tuple(Judged(stored=one, reasons=_told(reasons.get(one.digest, ()))) for one in stored)


def _for_place(view: PlaceView, of_service: Sequence[Stored]) -> Iterator[tuple[Digest, Reason]]:
    about = str(view.place)
    for digest in view.ladder:
        yield digest, Reason(keep=Keep.LADDER, about=about)
    usable = [one.digest for one in of_service if one.usable and one.digest not in view.quarantined]
    beside = [digest for digest in usable if digest != view.active]
    for digest in {*usable[-1:], *beside[-1:]}:
        yield digest, Reason(keep=Keep.LAST_VERIFIED, about=about)
    for digest in _ways_back(view, of_service, frozenset(usable)):
        yield digest, Reason(keep=Keep.SERVED, about=about)


def _ways_back(view: PlaceView, of_service: Sequence[Stored], usable: frozenset[Digest]) -> set[Digest]:
    here = {one.digest for one in of_service}
    served = [digest for digest in view.served if digest in here and digest != view.active]
    fit = [digest for digest in served if digest in usable]
    return {*served[:1], *fit[:1]} if fit else set(served)


_ORDER = {keep: number for number, keep in enumerate(Keep)}


def _told(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    return tuple(sorted(set(reasons), key=lambda reason: (_ORDER[reason.keep], reason.about)))
