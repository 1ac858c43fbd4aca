"""The channels to people, against a real HTTP receiver, real commands and real files."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rearguard import plugins
from rearguard.adapters.channels import command, file, webhook
from rearguard.database import open_database
from rearguard.edge import SystemClock
from rearguard.errors import DependencyError
from rearguard.handoffs.courier import deliver_once
from rearguard.handoffs.outbox import post
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Channel, Message

MESSAGE = Message(
    key="run_1:ended",
    title="fraud/prod: rollback ended (succeeded)",
    fields={"why": "P95 Latency", "ü": "€"},
    cause="R-1",
    severity="page",
    action="update",
)
BODY = {
    "key": "run_1:ended",
    "title": MESSAGE.title,
    "fields": {"why": "P95 Latency", "ü": "€"},
    "cause": "R-1",
    "severity": "page",
    "action": "update",
}


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
    clock = SystemClock()
    with database.transaction() as connection:
        post(connection, replace(MESSAGE, action="open"), clock.now())
    channels = {"oncall": lambda: channel("webhook", url=receiver.url)}
    still_open = [deliver_once(database, clock, channels) for _ in range(4)]
    assert still_open == [1, 1, 0, 0]
    assert [json.loads(body) for _, _, body in receiver.requests] == [
        {**BODY, "action": "open"}
    ] * 3  # two noes, one yes


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


@contextmanager
def raw_receiver(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A receiver that does as it likes with one connection; its address."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Long: "])
def test_a_receiver_that_drips_its_answer_is_cut_off(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes well within a timeout of the socket; only the sum is too long."""
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.5)
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.recv(65_536)
        with contextlib.suppress(OSError):
            connection.sendall(start)
            while not over.wait(0.05):
                connection.sendall(b"H")

    with raw_receiver(drip) as url:
        started = time.monotonic()
        failure = refused(channel("webhook", url=url))
        took_s = time.monotonic() - started
        over.set()
    assert 0.4 < took_s < 5
    assert "no answer within 0.5 s" in failure.message


def test_a_connection_that_is_closed_without_an_answer_is_channel_down() -> None:
    with raw_receiver(lambda connection: None) as url:
        refused(channel("webhook", url=url))


def test_a_delivery_leaves_no_thread_behind(receiver: Receiver) -> None:
    before = {thread.name for thread in threading.enumerate()}
    channel("webhook", url=receiver.url).deliver(MESSAGE)
    end = time.monotonic() + 5
    while {t.name for t in threading.enumerate() if isinstance(t, threading.Timer)} - before:
        assert time.monotonic() < end
        time.sleep(0.01)


# --- signature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""Of the published example of Standard Webhooks, like the values in the next test."""


def test_the_signature_is_that_of_the_published_vector() -> None:
    found = webhook.signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def verified(headers: dict[str, str], body: bytes, secret: str = SECRET) -> bool:
    """A receiver's own look, written from the specification."""
    lower = {name.lower(): value for name, value in headers.items()}
    signed = b".".join([lower["webhook-id"].encode(), lower["webhook-timestamp"].encode(), body])
    digest = hmac.digest(base64.b64decode(secret[len("whsec_") :]), signed, hashlib.sha256)
    version, _, claimed = lower["webhook-signature"].partition(",")
    fresh = abs(time.time() - int(lower["webhook-timestamp"])) < 300
    return version == "v1" and fresh and hmac.compare_digest(base64.b64decode(claimed), digest)


def test_a_receiver_verifies_a_signed_message_by_its_own_computation(receiver: Receiver) -> None:
    channel("webhook", url=receiver.url, secret=SECRET).deliver(MESSAGE)
    ((_, headers, body),) = receiver.requests
    assert verified(headers, body)
    assert {k.lower(): v for k, v in headers.items()}["webhook-id"] == MESSAGE.key


@pytest.mark.parametrize(
    "change",
    [
        lambda headers, body: (headers, body + b" "),
        lambda headers, body: ({**headers, "webhook-id": "other"}, body),
        lambda headers, body: ({**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}, body),
    ],
    ids=["body", "id", "timestamp"],
)
def test_a_message_that_was_changed_on_the_way_does_not_verify(receiver: Receiver, change: Any) -> None:
    channel("webhook", url=receiver.url, secret=SECRET).deliver(MESSAGE)
    ((_, headers, body),) = receiver.requests
    assert not verified(*change({name.lower(): value for name, value in headers.items()}, body))


def test_without_a_secret_nothing_is_signed(receiver: Receiver) -> None:
    channel("webhook", url=receiver.url).deliver(MESSAGE)
    assert "webhook-signature" not in {name.lower() for name in receiver.requests[0][1]}


def test_the_secret_is_in_no_error() -> None:
    failure = refused(channel("webhook", url="http://127.0.0.1:9/hook", secret=SECRET))
    assert SECRET[6:] not in failure.message + failure.hint


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


LEAVE_BEHIND = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[Path]:
    """Where a command writes the id of the process that it leaves in the background; ended with the test."""
    yield tmp_path / "pid"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_command_that_leaves_a_process_behind_has_taken_the_message(left_behind: Path) -> None:
    channel("command", argv=(sys.executable, "-c", LEAVE_BEHIND, str(left_behind), "0")).deliver(MESSAGE)


def test_a_command_that_does_not_end_is_killed_with_the_processes_it_started(
    left_behind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TIMEOUT_S", 1.0)
    refused(channel("command", argv=(sys.executable, "-c", LEAVE_BEHIND, str(left_behind), "60")))
    stat = Path(f"/proc/{int(left_behind.read_text())}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":  # the test's own limit ends this
            os.sched_yield()


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


DELIVER_WITH_ROOM_FOR_100_BYTES = """
import resource, signal, sys
from rearguard import plugins
from rearguard.errors import DependencyError
from rearguard.model.settings import ChannelSettings
from rearguard.ports import Message

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # as of a full disk: the write is short
channel = plugins.load("rearguard.channels", "file")(ChannelSettings(name="oncall", kind="file", path=sys.argv[1]))
try:
    channel.deliver(Message(key="k", title="t" * 200, fields={}))
except DependencyError as error:
    print(error.code, "space" in error.hint)
"""


def test_a_line_of_which_only_a_part_could_be_written_is_taken_back_and_channel_down(tmp_path: Path) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_text("before\n", encoding="utf-8")
    words = [sys.executable, "-c", DELIVER_WITH_ROOM_FOR_100_BYTES, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, path.read_text(encoding="utf-8")) == ("channel_down True\n", "before\n")


def test_a_line_that_somebody_left_unfinished_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_text('{"key": "torn', encoding="utf-8")
    channel("file", path=str(path)).deliver(MESSAGE)
    torn, line = path.read_text(encoding="utf-8").splitlines()
    assert (torn, json.loads(line)) == ('{"key": "torn', BODY)


def test_a_pipe_that_nobody_reads_is_channel_down_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(channel("file", path=str(tmp_path / "pipe")))


def test_a_pipe_with_a_reader_gets_the_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        channel("file", path=str(tmp_path / "pipe")).deliver(MESSAGE)
        assert json.loads(os.read(reader, 65_536)) == BODY
    finally:
        os.close(reader)


def test_a_pipe_that_is_full_is_channel_down_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * 4096):
                pass
        refused(channel("file", path=str(tmp_path / "pipe")))
    finally:
        os.close(reader)
        os.close(writer)


def test_a_file_that_another_process_keeps_locked_is_channel_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "LOCK_S", 0.05)
    with (tmp_path / "messages.jsonl").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(channel("file", path=str(tmp_path / "messages.jsonl")))


# --- what a receiver is told to do


def documented_check() -> Any:
    """The function on the reference page."""
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "messages.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(program, found)
    return found["verify"]


def test_the_check_on_the_reference_page_takes_what_we_sign_and_nothing_else(receiver: Receiver) -> None:
    channel("webhook", url=receiver.url, secret=SECRET).deliver(MESSAGE)
    ((_, headers, body),) = receiver.requests
    lower = {name.lower(): value for name, value in headers.items()}
    check = documented_check()
    assert check(SECRET, lower, body)
    assert not check(SECRET, lower, body + b" ")
    assert not check("whsec_" + base64.b64encode(b"y" * 24).decode(), lower, body)
    assert not check(SECRET, {**lower, "webhook-timestamp": "1614265330"}, body)
