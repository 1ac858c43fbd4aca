"""Pages under fire: real watchers, real traffic, and receivers that are not there when they are needed."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from stage import PLACE, Server, Stage, wait_until

from rearguard.database import sql
from rearguard.model.run import RunState

SetStage = Callable[..., Stage]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Pager:
    """Where pages go: first a black hole that takes connections and never answers, then a receiver that does."""

    def __init__(self) -> None:
        self.pages: list[dict[str, Any]] = []
        self.arrived: list[float] = []
        self._hole: socket.socket | None = socket.socket()
        self._hole.bind(("127.0.0.1", 0))
        self._hole.listen(64)
        self.port = int(self._hole.getsockname()[1])
        self._server: ThreadingHTTPServer | None = None

    def come_up(self) -> None:
        """Answer from now on; what hung in the black hole is cut."""
        assert self._hole is not None
        self._hole.close()
        self._hole = None
        pager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                pager.pages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                pager.arrived.append(time.monotonic())
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Be gone."""
        if self._hole is not None:
            self._hole.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


@pytest.fixture
def pager() -> Iterator[Pager]:
    one = Pager()
    yield one
    one.close()


def page_to(stage: Stage, pager: Pager, *, for_windows: int = 2) -> None:
    """Declare the pager beside the file channel, and how long the rule wants to be sure."""
    path = stage.state / "rearguard.yaml"
    text = path.read_text(encoding="utf-8")
    file = "  oncall: {kind: file, path: messages.jsonl}\n"
    webhook = f'  pager: {{kind: webhook, url: "http://127.0.0.1:{pager.port}/", secret: {SECRET}}}\n'
    assert text.count(file) == text.count("for_windows: 2") == 1
    path.write_text(text.replace(file, file + webhook).replace("for_windows: 2", f"for_windows: {for_windows}"))


def newest_by_cause(stage: Stage) -> dict[str, str]:
    """What the outbox says: cause to the key of its newest message."""
    with stage.office(write=False) as office, office.database.reading() as connection:
        rows = connection.execute(sql("SELECT cause, key FROM outbox ORDER BY id")).all()
    return {row.cause: row.key for row in rows}


def open_messages(stage: Stage) -> list[dict[str, Any]]:
    done = stage.cli("messages", "list", "--open", "--json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_a_rollback_does_not_wait_for_pages_and_afterwards_each_cause_is_told_once(
    server: Server, set_stage: SetStage, pager: Pager
) -> None:
    stage = set_stage(server)
    page_to(stage, pager)
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    stage.send_traffic()
    watcher = stage.watch_alive()
    run = stage.wait_for_end(60)
    assert run.state is RunState.SUCCEEDED
    wait_until(lambda: watcher.events("run_finished"), "its end is told")
    # The other channel has heard of the end, while the pager still holds its first page.
    wait_until(lambda: [m for m in stage.messages() if m["key"] == f"{run.id}:ended"], "the file has the end")
    waiting = open_messages(stage)
    assert {m["waiting_for"][0] for m in waiting} == {"pager"}
    assert "no answer within 5 s" in wait_until(
        lambda: next((m["last_error"] for m in open_messages(stage) if m["last_error"]), ""), "the error is shown"
    )
    # One page that hangs costs 5 s; no step of the rollback has paid them.
    assert max(event["took_ms"] for event in watcher.events("step_done")) < 5_000

    pager.come_up()
    assert stage.cli("messages", "retry").returncode == 0
    wait_until(lambda: not open_messages(stage), "every message is taken", 60)
    time.sleep(2)  # a second copy would have come by now
    assert watcher.end() == 0
    assert Counter(page["cause"] for page in pager.pages) == dict.fromkeys(newest_by_cause(stage), 1)
    assert {page["cause"]: page["key"] for page in pager.pages} == newest_by_cause(stage)
    by_cause = {page["cause"]: page for page in pager.pages}
    assert by_cause["R-1"]["key"] == f"{run.id}:ended"
    assert {page["action"] for page in pager.pages} == {"resolve"}


def test_messages_that_waited_when_the_officer_died_are_delivered_by_the_next(
    server: Server, set_stage: SetStage, pager: Pager
) -> None:
    stage = set_stage(server)
    page_to(stage, pager)
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    stage.send_traffic()
    first = stage.watch_alive()
    run = stage.wait_for_end(60)
    first.process.kill()
    first.process.wait(10)

    pager.come_up()
    assert stage.cli("messages", "retry").returncode == 0
    second = stage.watch_alive()
    wait_until(lambda: not open_messages(stage), "every message is taken", 60)
    assert second.end() == 0
    assert {page["cause"]: page["key"] for page in pager.pages} == newest_by_cause(stage)
    assert [p["key"] for p in pager.pages if p["cause"] == "R-1"] == [f"{run.id}:ended"]


def test_a_page_about_the_grey_zone_goes_out_within_a_minute_and_is_resolved_when_another_version_answers(
    server: Server, set_stage: SetStage, pager: Pager
) -> None:
    stage = set_stage(server)
    page_to(stage, pager, for_windows=1_000)
    pager.come_up()
    stage.deploy("v1")
    stage.arm()
    clients = stage.send_traffic()
    watcher = stage.watch_alive()
    stage.deploy("v2")
    cause = f"grey:{PLACE}:errors"
    page = wait_until(lambda: next((p for p in pager.pages if p["cause"] == cause), None), "a page", 90)
    first_failure_ns = min(answer.got_ns for answer in clients.answers if answer.status != 200)
    assert pager.arrived[pager.pages.index(page)] - first_failure_ns / 1e9 < 60
    assert (page["severity"], page["action"]) == ("page", "open")
    figures = r"Error Rate \d+\.\d+ % \(limit 1 %\)"
    assert re.fullmatch(rf"{PLACE}: v2, {figures}: over its limit, not decided yet", page["title"])

    (entered,) = stage.records("grey_zone_entered")
    assert (entered.body["trigger"], entered.body["digest"]) == ("errors", stage.digest("v2"))
    assert entered.body["exceedances"] * 100 > entered.body["samples"] >= 10  # over 1 %, with the minimum of samples
    assert stage.records("incident_opened") == []
    assert stage.runs() == ()

    stage.deploy("v1")
    told = wait_until(lambda: [p for p in pager.pages if p["cause"] == cause][1:], "it is resolved", 60)
    assert watcher.end() == 0
    assert [p["action"] for p in told] == ["resolve"]
    assert len(stage.records("grey_zone_entered")) == len(stage.records("grey_zone_left")) == 1


@pytest.mark.long
def test_a_restart_neither_repeats_nor_forgets_a_grey_zone(server: Server, set_stage: SetStage, pager: Pager) -> None:
    stage = set_stage(server)
    page_to(stage, pager, for_windows=1_000)
    pager.come_up()
    stage.deploy("v1")
    stage.deploy("v2")
    stage.send_traffic()
    first = stage.watch_alive()
    wait_until(lambda: pager.pages, "a page", 90)
    first.process.kill()
    first.process.wait(10)
    second = stage.watch_alive()
    time.sleep(6)  # three windows over the limit
    assert len(stage.records("grey_zone_entered")) == 1
    stage.deploy("v1")
    wait_until(lambda: stage.records("grey_zone_left"), "it is left", 60)
    assert second.end() == 0
    assert [r.body["reason"] for r in stage.records("grey_zone_left")] == ["another_digest_answers"]
