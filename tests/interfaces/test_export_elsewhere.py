"""Somebody else holds the lock of the registry's export and does not let go: nothing else waits for that."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest_cli import ENV, SERVICE, Lived

from rearguard.checkpoints import registry_file
from rearguard.model.run import RunState
from rearguard.officer import checkpoints, registry, rollbacks
from rearguard.officer.office import Office, open_office


@pytest.fixture
def office(copy: Lived) -> Iterator[Office]:
    """Of a copied state in which v2 may be rolled back to."""
    with open_office(copy.state) as office:
        checkpoints.release(office, service=SERVICE, version="v2", env=ENV, reason="mended", by="test")
        yield office


@pytest.fixture
def lock(office: Office) -> Iterator[int]:
    """The lock, held by somebody who hangs."""
    with (office.state / registry_file.LOCK_NAME).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield held.fileno()


def messages(state: Path) -> str:
    return (state / "messages.jsonl").read_text()


def test_a_rollback_by_hand_ends_and_delivers_its_messages(office: Office, lock: int) -> None:
    run = rollbacks.run(office, service=SERVICE, env=ENV, to="v2", by="test")
    assert run.state is RunState.SUCCEEDED
    assert run.id in messages(office.state)


def test_what_was_not_exported_is_exported_at_the_next_turn_of_anybody(office: Office, lock: int) -> None:
    office.publish(registry_changed=True)
    (office.state / registry_file.EXPORT_NAME).unlink()
    fcntl.flock(lock, fcntl.LOCK_UN)
    with open_office(office.state) as another:
        another.publish()
        assert registry.verify(another).checkpoints == 2
