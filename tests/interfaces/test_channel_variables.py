"""A shell without the environment variables of a webhook: whoever only reads or asks does not need them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest_cli import ENV, SERVICE
from conftest_ready import error_of, rearguard

from rearguard.database import OfficerLock
from rearguard.edge import SystemClock
from rearguard.officer.office import open_office

VARIABLE = "REARGUARD_TEST_HOOK"
SECRET_VARIABLE = "REARGUARD_TEST_SECRET"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def hooked(ready: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place whose only channel is a webhook that the environment must name, and does not."""
    for name in (VARIABLE, SECRET_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    file = ready / "rearguard.yaml"
    text = file.read_text(encoding="utf-8")
    hook = f"{{kind: webhook, url: '${{{VARIABLE}}}', secret: '${{{SECRET_VARIABLE}}}'}}"
    replaced = text.replace("{kind: file, path: messages.jsonl}", hook)
    assert replaced != text
    file.write_text(replaced, encoding="utf-8")
    return ready


class Receiver:
    """A receiver of webhooks on loopback that says yes."""

    def __init__(self) -> None:
        self.got: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.got.append(body["key"] if self.headers["webhook-signature"] else "unsigned")
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("telemetry", SERVICE, "--env", ENV),
        ("messages", "list"),
        ("rollback", "plan", SERVICE, "--env", ENV),
        ("gate", SERVICE, "--env", ENV),
        ("automation", "show"),
        ("automation", "pause", "--reason", "night"),
        ("report", "render"),
        ("checkpoint", "list"),
        ("arm", SERVICE, "--env", ENV),
        ("deploy", SERVICE, "v1", "--env", ENV),
        ("runs", "list"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_command_that_delivers_nothing_needs_no_variable(hooked: Path, words: tuple[str, ...]) -> None:
    done = rearguard(*words, "--state", hooked)
    assert done.returncode in (0, 10), done.stdout + done.stderr


@pytest.mark.parametrize("command", ["run", "watch", "doctor"])
def test_the_officer_and_the_doctor_refuse_to_start_without_them(hooked: Path, command: str) -> None:
    words = ["--listen", "off"] if command == "run" else []
    done = subprocess.run(
        [sys.executable, "-m", "rearguard.interfaces.cli", command, *words, "--state", str(hooked)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {SECRET_VARIABLE: SECRET},
    )
    assert done.returncode == 78, done.stdout + done.stderr
    assert f"environment variable {VARIABLE}" in done.stderr
    assert "rearguard.yaml:3: channels.oncall.url" in done.stderr


def test_a_standby_refuses_before_it_waits(hooked: Path) -> None:
    """Somebody else is in office for longer than the 12 s in which it must end."""
    lock = OfficerLock(hooked)
    lock.acquire(SystemClock().now())
    words = ["run", "--wait", "--listen", "off", "--state", str(hooked)]
    done = subprocess.run(
        [sys.executable, "-m", "rearguard.interfaces.cli", *words], capture_output=True, text=True, timeout=12
    )
    lock.release()
    assert (done.returncode, "config_variable" in done.stderr) == (78, True)


def test_the_officer_refuses_without_those_of_the_heartbeat(ready: Path) -> None:
    file = ready / "rearguard.yaml"
    beat = f"heartbeat: {{kind: webhook, url: '${{{VARIABLE}}}'}}\n"
    file.write_text(file.read_text(encoding="utf-8") + beat, encoding="utf-8")
    assert error_of(rearguard("doctor", "--state", ready, "--json")) == (78, "config_variable")


def test_a_rollback_by_hand_succeeds_says_so_and_leaves_its_messages_open(
    hooked: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rearguard("rollback", "run", SERVICE, "--env", ENV, "--execute", "--state", hooked)
    assert done.returncode == 0, done.stderr
    assert f"the environment variable {VARIABLE} to be set" in done.stderr
    waiting = json.loads(rearguard("messages", "list", "--open", "--state", hooked, "--json").stdout)
    assert {m["waiting_for"][0] for m in waiting} == {"oncall"}
    # It was not the channel that failed: with the variables the next one delivers at once.
    assert {(m["attempts"], m["last_error"]) for m in waiting} == {(0, "")}
    monkeypatch.setenv(VARIABLE, receiver.url)
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    with open_office(hooked) as office:
        assert office.deliver() == 0
    assert receiver.got == [m["key"] for m in waiting]
