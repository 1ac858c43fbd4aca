"""The warm standby: a real server holds it, a real officer keeps it, and processes die in between.

What is loaded are real digits pipelines (the stage's) and an ONNX sample of onnxruntime. Only processes started here are
ended, by their ids.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import SERVICE, Policy, Server, Stage, _of_session, wait_until

from rearguard.checkpoints import registry
from rearguard.model.run import RunState
from rearguard.model.standby import StandbyState, WarmStandby
from rearguard.officer import checkpoints, overview
from rearguard.recovery import effects

SetStage = Callable[..., Stage]


def index(server: Server) -> list[dict[str, Any]]:
    """What the server holds: the active one first."""
    entries: list[dict[str, Any]] = server.call("POST", "/v2/repository/index", {})[1]
    return entries


def held(server: Server) -> dict[str, bool]:
    """Version labels beside the active one, and whether each is up and has answered."""
    return {
        entry["version"]: entry["state"] == "READY" and entry["parameters"]["answered"]
        for entry in index(server)
        if not entry["parameters"]["active"]
    }


def known(stage: Stage) -> WarmStandby | None:
    """What `status` says of the standby."""
    with stage.office(write=False) as office:
        return overview.overview(office).places[0].standby


def stands(stage: Stage, version: str) -> bool:
    """True once the officer says that it stands."""
    found = known(stage)
    return found is not None and (found.state, found.version) == (StandbyState.STANDING, version)


def workers(server: Server) -> set[int]:
    """Living worker processes."""
    return _of_session(server.process.pid) - {server.process.pid}


def spec(stage: Stage, version: str, epoch: int, **more: Any) -> dict[str, Any]:
    """The parameters of a load call for a version of the stage."""
    with stage.office() as office:
        with office.database.reading() as connection:
            checkpoint = registry.get(connection, stage.digest(version))
        assert checkpoint is not None
        order = effects.activation(office.recovery_context(), checkpoint, epoch=epoch, key=f"test:{version}:{epoch}")
    return {
        "digest": order.digest,
        "version": order.version,
        "format": order.format,
        "path": order.path,
        "trusted_types": list(order.trusted_types),
        "epoch": order.epoch,
        "key": order.key,
        "warmup": order.warmup,
        **more,
    }


def load(server: Server, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """One load call."""
    status, answer = server.call("POST", f"/v2/repository/models/{SERVICE}/load", {"parameters": parameters})
    return status, answer


class LoadCall(threading.Thread):
    """A load call under way in another thread."""

    def __init__(self, server: Server, parameters: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.answer: tuple[int, dict[str, Any]] | None = None
        self._server = server
        self._parameters = parameters
        self.start()

    def run(self) -> None:
        self.answer = load(self._server, self._parameters)

    def wait(self) -> tuple[int, dict[str, Any]]:
        self.join(40)
        assert self.answer is not None, "the load call did not return"
        return self.answer


@pytest.fixture
def halt() -> Iterator[Callable[[int], None]]:
    """`halt(pid)`: stop a process until the end of the test, as a machine that is too busy does."""
    halted: list[int] = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        halted.append(pid)

    yield stop
    for pid in halted:
        go_on(pid)


def go_on(pid: int) -> None:
    """Let a halted process go on; nothing when it is gone."""
    if Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[Server]:
    """A server of its own that keeps one standby."""
    started = Server(tmp_path / "small", "--standby", "1")
    yield started
    started.processes.end_all()


def test_a_prepared_standby_has_answered_and_moved_neither_traffic_nor_epoch(
    own_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(own_server)
    stage.deploy("v2")
    before = own_server.serves()
    status, answer = load(own_server, spec(stage, "v1", before["epoch"] + 5, activate=False))
    assert (status, answer["warm"]) == (200, False)
    assert held(own_server) == {"v1": True}
    assert own_server.serves() == before


def test_no_request_fails_while_a_standby_is_loaded(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    stage.deploy("v1")
    clients = stage.send_traffic()
    wait_until(lambda: len(clients.answers) > 20, "traffic")
    began_ns = time.monotonic_ns()
    assert load(own_server, spec(stage, "v2", 9, activate=False))[0] == 200
    ended_ns = time.monotonic_ns()
    during = [a for a in list(clients.answers) if a.got_ns > began_ns and a.sent_ns < ended_ns]
    assert len(during) > 5
    assert {(a.status, a.digest) for a in during} == {(200, stage.digest("v1"))}


def test_an_order_for_a_warm_version_does_not_wait_for_a_standby_that_is_being_loaded(
    own_server: Server, set_stage: SetStage, halt: Callable[[int], None]
) -> None:
    stage = set_stage(own_server, versions="v0,v1,v2")
    stage.deploy("v1")
    stage.deploy("v2")
    before = workers(own_server)
    preparing = LoadCall(own_server, spec(stage, "v0", own_server.serves()["epoch"], activate=False))
    (loading,) = wait_until(lambda: workers(own_server) - before, "the load has begun")
    halt(loading)
    began_s = time.monotonic()
    status, answer = load(own_server, spec(stage, "v1", 90))
    took_s = time.monotonic() - began_s
    assert (status, answer["warm"]) == (200, True)
    assert took_s < 1.0
    assert own_server.serves()["digest"] == stage.digest("v1")
    # The order had a higher epoch, so what was asked for before it counts no more, and leaves nothing behind.
    go_on(loading)
    assert preparing.wait()[0] == 409
    wait_until(lambda: loading not in workers(own_server), "the late worker is gone")
    assert "v0" not in held(own_server)


def test_an_order_for_the_version_that_is_being_loaded_joins_that_load(
    own_server: Server, set_stage: SetStage, halt: Callable[[int], None]
) -> None:
    stage = set_stage(own_server)
    stage.deploy("v2")
    before = workers(own_server)
    epoch = own_server.serves()["epoch"]
    preparing = LoadCall(own_server, spec(stage, "v1", epoch, activate=False))
    (loading,) = wait_until(lambda: workers(own_server) - before, "the load has begun")
    halt(loading)
    ordered = LoadCall(own_server, spec(stage, "v1", epoch))
    time.sleep(0.5)  # a second process would have been started by then
    assert workers(own_server) - before == {loading}
    go_on(loading)
    assert (preparing.wait()[0], ordered.wait()[0]) == (200, 200)
    assert own_server.serves()["digest"] == stage.digest("v1")
    assert workers(own_server) == before | {loading}


def test_a_stale_epoch_prepares_nothing(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    stage.deploy("v2")
    epoch = own_server.serves()["epoch"]
    assert load(own_server, spec(stage, "v1", epoch - 1, activate=False))[0] == 409
    assert held(own_server) == {}


def test_a_second_order_for_what_stands_starts_nothing(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    stage.deploy("v2")
    epoch = own_server.serves()["epoch"]
    load(own_server, spec(stage, "v1", epoch, activate=False))
    before = workers(own_server)
    answers = [load(own_server, spec(stage, v, epoch, activate=False))[1]["warm"] for v in ("v1", "v2")]
    assert answers == [True, True]
    assert workers(own_server) == before


def test_a_prepared_standby_takes_the_place_of_the_oldest_and_never_that_of_the_active_one(
    small_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(small_server, versions="v0,v1,v2")
    stage.deploy("v1")
    stage.deploy("v2")
    load(small_server, spec(stage, "v0", small_server.serves()["epoch"], activate=False))
    assert held(small_server) == {"v0": True}
    assert small_server.serves()["digest"] == stage.digest("v2")
    wait_until(lambda: len(workers(small_server)) == 2, "the replaced one is gone")


def test_a_standby_for_which_there_is_no_memory_is_not_begun(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    stage.deploy("v2")
    before = workers(own_server)
    parameters = spec(stage, "v1", own_server.serves()["epoch"], activate=False, memory_bytes=2**50)
    status, answer = load(own_server, parameters)
    assert (status, answer["code"]) == (422, "standby_no_memory")
    assert workers(own_server) == before


def test_a_standby_above_its_limit_is_ended_and_the_active_one_of_the_same_size_is_not(
    tmp_path: Path, set_stage: SetStage
) -> None:
    server = Server(tmp_path / "limited", "--standby-memory-mib", "1")
    try:
        stage = set_stage(server)
        stage.deploy("v1")
        (first,) = workers(server)
        stage.deploy("v2")  # v1 is a standby from here on
        wait_until(lambda: first not in workers(server), "the standby is ended")
        (entry,) = [e for e in index(server) if not e["parameters"]["active"]]
        assert (entry["state"], "above the limit of 1 MiB" in entry["reason"]) == ("UNAVAILABLE", True)
        active = workers(server)
        time.sleep(2.5)  # two more looks of the server at its workers
        assert (len(active), workers(server)) == (1, active)
        assert server.call("GET", "/v2/health/ready")[0] == 200
        refused = load(server, spec(stage, "v1", server.serves()["epoch"], activate=False))
        assert (refused[0], refused[1]["code"]) == (422, "standby_no_memory")
        # An order is no standby: the limit does not hold it back.
        assert load(server, spec(stage, "v1", 99))[0] == 200
    finally:
        server.processes.end_all()


def test_a_standby_that_does_not_react_is_not_ready(
    own_server: Server, set_stage: SetStage, halt: Callable[[int], None]
) -> None:
    stage = set_stage(own_server)
    stage.deploy("v1")
    (first,) = workers(own_server)
    stage.deploy("v2")
    halt(first)
    wait_until(lambda: held(own_server) == {"v1": False}, "it is seen", 10)
    (entry,) = [e for e in index(own_server) if not e["parameters"]["active"]]
    assert "not reacted" in entry["reason"]


def test_after_the_death_of_the_whole_server_the_officer_arms_again(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    watcher = stage.watch_alive()
    wait_until(lambda: stands(stage, "v1"), "it stands")
    own_server.kill()
    own_server.restart()
    wait_until(lambda: held(own_server) == {"v1": True}, "the standby is back", 30)
    assert own_server.serves()["digest"] == stage.digest("v2")
    assert watcher.end() == 0


def test_a_standby_that_died_is_never_loaded_from_other_bytes(own_server: Server, set_stage: SetStage) -> None:
    """The stored file becomes another model, sound in itself: only a proof can tell."""
    stage = set_stage(own_server, versions="v0,v1,v2")
    stage.deploy("v1")
    (first,) = workers(own_server)
    stage.deploy("v2")
    (active,) = workers(own_server) - {first}
    stage.arm()
    watcher = stage.watch_alive()
    wait_until(lambda: stands(stage, "v1"), "it stands")
    blobs = stage.state / "blobs" / "sha256"
    with stage.office(write=False) as office:
        of = {v: checkpoints.find(office, service=SERVICE, version=v).files[0].sha256 for v in ("v0", "v1")}
    (blobs / of["v1"]).chmod(0o644)
    (blobs / of["v1"]).write_bytes((blobs / of["v0"]).read_bytes())
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: any(not r.body["ok"] for r in stage.records("checkpoint_verified")), "the proof fails")
    assert held(own_server).get("v1") is not True
    assert workers(own_server) == {active}
    assert watcher.end() == 0


def test_the_officer_arms_after_a_rollout_and_a_killed_standby_stands_again(
    own_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(own_server)
    stage.deploy("v1")
    (first,) = workers(own_server)
    stage.deploy("v2")
    stage.arm()
    watcher = stage.watch_alive()
    wait_until(lambda: stands(stage, "v1"), "the officer knows")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: first not in workers(own_server) and held(own_server) == {"v1": True}, "it stands again")
    wait_until(lambda: stands(stage, "v1"), "the officer knows")
    assert watcher.end() == 0
    assert stage.records("standby_standing")[0].body["digest"] == stage.digest("v1")


def test_a_standby_that_hangs_is_lost_with_the_reason_and_replaced(
    own_server: Server, set_stage: SetStage, halt: Callable[[int], None]
) -> None:
    stage = set_stage(own_server)
    stage.deploy("v1")
    (first,) = workers(own_server)
    stage.deploy("v2")
    stage.arm()
    watcher = stage.watch_alive()
    wait_until(lambda: stands(stage, "v1"), "the officer knows")
    halt(first)
    wait_until(lambda: stage.records("standby_lost"), "it is lost")
    wait_until(lambda: len(stage.records("standby_standing")) == 2, "another one stands")
    assert watcher.end() == 0
    lost = stage.records("standby_lost")[0].body
    assert (lost["digest"], lost["reason"]) == (stage.digest("v1"), "standby_not_ready")
    assert "not reacted" in lost["message"]
    wait_until(lambda: first not in workers(own_server), "the hung one is ended")


def test_after_a_rollback_the_next_way_back_stands_and_what_was_rolled_back_does_not(
    small_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(small_server, versions="v0,v1,v2", policy=Policy(recovery_s=1))
    for version in ("v0", "v1"):
        stage.deploy(version)
    stage.arm()
    stage.send_traffic()
    stage.deploy("v2")
    watcher = stage.watch_alive()
    run = stage.wait_for_end(60)  # v2 raises on some inputs, and the clients send them
    assert (run.state, run.to_digest) == (RunState.SUCCEEDED, stage.digest("v1"))
    assert stage.records("traffic_switched")[-1].body["warm"] is True
    wait_until(lambda: stands(stage, "v0"), "v0 stands")
    assert held(small_server) == {"v0": True}
    assert watcher.end() == 0


def test_after_a_rollback_with_no_other_way_back_what_was_rolled_back_is_unloaded(
    small_server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(small_server, policy=Policy(recovery_s=1))
    stage.deploy("v1")
    stage.arm()
    stage.send_traffic()
    stage.deploy("v2")
    watcher = stage.watch_alive()
    assert stage.wait_for_end(60).to_digest == stage.digest("v1")
    wait_until(lambda: held(small_server) == {}, "v2 is unloaded")
    assert watcher.events("standby_unloaded")[0]["digest"] == stage.digest("v2")
    assert watcher.end() == 0


def test_a_standby_whose_bytes_changed_is_never_loaded(small_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(small_server, versions="v0,v1,v2")
    for version in ("v1", "v0", "v2"):
        stage.deploy(version)
    small_server.call("POST", f"/v2/repository/models/{SERVICE}/unload", {"parameters": {"version": "v0"}})
    stage.damage("v0")
    stage.arm()
    watcher = stage.watch_alive()
    wait_until(lambda: stands(stage, "v1"), "the next best stands", 30)
    assert watcher.end() == 0
    assert held(small_server) == {"v1": True}
    (failed,) = [r.body for r in stage.records("checkpoint_verified") if not r.body["ok"]]
    assert (failed["version"], failed["code"]) == ("v0", "blob_altered")


def test_a_place_that_wants_no_standby_gets_none(own_server: Server, set_stage: SetStage) -> None:
    stage = set_stage(own_server)
    settings = stage.state / "rearguard.yaml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("stateless: true", "stateless: true\n        standby: false"), encoding="utf-8")
    stage.deploy("v1")
    stage.deploy("v2")
    own_server.call("POST", f"/v2/repository/models/{SERVICE}/unload", {"parameters": {"version": "v1"}})
    stage.arm()
    watcher = stage.watch_alive()
    time.sleep(4)  # longer than the officer needs for a look
    assert watcher.end() == 0
    assert (held(own_server), known(stage)) == ({}, None)
