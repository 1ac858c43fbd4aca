"""The channels to people, against a real HTTP receiver, real commands and real files."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rearguard import plugins
from rearguard.adapters.channels import command, webhook
from rearguard.database import open_database
from rearguard.errors import DependencyError
from rearguard.handoffs.outbox import deliver, post
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Channel, Message

MESSAGE = Message(
    key="run_1:ended", title="fraud/prod: rollback ended (succeeded)", fields={"why": "P95 Latency", "ü": "€"}
)
BODY = {"key": "run_1:ended", "title": MESSAGE.title, "fields": {"why": "P95 Latency", "ü": "€"}}


class Receiver:
    """Answers with the given status codes one after the other, then 204; keeps what it got."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.command, dict(self.headers), body))
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                self.send_response(status)
                if status in (301, 302, 303, 307, 308):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.requests.append((self.command, dict(self.headers), b""))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


def channel(kind: str, **options: Any) -> Channel:
    built: Channel = plugins.load("rearguard.channels", kind)(ChannelSettings(name="oncall", kind=kind, **options))
    return built


def refused(one: Channel) -> DependencyError:
    with pytest.raises(DependencyError) as failure:
        one.deliver(MESSAGE)
    assert failure.value.code == "channel_down"
    return failure.value


# --- webhook


def test_a_webhook_gets_one_post_with_the_message_as_json(receiver: Receiver) -> None:
    channel("webhook", url=receiver.url).deliver(MESSAGE)
    ((method, headers, body),) = receiver.requests
    assert (method, headers["Content-Type"], json.loads(body)) == ("POST", "application/json", BODY)


def test_a_webhook_can_tell_a_repetition_by_its_key(receiver: Receiver) -> None:
    channel("webhook", url=receiver.url).deliver(MESSAGE)
    assert receiver.requests[0][1]["Idempotency-Key"] == "run_1:ended"


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_answer_that_is_no_2xx_is_no_delivery(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    assert str(status) in refused(channel("webhook", url=receiver.url)).message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_no_delivery_and_is_not_followed(receiver: Receiver, status: int) -> None:
    """A followed POST arrives as a GET without its body, and its 200 would pass for a yes."""
    receiver.statuses = [status]
    refused(channel("webhook", url=receiver.url))
    assert [method for method, _, _ in receiver.requests] == ["POST"]


def test_a_receiver_that_fails_twice_gets_the_message_once(receiver: Receiver, tmp_path: Path) -> None:
    receiver.statuses = [500, 503]
    database = open_database(tmp_path)
    with database.transaction() as connection:
        post(connection, MESSAGE)
    still_open = [deliver(database, {"oncall": lambda: channel("webhook", url=receiver.url)}) for _ in range(4)]
    assert still_open == [1, 1, 0, 0]
    assert [json.loads(body) for _, _, body in receiver.requests] == [BODY] * 3  # two refusals and one yes


def test_nobody_behind_the_address_is_channel_down() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(channel("webhook", url=f"http://127.0.0.1:{port}/hook"))


@pytest.mark.parametrize(
    "answer", [b"", b"this is not HTTP\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nX" * 9000]
)
def test_an_answer_that_is_no_http_is_channel_down(answer: bytes) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        refused(channel("webhook", url=f"http://127.0.0.1:{server.getsockname()[1]}/hook"))
        thread.join()


def test_a_receiver_that_never_answers_is_channel_down_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        refused(channel("webhook", url=f"http://127.0.0.1:{silent.getsockname()[1]}/hook"))
    assert time.monotonic() - started < 5


# --- command

TAKE = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())"


def test_a_command_gets_the_message_on_its_standard_input(tmp_path: Path) -> None:
    channel("command", argv=(sys.executable, "-c", TAKE, str(tmp_path / "taken"))).deliver(MESSAGE)
    assert json.loads((tmp_path / "taken").read_bytes()) == BODY


def test_no_shell_looks_at_the_arguments_of_a_command(tmp_path: Path) -> None:
    strange = tmp_path / "$(touch x); `id`"
    channel("command", argv=(sys.executable, "-c", TAKE, str(strange))).deliver(MESSAGE)
    assert [path.name for path in tmp_path.iterdir()] == [strange.name]


def test_a_command_that_fails_is_channel_down_with_its_last_words() -> None:
    failure = refused(channel("command", argv=(sys.executable, "-c", "import sys; sys.exit('the line is busy')")))
    assert "ended with 1: the line is busy" in failure.message


def test_a_command_that_does_not_exist_is_channel_down() -> None:
    refused(channel("command", argv=("/nowhere/pager",)))


def test_a_command_that_does_not_end_is_killed_and_channel_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TIMEOUT_S", 0.3)
    refused(channel("command", argv=(sys.executable, "-c", "import time; time.sleep(60)")))


def test_a_command_that_does_not_read_its_input_has_taken_the_message() -> None:
    channel("command", argv=("true",)).deliver(MESSAGE)


# --- file


def test_a_file_gets_one_json_line_a_message(tmp_path: Path) -> None:
    one = channel("file", path=str(tmp_path / "messages.jsonl"))
    one.deliver(MESSAGE)
    one.deliver(MESSAGE)
    text = (tmp_path / "messages.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [BODY, BODY]


def test_a_file_keeps_what_stood_in_it(tmp_path: Path) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_text("before\n", encoding="utf-8")
    channel("file", path=str(path)).deliver(MESSAGE)
    assert path.read_text(encoding="utf-8").startswith("before\n{")


def test_a_file_that_cannot_be_written_is_channel_down(tmp_path: Path) -> None:
    refused(channel("file", path=str(tmp_path / "absent" / "messages.jsonl")))
