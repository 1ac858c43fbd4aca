"""What people and machines are told of the warm standby, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest_cli import PLACE, SERVICE
from conftest_ready import rearguard
from test_place_metrics import figures

from rearguard.checkpoints import standbys
from rearguard.database import sql
from rearguard.database.lock import OfficerLock
from rearguard.errors import RefusedError
from rearguard.evidence.log import read
from rearguard.model.checkpoint import Checkpoint
from rearguard.model.service import Digest, Place
from rearguard.model.standby import StandbyState
from rearguard.officer import checkpoints, overview, rollbacks
from rearguard.officer.office import Office, open_office
from rearguard.officer.standby import StandbyKeeper
from rearguard.ports import Activated, Activation, ProbeAnswer, Standby


class InMemory:
    """A warm target that keeps everything in this process."""

    def __init__(self, serving: Digest | None) -> None:
        self.serving = serving
        self.held: Digest | None = None
        self.refusal: RefusedError | None = None
        self.unload_refusal: RefusedError | None = None
        self.prepared = 0
        self.unloaded: list[Digest] = []

    def activate(self, order: Activation) -> Activated:
        """Serve it."""
        warm = self.held == order.digest
        self.serving, self.held = order.digest, self.serving
        return Activated(warm=warm)

    def active(self) -> Digest | None:
        """What serves."""
        return self.serving

    def probe(self, request: dict[str, Any], timeout_s: float) -> ProbeAnswer:
        """Answer nothing of worth."""
        return ProbeAnswer(digest=self.serving, response={"outputs": []}, latency_ms=0.0)

    def close(self) -> None:
        """Nothing is held open."""

    def prepare(self, order: Activation, memory_bytes: int | None) -> None:
        """Hold it, or refuse."""
        self.prepared += 1
        if self.refusal is not None:
            raise self.refusal
        self.held = order.digest

    def unload(self, digest: Digest) -> None:
        """Hold it no more, or refuse."""
        if self.unload_refusal is not None:
            raise self.unload_refusal
        self.unloaded.append(digest)
        if self.held == digest:
            self.held = None

    def standbys(self) -> tuple[Standby, ...]:
        """What is held."""
        return () if self.held is None else (Standby(digest=self.held, ready=True, rss_bytes=1024),)


def warm(office: Office) -> InMemory:
    """The place's target from now on."""
    target = InMemory(office.target_of(PLACE).active())
    office._targets[PLACE] = target
    return target


def keeper(office: Office) -> StandbyKeeper:
    return StandbyKeeper(office, lambda _name, _fields: None)


def kinds(office: Office) -> list[str]:
    with office.database.reading() as connection:
        return [r.kind for r in read(connection) if r.kind.startswith("standby_")]


def state_of(office: Office) -> tuple[StandbyState, str] | None:
    found = overview.overview(office).places[0].standby
    return None if found is None else (found.state, found.reason)


def test_a_target_that_cannot_hold_one_is_noted_once_and_never_again(ready: Path) -> None:
    with open_office(ready) as office:
        keep = keeper(office)
        keep.look()
        found = overview.overview(office).places[0].standby
        keep.look()
        assert overview.overview(office).places[0].standby == found
        assert (state_of(office), kinds(office)) == ((StandbyState.UNSUPPORTED, "standby_unsupported"), [])
        assert figures(office, "standby_ready") == {}


def test_one_that_stands_is_recorded_once_and_counted(ready: Path) -> None:
    with open_office(ready) as office:
        warm(office)
        keep = keeper(office)
        for _ in range(3):
            keep.look()
        assert (state_of(office), kinds(office)) == ((StandbyState.STANDING, ""), ["standby_standing"])
        assert figures(office, "standby_ready") == {(): 1}
        assert keep.rss_bytes() == {PLACE: 1024}


def test_one_that_is_refused_is_recorded_once_with_its_code_and_not_asked_for_at_every_look(ready: Path) -> None:
    with open_office(ready) as office:
        target, keep = warm(office), keeper(office)
        target.refusal = RefusedError("standby_no_memory", "12 MiB are available", "")
        for _ in range(3):
            keep.look()
        assert (state_of(office), kinds(office)) == ((StandbyState.LOST, "standby_no_memory"), ["standby_lost"])
        assert figures(office, "standby_ready") == {(): 0}
        assert target.prepared == 1


def test_nothing_is_loaded_while_a_run_holds_the_place(ready: Path) -> None:
    with open_office(ready) as office:
        target = warm(office)
        with office.database.transaction() as connection:
            connection.execute(sql("UPDATE places SET open_run_id = 'run_1'"))
        keeper(office).look()
        assert (target.prepared, state_of(office)) == (0, None)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("disarm", SERVICE, "--env", PLACE.env), "observe"),
        (("automation", "pause", "--reason", "audit"), "automation_paused"),
    ],
    ids=["observe", "paused"],
)
def test_nothing_is_loaded_where_the_officer_keeps_its_hands_off(
    ready: Path, words: tuple[str, ...], code: str
) -> None:
    assert rearguard(*words, "--state", ready).returncode == 0
    with open_office(ready) as office:
        target = warm(office)
        keeper(office).look()
        assert (target.prepared, state_of(office)) == (0, (StandbyState.NONE, code))
        assert (kinds(office), figures(office, "standby_ready")) == ([], {})


def test_it_is_loaded_once_the_pause_is_over(ready: Path) -> None:
    rearguard("automation", "pause", "--reason", "audit", "--state", ready)
    with open_office(ready) as office:
        target, keep = warm(office), keeper(office)
        keep.look()
        rearguard("automation", "resume", "--state", ready)
        keep.look()
        assert (target.prepared, state_of(office)) == (1, (StandbyState.STANDING, ""))


def test_one_that_is_lost_under_a_pause_is_told_as_lost_and_not_loaded_again(ready: Path) -> None:
    with open_office(ready) as office:
        target, keep = warm(office), keeper(office)
        keep.look()
        rearguard("automation", "pause", "--reason", "audit", "--state", ready)
        target.held = None
        keep.look()
        keep.look()
        assert kinds(office) == ["standby_standing", "standby_lost"]
        assert (target.prepared, state_of(office)) == (1, (StandbyState.NONE, "automation_paused"))


def test_a_pause_that_comes_while_the_bytes_are_proven_keeps_the_officer_from_loading(ready: Path) -> None:
    with open_office(ready) as office:
        target, keep = warm(office), keeper(office)
        proven = keep._proven

        def proven_while_paused(checkpoint: Checkpoint) -> Checkpoint:
            rearguard("automation", "pause", "--reason", "audit", "--state", ready)
            return proven(checkpoint)

        keep._proven = proven_while_paused  # type: ignore[method-assign] # the pause must come right then
        keep.look()
        assert target.prepared == 0


def test_what_is_quarantined_is_never_prepared(ready: Path) -> None:
    with open_office(ready) as office:
        target = warm(office)
        best = rollbacks.plan(office, service=SERVICE, env=None).selection.candidates[0].checkpoint.digest
        quarantine(office, best)
        keeper(office).look()
        assert (target.prepared, state_of(office)) == (0, (StandbyState.NONE, "no_verified_checkpoint"))


def rewrite(office: Office, content: bytes | None = None) -> bytes:
    """Write the best candidate's stored file anew, with other content or its own; what it was."""
    file = best_of(office).files[0]
    blob = office.state / "blobs" / "sha256" / file.sha256
    before = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(before if content is None else content)
    blob.chmod(0o444)
    return before


def best_of(office: Office) -> Checkpoint:
    """The best rollback target."""
    return rollbacks.plan(office, service=SERVICE, env=PLACE.env).selection.candidates[0].checkpoint


def test_one_whose_stored_files_were_written_is_let_go_and_loaded_anew_after_a_proof(ready: Path) -> None:
    with open_office(ready) as office:
        target, keep, best = warm(office), keeper(office), best_of(office)
        checkpoints.verify(office, best)
        target.held = best.digest
        keep.look()
        rewrite(office)
        keep.look()
        assert (target.unloaded, target.prepared) == ([best.digest], 1)
        assert state_of(office) == (StandbyState.STANDING, "")


def test_one_whose_stored_files_are_other_bytes_is_let_go_and_not_loaded(ready: Path) -> None:
    with open_office(ready) as office:
        target, keep, best = warm(office), keeper(office), best_of(office)
        checkpoints.verify(office, best)
        target.held = best.digest
        keep.look()
        rewrite(office, b"another model")
        keep.look()
        assert (target.unloaded, target.held, target.prepared) == ([best.digest], None, 0)


def quarantine(office: Office, digest: Digest, place: Place = PLACE) -> None:
    """As a rollback from it does."""
    with office.database.transaction() as connection:
        connection.execute(
            sql("INSERT INTO quarantine (service, env, digest, run_id, since) VALUES (:s, :e, :d, 'run_1', 'x')"),
            {"s": place.service, "e": place.env, "d": digest},
        )


class Faulty(InMemory):
    """A target of somebody's, with a fault in it."""

    def standbys(self) -> tuple[Standby, ...]:
        """Fail as no target may."""
        raise IndexError("list index out of range")


def test_a_fault_at_one_place_keeps_no_other_waiting(ready: Path) -> None:
    settings = ready / "rearguard.yaml"
    head, of_prod = settings.read_text(encoding="utf-8").split("    environments:\n")
    before_it = of_prod.replace("prod:", "canary:")
    settings.write_text(f"{head}    environments:\n{before_it}{of_prod}", encoding="utf-8")
    canary = Place(service=SERVICE, env="canary")
    with open_office(ready) as office:
        assert [p.place for p in office.settings.places] == [canary, PLACE]
        office._targets[canary] = Faulty(None)
        quarantine(office, best_of(office).digest, canary)
        warm(office)
        with pytest.raises(IndexError):
            keeper(office).look()
        with office.database.reading() as connection:
            found = standbys.get(connection, PLACE)
    assert found is not None
    assert found.state is StandbyState.STANDING


def test_what_is_quarantined_is_unloaded(ready: Path) -> None:
    with open_office(ready) as office:
        target, best = warm(office), best_of(office).digest
        target.held = best
        quarantine(office, best)
        keeper(office).look()
        assert target.unloaded == [best]


def test_what_is_quarantined_stays_while_the_target_says_that_nothing_else_answers(ready: Path) -> None:
    with open_office(ready) as office:
        target, best = warm(office), best_of(office).digest
        target.held, target.unload_refusal = best, RefusedError("last_healthy", "it is the last one that answers", "")
        quarantine(office, best)
        keeper(office).look()
        assert (target.held, state_of(office)) == (best, (StandbyState.NONE, "no_verified_checkpoint"))


def test_without_an_officer_the_plan_does_not_claim_that_anything_is_warm(ready: Path) -> None:
    with open_office(ready) as office:
        warm(office)
        keeper(office).look()
        found = rollbacks.plan(office, service=SERVICE, env=None)
        assert (found.warm, found.expected_load_ms) == (None, found.selection.candidates[0].checkpoint.load_ms)


def test_the_registry_export_names_the_standby(ready: Path) -> None:
    with open_office(ready) as office:
        warm(office)
        keeper(office).look()
    text = (ready / "checkpoint_registry.yaml").read_text(encoding="utf-8")
    assert "state: standing" in text


def test_with_an_officer_the_plan_says_that_the_best_candidate_is_warm(ready: Path) -> None:
    with open_office(ready) as office:
        warm(office)
        keeper(office).look()
        lock = OfficerLock(ready)
        lock.acquire(office.clock.now())
        try:
            found = rollbacks.plan(office, service=SERVICE, env=None)
        finally:
            lock.release()
        assert (found.warm, found.expected_load_ms) == (True, 0)
