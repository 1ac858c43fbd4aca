"""What every target promises; see the package."""

from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from rearguard.errors import (
    RefusedError,
    TransientTargetError,
)
from rearguard.ports import Activation, Target, WarmTarget

_epochs = itertools.count(1)


class TargetConformance:
    """The promises of `rearguard.ports.Target`.

    The suite sets epoch and key of each order itself, so one served target may be shared by all its tests.
    """

    can_compare_epochs = True
    """False for a target that has nowhere to keep an epoch: stale orders are then not refused."""
    tells_digest = True
    """False for a target whose answers do not say which digest computed them."""
    first_epoch = 0
    """Added to every epoch, for a target that has seen orders before."""
    probe_timeout_s = 10.0

    @pytest.fixture
    def target(self) -> Target:
        """Override: the live target."""
        raise NotImplementedError("override the fixture `target`")

    @pytest.fixture
    def orders(self) -> tuple[Activation, Activation]:
        """Override: two orders with different digests, both of which can be served."""
        raise NotImplementedError("override the fixture `orders`")

    @pytest.fixture
    def golden(self) -> dict[str, Any]:
        """Override: a V2 request that both checkpoints answer."""
        raise NotImplementedError("override the fixture `golden`")

    @pytest.fixture
    def dead_target(self) -> Target:
        """Override: a target that nobody answers for."""
        raise NotImplementedError("override the fixture `dead_target`")

    def issue(self, order: Activation) -> Activation:
        """`order` with the next epoch and a key of its own."""
        number = next(_epochs)
        return replace(order, epoch=self.first_epoch + number, key=f"conformance:{number}")

    def test_an_activated_digest_is_the_active_one(self, target: Target, orders: tuple[Activation, Activation]) -> None:
        """`activate` returns once the digest is served."""
        target.activate(self.issue(orders[0]))
        assert target.active() == orders[0].digest

    def test_a_later_order_replaces_an_earlier_one(self, target: Target, orders: tuple[Activation, Activation]) -> None:
        """One checkpoint is active at a time."""
        target.activate(self.issue(orders[0]))
        target.activate(self.issue(orders[1]))
        assert target.active() == orders[1].digest

    def test_a_target_goes_back_to_what_it_served_before(
        self, target: Target, orders: tuple[Activation, Activation]
    ) -> None:
        """A rollback is an activation of the earlier digest."""
        for order in (orders[0], orders[1], orders[0]):
            target.activate(self.issue(order))
        assert target.active() == orders[0].digest

    def test_the_same_key_again_changes_nothing(self, target: Target, orders: tuple[Activation, Activation]) -> None:
        """A second call with the key of the last order succeeds and leaves the digest."""
        order = self.issue(orders[0])
        target.activate(order)
        target.activate(order)
        assert target.active() == order.digest

    def test_a_lower_epoch_is_refused(self, target: Target, orders: tuple[Activation, Activation]) -> None:
        """An order of an officer that was replaced is refused and changes nothing."""
        if not self.can_compare_epochs:
            pytest.skip("this target cannot compare epochs")
        stale = self.issue(orders[1])
        target.activate(self.issue(orders[0]))
        with pytest.raises(RefusedError) as refused:
            target.activate(stale)
        assert refused.value.code == "target_epoch_stale"
        assert target.active() == orders[0].digest

    def test_a_probe_names_the_digest_that_answered(
        self, target: Target, orders: tuple[Activation, Activation], golden: dict[str, Any]
    ) -> None:
        """After each switch the data plane answers with the new digest, or with None if it cannot tell."""
        for order in orders:
            target.activate(self.issue(order))
            answer = target.probe(golden, self.probe_timeout_s)
            assert answer.digest == (order.digest if self.tells_digest else None)

    def test_a_probe_brings_the_outputs_and_its_latency(
        self, target: Target, orders: tuple[Activation, Activation], golden: dict[str, Any]
    ) -> None:
        """The response is a V2 response and took some time."""
        target.activate(self.issue(orders[0]))
        answer = target.probe(golden, self.probe_timeout_s)
        assert all({"name", "shape", "datatype", "data"} <= set(output) for output in answer.response["outputs"])
        assert answer.latency_ms > 0

    def test_a_probe_leaves_the_request_as_it_was(
        self, target: Target, orders: tuple[Activation, Activation], golden: dict[str, Any]
    ) -> None:
        """The id of the probe is set on a copy."""
        target.activate(self.issue(orders[0]))
        before = copy.deepcopy(golden)
        target.probe(golden, self.probe_timeout_s)
        assert golden == before

    def test_several_threads_may_ask_at_once(
        self, target: Target, orders: tuple[Activation, Activation], golden: dict[str, Any]
    ) -> None:
        """Probes and `active` from four threads all answer."""
        target.activate(self.issue(orders[0]))
        with ThreadPoolExecutor(4) as pool:
            probes = [pool.submit(target.probe, golden, self.probe_timeout_s) for _ in range(4)]
            asked = [pool.submit(target.active) for _ in range(4)]
            assert all(p.result().response["outputs"] for p in probes)
            assert {a.result() for a in asked} == {orders[0].digest}

    def test_a_dead_target_is_transient_on_activate(
        self, dead_target: Target, orders: tuple[Activation, Activation]
    ) -> None:
        """Nobody answered: the next try may succeed."""
        with pytest.raises(TransientTargetError):
            dead_target.activate(self.issue(orders[0]))

    def test_a_dead_target_is_transient_on_active(self, dead_target: Target) -> None:
        """Silence is never 'nothing is served'."""
        with pytest.raises(TransientTargetError):
            dead_target.active()

    def test_a_dead_target_is_transient_on_probe(self, dead_target: Target, golden: dict[str, Any]) -> None:
        """Nobody answered: the next try may succeed."""
        with pytest.raises(TransientTargetError):
            dead_target.probe(golden, 2.0)

    def test_closing_twice_is_harmless(self, dead_target: Target) -> None:
        """`close` lets go of what is still held."""
        dead_target.close()
        dead_target.close()


class WarmTargetConformance(TargetConformance):
    """The promises of `rearguard.ports.WarmTarget`, beside those of a target.

    The served target must keep one standby at least.
    """

    @pytest.fixture
    def target(self) -> WarmTarget:
        """Override: the live target."""
        raise NotImplementedError("override the fixture `target`")

    @pytest.fixture
    def dead_target(self) -> WarmTarget:
        """Override: a target that nobody answers for."""
        raise NotImplementedError("override the fixture `dead_target`")

    def test_a_prepared_digest_stands_and_traffic_does_not_move(
        self, target: WarmTarget, orders: tuple[Activation, Activation]
    ) -> None:
        """`prepare` returns once it is ready beside the active one."""
        target.activate(self.issue(orders[0]))
        target.prepare(self.issue(orders[1]), None)
        assert [s.ready for s in target.standbys() if s.digest == orders[1].digest] == [True]
        assert target.active() == orders[0].digest

    def test_the_active_digest_is_no_standby(self, target: WarmTarget, orders: tuple[Activation, Activation]) -> None:
        """Preparing what is active changes nothing, and `standbys` leaves it out."""
        target.activate(self.issue(orders[0]))
        target.prepare(self.issue(orders[0]), None)
        assert orders[0].digest not in {s.digest for s in target.standbys()}
        assert target.active() == orders[0].digest

    def test_preparing_twice_is_like_once(self, target: WarmTarget, orders: tuple[Activation, Activation]) -> None:
        """A digest stands once."""
        target.activate(self.issue(orders[0]))
        target.prepare(self.issue(orders[1]), None)
        target.prepare(self.issue(orders[1]), None)
        assert [s.digest for s in target.standbys()].count(orders[1].digest) == 1

    def test_what_is_unloaded_stands_no_more(self, target: WarmTarget, orders: tuple[Activation, Activation]) -> None:
        """Unloading twice is like once, and traffic does not move."""
        target.activate(self.issue(orders[0]))
        target.prepare(self.issue(orders[1]), None)
        target.unload(orders[1].digest)
        target.unload(orders[1].digest)
        assert orders[1].digest not in {s.digest for s in target.standbys()}
        assert target.active() == orders[0].digest

    def test_the_active_digest_is_not_unloaded(self, target: WarmTarget, orders: tuple[Activation, Activation]) -> None:
        """It is refused, and goes on answering."""
        target.activate(self.issue(orders[0]))
        with pytest.raises(RefusedError):
            target.unload(orders[0].digest)
        assert target.active() == orders[0].digest

    def test_a_switch_to_what_stands_is_warm(self, target: WarmTarget, orders: tuple[Activation, Activation]) -> None:
        """A target that tells says that no load was needed."""
        target.activate(self.issue(orders[0]))
        target.prepare(self.issue(orders[1]), None)
        told = target.activate(self.issue(orders[1]))
        assert told is None or told.warm is not False
        assert target.active() == orders[1].digest

    def test_a_lower_epoch_prepares_nothing(self, target: WarmTarget, orders: tuple[Activation, Activation]) -> None:
        """An officer that was replaced prepares nothing either."""
        if not self.can_compare_epochs:
            pytest.skip("this target cannot compare epochs")
        stale = self.issue(orders[1])
        target.activate(self.issue(orders[0]))
        with pytest.raises(RefusedError) as refused:
            target.prepare(stale, None)
        assert refused.value.code == "target_epoch_stale"

    def test_preparing_raises_no_epoch(self, target: WarmTarget, orders: tuple[Activation, Activation]) -> None:
        """An order with the epoch of before is still obeyed afterwards."""
        first, later = self.issue(orders[0]), self.issue(orders[1])
        target.activate(first)
        target.prepare(later, None)
        target.activate(replace(orders[1], epoch=first.epoch, key=f"{first.key}:again"))
        assert target.active() == orders[1].digest

    def test_a_dead_target_is_transient_on_prepare(
        self, dead_target: WarmTarget, orders: tuple[Activation, Activation]
    ) -> None:
        """Nobody answered: the next try may succeed."""
        with pytest.raises(TransientTargetError):
            dead_target.prepare(self.issue(orders[0]), None)

    def test_a_dead_target_is_transient_on_standbys(self, dead_target: WarmTarget) -> None:
        """Silence is never 'nothing stands'."""
        with pytest.raises(TransientTargetError):
            dead_target.standbys()
