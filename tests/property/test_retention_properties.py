"""Laws of retention (R19): the last verified checkpoint of any (service, env) never goes, whatever happened before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from rearguard.model.checkpoint import CheckpointPolicy
from rearguard.model.service import Digest, Place
from rearguard.model.time import NS_PER_S, Instant
from rearguard.rules.retention import Judged, Pin, PlaceView, Reason, Stored, judge
from rearguard.rules.retention import Keep as K

ENOUGH = 3
"""Rungs that a ladder has at most: few, so that the bound matters."""
SERVICES = ("fraud", "churn")
ENVS = ("prod", "stage")
START = Instant(wall_ns=1_800_000_000 * NS_PER_S, mono_ns=10**16, boot_id="boot")


@dataclass
class World:
    """A registry and its deployments, as simple as they can be."""

    now: Instant = START
    registered: list[Stored] = field(default_factory=list)
    served: dict[Place, list[Digest]] = field(
        default_factory=lambda: {Place(service=s, env=e): [] for s in SERVICES for e in ENVS}
    )
    quarantine: set[tuple[Place, Digest]] = field(default_factory=set)
    count: int = 0

    def of(self, service: str) -> list[Stored]:
        return [one for one in self.registered if one.service == service]

    def add(self, service: str, verified: bool, allowed: bool) -> None:
        self.count += 1
        self.registered.append(
            Stored(
                digest=Digest(f"sha256:{self.count:064x}"),
                service=service,
                version=f"v{self.count}",
                added_at=self.now,
                verified=verified,
                allowed=allowed,
            )
        )

    def proven(self, place: Place) -> set[Digest]:
        """Proven and not quarantined at the place."""
        return {c.digest for c in self.of(place.service) if c.verified and (place, c.digest) not in self.quarantine}

    def usable(self, place: Place) -> set[Digest]:
        """Of those, the ones that the policy allows by now."""
        return self.proven(place) & {c.digest for c in self.registered if c.allowed}

    def ways_back(self, place: Place) -> tuple[Digest, ...]:
        """What served besides what serves, and is not quarantined, newest first, proven or not."""
        here = {c.digest for c in self.registered} - set(self.served[place][-1:])
        past = dict.fromkeys(reversed(self.served[place]))
        return tuple(d for d in past if d in here and (place, d) not in self.quarantine)

    def ladder(self, place: Place) -> tuple[Digest, ...]:
        """What served before what serves, newest first: the rule of selection in one line."""
        return tuple(d for d in self.ways_back(place) if d in self.proven(place))

    def judged(self, policy: CheckpointPolicy) -> tuple[Judged, ...]:
        views, pins = [], []
        for place, past in self.served.items():
            active = past[-1] if past else None
            held = frozenset(d for p, d in self.quarantine if p == place)
            served = tuple(d for d in dict.fromkeys(reversed(past)) if d not in held)
            views.append(
                PlaceView(
                    place=place, active=active, ladder=self.ladder(place)[:ENOUGH], quarantined=held, served=served
                )
            )
            pins += [Pin(digest=d, reason=Reason(keep=K.QUARANTINED, about=str(place))) for d in held]
            if active is not None:
                pins.append(Pin(digest=active, reason=Reason(keep=K.ACTIVE, about=str(place))))
        return judge(self.registered, views, pins, policy, self.now)

    def prune(self, policy: CheckpointPolicy) -> set[Digest]:
        gone = {found.stored.digest for found in self.judged(policy) if not found.reasons}
        self.registered = [c for c in self.registered if c.digest not in gone]
        return gone


PLACES = st.sampled_from(
    [Place(service=s, env=e) for s, e in (("fraud", "prod"), ("fraud", "stage"), ("churn", "prod"))]
)
DEPLOY = st.tuples(st.just("deploy"), PLACES, st.integers(0, 30))
EVENTS = st.one_of(
    DEPLOY,
    DEPLOY,
    st.tuples(st.just("add"), st.sampled_from(SERVICES), st.sampled_from(((True, True), (True, False), (False, True)))),
    st.tuples(st.just("roll_back"), PLACES, st.just(0)),
    st.tuples(st.just("verdict"), st.integers(0, 30), st.booleans()),
    st.tuples(st.just("wait"), st.integers(-3, 40), st.just(0)),
    st.tuples(st.just("prune"), st.just(0), st.just(0)),
)
BEGINNINGS = st.lists(
    st.tuples(st.just("add"), st.sampled_from(SERVICES), st.just((True, True))), min_size=4, max_size=12
)
HISTORIES = st.builds(lambda first, then: [*first, *then], BEGINNINGS, st.lists(EVENTS, min_size=5, max_size=60))
POLICIES = st.builds(CheckpointPolicy, keep_last=st.integers(1, 3), keep_s=st.integers(1, 20))


def apply(world: World, event: tuple[str, object, object]) -> None:
    name, one, two = event
    if name == "add":
        assert isinstance(two, tuple)
        world.add(str(one), *two)
    elif name == "deploy":
        assert isinstance(one, Place)
        assert isinstance(two, int)
        proven = sorted(world.proven(one))
        if proven:
            world.served[one].append(proven[two % len(proven)])
    elif name == "roll_back":
        assert isinstance(one, Place)
        ladder = world.ladder(one)
        if ladder:
            world.quarantine.add((one, world.served[one][-1]))
            world.served[one].append(ladder[0])
    elif name == "verdict" and world.registered:
        assert isinstance(one, int)
        index = one % len(world.registered)
        old = world.registered[index]
        world.registered[index] = replace(old, verified=bool(two))
    elif name == "wait":
        assert isinstance(one, int)
        world.now = world.now.plus(one * NS_PER_S)


@settings(max_examples=400)
@given(HISTORIES, POLICIES)
def test_the_last_verified_checkpoint_of_a_place_never_goes(
    events: list[tuple[str, object, object]], policy: CheckpointPolicy
) -> None:
    """And neither does a rung of a ladder, what is active, what is quarantined, or the only way back while unproven."""
    world = World()
    for event in (*events, ("wait", 40, 0), ("prune", 0, 0)):
        if event[0] != "prune":
            apply(world, event)
            continue
        before = {p: (world.usable(p), world.ladder(p), world.ways_back(p)) for p in world.served}
        serving = {past[-1] for past in world.served.values() if past}
        held = {digest for _, digest in world.quarantine}
        gone = world.prune(policy)
        assert gone.isdisjoint(serving | held)
        for place, (usable, ladder, ways) in before.items():
            assert not usable or world.usable(place)
            assert world.ladder(place)[:ENOUGH] == ladder[:ENOUGH]
            assert world.ways_back(place)[:1] == ways[:1]
            if usable.isdisjoint(ways):
                assert world.ways_back(place) == ways
            else:
                assert not world.usable(place).isdisjoint(world.ways_back(place))


@given(HISTORIES, POLICIES)
def test_a_second_prune_right_after_the_first_removes_nothing(
    events: list[tuple[str, object, object]], policy: CheckpointPolicy
) -> None:
    world = World()
    for event in events:
        apply(world, event)
    world.now = world.now.plus(60 * NS_PER_S)
    world.prune(policy)
    assert world.prune(policy) == set()


@given(HISTORIES, POLICIES, st.sets(st.integers(0, 60)))
def test_what_stays_does_not_depend_on_how_much_was_taken_already(
    events: list[tuple[str, object, object]], policy: CheckpointPolicy, taken: set[int]
) -> None:
    """So a collection that died half way is completed by the next, and takes nothing more than the first would have."""
    world = World()
    for event in events:
        apply(world, event)
    world.now = world.now.plus(60 * NS_PER_S)
    may_go = [found.stored.digest for found in world.judged(policy) if not found.reasons]
    first = {digest for number, digest in enumerate(may_go) if number in taken}
    world.registered = [c for c in world.registered if c.digest not in first]
    assert first | world.prune(policy) == set(may_go)
