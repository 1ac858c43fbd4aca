"""What a rollback asks of its target's bytes before it moves traffic: the receipt, or every byte."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from one_place import MODEL, REQUEST, SETTINGS

from rearguard.checkpoints.hashing import Blob
from rearguard.checkpoints.store import ContentStore
from rearguard.config.templates import playbook_template
from rearguard.database import open_database, sql
from rearguard.edge import SystemClock
from rearguard.errors import ConflictError
from rearguard.model.checkpoint import Checkpoint, CheckpointFile, ProofPolicy
from rearguard.model.run import Run, RunState
from rearguard.model.service import Place
from rearguard.officer import registration
from rearguard.officer.office import Office
from rearguard.recovery.effects import verify_target


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    folder = tmp_path_factory.mktemp("registered")
    state = folder / "state"
    state.mkdir()
    (state / "rearguard.yaml").write_text(SETTINGS, encoding="utf-8")
    (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
    (folder / "golden.jsonl").write_text(json.dumps(REQUEST) + "\n", encoding="utf-8")
    office = Office(
        state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=SystemClock()
    )
    try:
        checkpoint = registration.add(office, MODEL, service="fraud", version="v1", golden_file=folder / "golden.jsonl")
    finally:
        office.close()
    return state, checkpoint


class Rollback:
    """A run that has chosen v1."""

    def __init__(self, office: Office, checkpoint: Checkpoint) -> None:
        self.office = office
        self.checkpoint = checkpoint
        self.blob = office.store.blobs / checkpoint.files[0].sha256
        # The fixture is a copy, so the receipt is that of other inodes: as if it had been proven here.
        self.note_receipt(office.store.receipt(checkpoint.files))

    def note_receipt(self, receipt: str) -> None:
        with self.office.database.transaction() as connection:
            connection.execute(sql("UPDATE checkpoints SET receipt = :receipt"), {"receipt": receipt})

    def verify(
        self, *, receipt_above_bytes: int, stale: bool = False, proof: ProofPolicy = ProofPolicy.RECEIPT
    ) -> dict[str, Any]:
        context = self.office.recovery_context()
        policy = replace(context.settings.checkpoints, receipt_above_bytes=receipt_above_bytes, proof=proof)
        context = replace(context, settings=replace(context.settings, checkpoints=policy))
        run = Run(
            id="run_0000000000000000",
            place=Place(service="fraud", env="prod"),
            incident_id=None,
            from_digest=None,
            to_digest=None,
            state=RunState.RUNNING,
            reason="",
            requested_by="ops",
            requested_at=self.office.clock.now(),
        )
        chosen = {"digest": self.checkpoint.digest, "version": "v1", "stale": stale}
        return verify_target(context, run, {"candidates": [chosen]})


@pytest.fixture
def rollback(registered: tuple[Path, Checkpoint], tmp_path: Path) -> Iterator[Rollback]:
    state = Path(shutil.copytree(registered[0], tmp_path / "state", symlinks=True))
    office = Office(
        state=state, settings_path=state / "rearguard.yaml", database=open_database(state), clock=SystemClock()
    )
    yield Rollback(office, registered[1])
    office.close()


def alter_without_a_trace_in_the_receipt(rollback: Rollback) -> None:
    """As bit rot does: the receipt stays that of what stands there."""
    content = bytearray(rollback.blob.read_bytes())
    content[-1] ^= 1
    rollback.blob.chmod(0o644)
    rollback.blob.write_bytes(content)
    rollback.blob.chmod(0o444)
    rollback.note_receipt(rollback.office.store.receipt(rollback.checkpoint.files))


def test_a_receipt_that_matches_is_enough_above_the_limit(rollback: Rollback) -> None:
    assert rollback.verify(receipt_above_bytes=0)["t4_proof"] == "receipt"


def test_up_to_the_limit_every_byte_is_hashed(rollback: Rollback) -> None:
    size = rollback.checkpoint.size_bytes
    assert rollback.verify(receipt_above_bytes=size)["t4_proof"] == "full_hash"
    assert rollback.verify(receipt_above_bytes=size - 1)["t4_proof"] == "receipt"


def test_a_receipt_that_does_not_match_costs_a_full_hash_and_no_candidate(rollback: Rollback) -> None:
    os.utime(rollback.blob)
    answer = rollback.verify(receipt_above_bytes=0)
    assert (answer["t4_proof"], answer["unusable"]) == ("full_hash", [])


def test_no_receipt_matches_nothing(rollback: Rollback) -> None:
    """A checkpoint without a receipt whose bytes are gone: nothing is equal to nothing."""
    rollback.note_receipt("")
    rollback.blob.unlink()
    answer = rollback.verify(receipt_above_bytes=0)
    assert answer["failure"]["reason"] == "no_verified_checkpoint"
    assert [failure["code"] for failure in answer["unusable"]] == ["blob_missing"]


def test_what_a_receipt_cannot_see_a_full_hash_finds(rollback: Rollback) -> None:
    alter_without_a_trace_in_the_receipt(rollback)
    assert rollback.verify(receipt_above_bytes=0)["t4_proof"] == "receipt"
    answer = rollback.verify(receipt_above_bytes=rollback.checkpoint.size_bytes)
    assert [failure["code"] for failure in answer["unusable"]] == ["blob_altered"]


class Restless(ContentStore):
    """Somebody touches what is read, without end."""

    def blobs_of(self, files: Iterable[CheckpointFile]) -> tuple[Blob, ...]:
        raise ConflictError("blob_changing", "it does not come to rest", "try again")


def test_what_the_surroundings_kept_from_being_proven_is_passed_over_and_is_no_fault(rollback: Rollback) -> None:
    rollback.office.store = Restless(rollback.office.state)
    answer = rollback.verify(receipt_above_bytes=rollback.checkpoint.size_bytes)
    assert answer["failure"]["reason"] == "no_verified_checkpoint"
    assert "blob_changing" in answer["failure"]["message"]
    assert answer["unusable"] == []


@pytest.mark.parametrize("stale", [False, True])
def test_an_altered_view_is_noted_and_holds_no_rollback_up(rollback: Rollback, stale: bool) -> None:
    assert rollback.verify(receipt_above_bytes=0)["view_rebuilt"] is False
    view = rollback.office.store.view(rollback.checkpoint.digest, rollback.checkpoint.files)
    (view / MODEL.name).unlink()
    answer = rollback.verify(receipt_above_bytes=0, stale=stale)
    assert (answer["to_version"], answer["view_rebuilt"], answer["unusable"]) == ("v1", True, [])


@pytest.mark.parametrize(("proof", "found"), [(ProofPolicy.RECEIPT, "receipt"), (ProofPolicy.FULL_HASH, "full_hash")])
def test_the_policy_says_what_a_large_target_is_proven_by(rollback: Rollback, proof: ProofPolicy, found: str) -> None:
    assert rollback.verify(receipt_above_bytes=0, proof=proof)["t4_proof"] == found


def test_a_policy_of_the_full_hash_finds_what_a_receipt_cannot_see(rollback: Rollback) -> None:
    alter_without_a_trace_in_the_receipt(rollback)
    rollback.note_receipt(rollback.office.store.receipt(rollback.checkpoint.files))
    assert rollback.verify(receipt_above_bytes=0)["t4_proof"] == "receipt"
    failed = rollback.verify(receipt_above_bytes=0, proof=ProofPolicy.FULL_HASH)
    assert [unusable["code"] for unusable in failed["unusable"]] == ["blob_altered"]


def test_a_format_that_the_policy_no_longer_allows_is_no_candidate(rollback: Rollback) -> None:
    """Registered while it was allowed: the next candidate is tried, and this one is named."""
    with rollback.office.database.transaction() as connection:
        connection.execute(sql("UPDATE checkpoints SET format = 'sklearn-joblib'"))
    answer = rollback.verify(receipt_above_bytes=0)
    assert answer["failure"]["reason"] == "no_verified_checkpoint"
    assert [failure["code"] for failure in answer["unusable"]] == ["unsafe_format"]
