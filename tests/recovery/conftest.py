"""What the recovery tests share: checkpoints proven once a session, a server a module, a fresh stage a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway import Gateway
from stage import Policy, Prepared, Server, Stage, prepare, read_prepared

SetStage = Callable[..., Stage]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Trained and proven checkpoints; with REARGUARD_PREPARED those of an earlier session that stand in that folder."""
    found = os.environ.get("REARGUARD_PREPARED")
    return read_prepared(Path(found)) if found else prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model server that the tests of a module share; a test that harms its server starts its own."""
    started = Server(tmp_path_factory.mktemp("server") / "home")
    yield started
    started.processes.end_all()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A model server to be killed, stopped or misled."""
    started = Server(tmp_path / "server")
    yield started
    started.processes.end_all()


@pytest.fixture
def gateway() -> Iterator[Callable[[Server], Gateway]]:
    """`gateway(server)`: a real one between the officer and that server, closed at the end of the test."""
    opened: list[Gateway] = []

    def build(server: Server) -> Gateway:
        opened.append(Gateway(server))
        return opened[-1]

    yield build
    for one in opened:
        one.close()


@pytest.fixture
def set_stage(tmp_path: Path, prepared: Prepared) -> Iterator[SetStage]:
    """`set_stage(server, policy, versions)`: a stage that is struck at the end of the test."""
    stages: list[Stage] = []

    def build(server: Server, *, policy: Policy | None = None, versions: str = "v1,v2") -> Stage:
        stages.append(
            Stage(
                state=tmp_path / f"state{len(stages)}",
                server=server,
                prepared=prepared,
                policy=policy or Policy(),
                versions=versions,
            )
        )
        return stages[-1]

    yield build
    for stage in stages:
        stage.strike()
