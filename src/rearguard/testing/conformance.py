"""What every adapter promises, as pytest classes to inherit from.

Subclass one in a test module, under a name that starts with `Test`, and override its fixtures::

    class TestMyTarget(TargetConformance):
        @pytest.fixture
        def target(self): ...
        @pytest.fixture
        def orders(self): ...
        @pytest.fixture
        def golden(self): ...
        @pytest.fixture
        def dead_target(self): ...
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rearguard.errors import (
    DependencyError,
    IntegrityError,
    RearguardError,
    RefusedError,
    TransientTargetError,
    UsageError,
)
from rearguard.loaders import Model, answer, get_format, get_loader
from rearguard.loaders.detection import detect
from rearguard.model.model_format import ModelFormat
from rearguard.ports import Activation, CheckpointCopy, Target, WarmTarget

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


class LoaderConformance:
    """The promises of a model format: its `ModelFormat`, and the loader that it names."""

    format_name = ""
    """Override: the entry point's name in the group `rearguard.loaders`."""
    sandbox_memory_bytes = 4 << 30
    """Of a format that runs code."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Override: a folder that holds one good model."""
        raise NotImplementedError("override the fixture `folder`")

    @pytest.fixture
    def broken_folder(self, tmp_path: Path) -> Path:
        """Override: a folder of the same file names with bytes that are no model."""
        raise NotImplementedError("override the fixture `broken_folder`")

    @pytest.fixture
    def requests(self) -> list[dict[str, Any]]:
        """Override for a format that predicts: V2 requests that the model answers."""
        return []

    @property
    def format(self) -> ModelFormat:
        """The value behind the entry point."""
        return get_format(self.format_name)

    def probe(self, folder: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """What a fresh process says of the folder, as the product asks it."""
        order: dict[str, Any] = {"path": str(folder), "format": self.format_name, "requests": requests}
        if self.format.runs_code:
            order["sandbox"] = {"memory_bytes": self.sandbox_memory_bytes, "cpu_s": 60}
        command = [sys.executable, "-P", "-m", "rearguard.loaders.probe"]
        ended = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        said: dict[str, Any] = json.loads(ended.stdout)
        return said

    def test_its_description_imports_no_library(self) -> None:
        """The officer looks at formats without loading what they need."""
        program = (
            "import sys; from rearguard.loaders import get_format; from importlib.metadata import packages_distributions\n"
            f"found = get_format({self.format_name!r}); loaded = {{n.partition('.')[0] for n in sys.modules}}\n"
            "owners = packages_distributions()\n"
            "print(sorted(n for n in loaded if set(owners.get(n, ())) & set(found.libraries)))\n"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert ended.stdout.strip() == "[]", ended.stderr

    def test_its_folder_is_recognised(self, folder: Path) -> None:
        """By names and first bytes, and as nothing else."""
        assert detect(folder, (self.format_name,)).name == self.format_name

    def test_two_fresh_processes_agree(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """R17: the same state, the same answers."""
        first, second = self.probe(folder, requests), self.probe(folder, requests)
        assert first["ok"], first
        assert (first["state_sha256"], first["answers"]) == (second["state_sha256"], second["answers"])

    def test_something_can_be_compared(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """It answers, or tells its state, as its description says; with neither nothing could ever be proven."""
        said = self.probe(folder, requests)
        assert bool(said["answers"]) == self.format.predicts
        assert bool(re.fullmatch("[0-9a-f]{64}", said["state_sha256"])) == self.format.tells_state
        assert said["answers"] or said["state_sha256"]

    def test_its_libraries_are_named_with_their_versions(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """What loaded the model is recorded with the proof."""
        assert bool(self.probe(folder, requests)["libraries"]) == bool(self.format.libraries)

    def test_loading_changes_nothing_in_the_folder(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        """It is what was hashed, and read-only in the store."""
        before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}
        self.probe(folder, requests)
        assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))} == before

    def test_broken_bytes_are_refused_in_words(self, broken_folder: Path) -> None:
        """The library's own exception stops at the loader."""
        said = self.probe(broken_folder, [])
        assert (said["ok"], said["code"] in ("load_failed", "model_failed")) == (False, False), said

    def test_an_empty_folder_is_refused_in_words(self, tmp_path: Path) -> None:
        """As any other mistake."""
        (tmp_path / "empty").mkdir()
        assert self.probe(tmp_path / "empty", [])["code"] == "unknown_format"

    def test_a_request_that_it_does_not_know_is_the_clients_mistake(self, folder: Path) -> None:
        """`bad_tensor`, never a failure of the model."""
        if not self.format.predicts or self.format.runs_code:
            pytest.skip("this format answers nothing, or not in this process")
        model = get_loader(self.format_name)(folder, ())
        assert isinstance(model, Model)
        wrong = {"name": "no-such-input", "shape": [1, 1, 1, 1], "datatype": "BOOL", "data": [True]}
        with pytest.raises(UsageError) as refused:
            answer(model, {"inputs": [wrong]})
        assert refused.value.code == "bad_tensor"

    def test_code_is_run_in_the_sandbox_only(self, folder: Path) -> None:
        """A format that runs code refuses to be loaded in any other process."""
        if not self.format.runs_code:
            pytest.skip("this format runs no code")
        with pytest.raises(RearguardError) as refused:
            get_loader(self.format_name)(folder, ())
        assert refused.value.code == "sandbox_unavailable"


class CheckpointCopyConformance:
    """The promises of `rearguard.ports.CheckpointCopy`."""

    @pytest.fixture
    def place(self) -> CheckpointCopy:
        """Override: an empty place that was never taken into use."""
        raise NotImplementedError("override the fixture `place`")

    @pytest.fixture
    def same_place(self) -> CheckpointCopy:
        """Override: the place of `place`, opened anew for the same store."""
        raise NotImplementedError("override the fixture `same_place`")

    @pytest.fixture
    def foreign_place(self) -> CheckpointCopy:
        """Override: the place of `place`, opened for another store."""
        raise NotImplementedError("override the fixture `foreign_place`")

    @pytest.fixture
    def absent_place(self) -> CheckpointCopy:
        """Override: a place that is not there."""
        raise NotImplementedError("override the fixture `absent_place`")

    def spoil(self, place: CheckpointCopy, sha256: str) -> None:
        """Override: change one byte of a blob behind the adapter's back."""
        raise NotImplementedError("override `spoil`")

    content = b"0123456789abcdef" * 70_001
    """More than a megabyte, and no multiple of a block."""

    @property
    def name(self) -> str:
        """The digest of `content`."""
        return hashlib.sha256(self.content).hexdigest()

    def ready(self, place: CheckpointCopy) -> CheckpointCopy:
        """Taken into use, with one blob."""
        place.prepare(known=False, anew=False)
        place.put(self.name, [self.content[:1000], b"", self.content[1000:]])
        return place

    def test_what_was_put_is_there_and_right(self, place: CheckpointCopy) -> None:
        """Also for whoever opens the place anew."""
        self.ready(place).verify(self.name, len(self.content))
        assert list(place.list()) == [self.name]
        assert b"".join(place.open(self.name)) == self.content

    def test_an_empty_blob_is_kept_too(self, place: CheckpointCopy) -> None:
        """A file of no bytes is a file."""
        place.prepare(known=False, anew=False)
        empty = hashlib.sha256(b"").hexdigest()
        place.put(empty, [])
        place.verify(empty, 0)
        assert b"".join(place.open(empty)) == b""

    def test_preparing_again_keeps_everything(self, place: CheckpointCopy, same_place: CheckpointCopy) -> None:
        """The next process goes on."""
        self.ready(place)
        same_place.prepare(known=True, anew=False)
        same_place.verify(self.name, len(self.content))

    def test_putting_again_changes_nothing(self, place: CheckpointCopy) -> None:
        """Idempotent by content."""
        self.ready(place).put(self.name, [self.content])
        assert list(place.list()) == [self.name]

    def test_bytes_that_are_not_what_the_name_says_are_not_kept(self, place: CheckpointCopy) -> None:
        """And what stood there under the name stays."""
        self.ready(place)
        for name in (self.name, "0" * 64):
            with pytest.raises(IntegrityError) as refused:
                place.put(name, [b"other"])
            assert refused.value.code == "blob_altered"
        assert list(place.list()) == [self.name]
        place.verify(self.name, len(self.content))

    def test_a_source_that_fails_leaves_nothing(self, place: CheckpointCopy) -> None:
        """The failure is the caller's own."""

        def chunks() -> Iterator[bytes]:
            yield b"begun"
            raise IntegrityError("blob_unreadable", "of the source")

        place.prepare(known=False, anew=False)
        with pytest.raises(IntegrityError) as failed:
            place.put(self.name, chunks())
        assert failed.value.message == "of the source"
        assert list(place.list()) == []

    def test_an_altered_blob_is_found_and_can_be_replaced(self, place: CheckpointCopy) -> None:
        """Reading back tells; a put mends."""
        self.spoil(self.ready(place), self.name)
        with pytest.raises(IntegrityError) as found:
            place.verify(self.name, len(self.content))
        assert found.value.code == "blob_altered"
        place.put(self.name, [self.content])
        place.verify(self.name, len(self.content))

    def test_a_missing_blob_is_named_so(self, place: CheckpointCopy) -> None:
        """Both ways of reading."""
        self.ready(place).remove(self.name)
        for read in (lambda: place.verify(self.name, 1), lambda: list(place.open(self.name))):
            with pytest.raises(IntegrityError) as found:
                read()
            assert found.value.code == "blob_missing"

    def test_removing_twice_is_as_good_as_once(self, place: CheckpointCopy) -> None:
        """Idempotent."""
        self.ready(place).remove(self.name)
        place.remove(self.name)
        assert list(place.list()) == []

    def test_a_published_file_is_no_blob(self, place: CheckpointCopy) -> None:
        """Twice, to replace it."""
        self.ready(place).publish("registry.yaml", b"one")
        place.publish("registry.yaml", b"two")
        assert list(place.list()) == [self.name]

    def test_the_copy_of_another_store_is_refused(self, place: CheckpointCopy, foreign_place: CheckpointCopy) -> None:
        """Nothing of it is touched, not even when somebody says that the disk is new."""
        self.ready(place)
        for anew in (False, True):
            with pytest.raises(RefusedError) as refused:
                foreign_place.prepare(known=False, anew=anew)
            assert refused.value.code == "mirror_foreign"
        place.verify(self.name, len(self.content))

    def test_an_empty_place_that_was_known_is_refused_until_somebody_says_so(self, place: CheckpointCopy) -> None:
        """A mount point without its disk."""
        with pytest.raises(DependencyError) as refused:
            place.prepare(known=True, anew=False)
        assert refused.value.code == "mirror_unavailable"
        place.prepare(known=True, anew=True)

    def test_a_place_that_is_not_there_is_unavailable(self, absent_place: CheckpointCopy) -> None:
        """And is not made."""
        with pytest.raises(DependencyError) as refused:
            absent_place.prepare(known=False, anew=False)
        assert refused.value.code == "mirror_unavailable"

    def test_it_names_its_storage(self, place: CheckpointCopy) -> None:
        """R18. Empty when it cannot be found out."""
        assert isinstance(self.ready(place).domain(), str)
