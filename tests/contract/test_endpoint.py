"""The endpoint on a real socket: three paths, GET and HEAD, a bounded number of connections, no patience with the slow."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from shutil import which

import pytest

from rearguard.errors import DependencyError, UsageError
from rearguard.interfaces.endpoint import CONNECTION_S, MAX_CONNECTIONS, Endpoint, Sources, parse_address, render
from rearguard.model.time import Instant
from rearguard.officer import metric_names as names
from rearguard.officer.daemon import Health
from rearguard.officer.metrics import Figure, Histogram, Sample
from rearguard.officer.supervision import ComponentHealth, Supervisor

SINCE = Instant(wall_ns=1_700_000_000_000_000_000, mono_ns=0, boot_id="b")  # 2023-11-14T22:13:20Z
ALIVE = ComponentHealth(name="watch", ok=True, state="alive", since=SINCE, idle_s=0.1)
HUNG = replace(ALIVE, name="housekeeper", ok=False, state="hung", idle_s=42.0, detail="no reason")
WELL = Health(ok=True, status="ok", components=(ALIVE,), heartbeat_age_s=3.0)
FAILING = Health(ok=False, status="failing", components=(ALIVE, HUNG), heartbeat_age_s=None)
FIGURES: tuple[Figure, ...] = (
    Sample(metric=names.UP, labels=(), value=1),
    Sample(metric=names.RUNS, labels=("fraud", "prod", "succeeded"), value=3),
    Histogram(metric=names.RTO, labels=("fraud", "prod"), counts=(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2), total=2045.0),
)


class World:
    """What the endpoint answers from."""

    def __init__(self) -> None:
        self.health = WELL
        self.ready = WELL
        self.figures: Callable[[], tuple[Figure, ...]] = lambda: FIGURES
        self.port = 0

    def ask(self, method: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    found = World()
    sources = Sources(lambda: found.health, lambda: found.ready, lambda: found.figures())
    endpoint = Endpoint("127.0.0.1", 0, sources, connection_s=getattr(request, "param", CONNECTION_S))
    found.port = endpoint.bind()[1]
    stop = threading.Event()
    supervisor = Supervisor(lambda: SINCE, lambda _name, _fields: None, stop)
    supervisor.start(endpoint.component(stop))
    yield found
    stop.set()


def test_healthz_says_ok_and_every_component(world: World) -> None:
    status, headers, content = world.ask("GET", "/healthz")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(content) == {"status": "ok", "components": {"watch": "alive"}, "heartbeat_age_s": 3.0}


def test_healthz_names_what_hangs_and_since_when(world: World) -> None:
    world.health = FAILING
    status, _, content = world.ask("GET", "/healthz")
    document = json.loads(content)
    assert (status, document["status"]) == (503, "failing")
    assert document["failing"] == [
        {
            "component": "housekeeper",
            "state": "hung",
            "since": "2023-11-14T22:13:20Z",
            "idle_s": 42.0,
            "detail": "no reason",
        }
    ]


def test_readyz_is_asked_apart_from_healthz(world: World) -> None:
    world.ready = replace(WELL, ok=False, status="standby")
    assert world.ask("GET", "/healthz")[0] == 200
    status, _, content = world.ask("GET", "/readyz")
    assert (status, json.loads(content)["status"]) == (503, "standby")


def test_metrics_in_the_text_format_of_prometheus(world: World) -> None:
    status, headers, content = world.ask("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    lines = content.decode().splitlines()
    assert "rearguard_up 1.0" in lines
    assert 'rearguard_runs_total{env="prod",service="fraud",state="succeeded"} 3.0' in lines
    assert 'rearguard_rto_seconds_bucket{env="prod",le="+Inf",service="fraud"} 2.0' in lines
    assert 'rearguard_rto_seconds_count{env="prod",service="fraud"} 2.0' in lines
    assert 'rearguard_rto_seconds_sum{env="prod",service="fraud"} 2045.0' in lines


def test_openmetrics_when_the_client_asks_for_it() -> None:
    content, kind = render(FIGURES, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert content.endswith(b"# EOF\n")


def test_every_family_can_be_rendered_and_passes_promtool(require_part: Callable[[str, bool, str], None]) -> None:
    require_part("promtool", which("promtool") is not None, "apt-get install prometheus")
    every: list[Figure] = []
    for metric in names.METRICS:
        labels = tuple(f"a{i}" for i, _ in enumerate(metric.labels))
        if metric.kind == names.HISTOGRAM:
            every.append(Histogram(metric=metric, labels=labels, counts=(1,) * 11, total=0.5))
        else:
            every.append(Sample(metric=metric, labels=labels, value=1))
    content, _ = render(every, "")
    checked = subprocess.run(["promtool", "check", "metrics"], input=content, capture_output=True, timeout=30)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    for metric in names.METRICS:
        assert f"# TYPE {metric.name} {metric.kind}".encode() in content


def test_a_label_cannot_break_out_of_its_quotes() -> None:
    content, _ = render((Sample(metric=names.CHANNEL_FAILURES, labels=('a"} 1\nb',), value=1),), "")
    assert content.decode().splitlines()[-1] == r'rearguard_channel_failures{channel="a\"} 1\nb"} 1.0'


def test_head_gives_the_headers_alone(world: World) -> None:
    status, headers, content = world.ask("HEAD", "/healthz")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(world: World, method: str) -> None:
    status, headers, _ = world.ask(method, "/healthz")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics/../state", "/rearguard.db"])
def test_no_other_path(world: World, path: str) -> None:
    assert world.ask("GET", path)[0] == 404


def test_a_database_that_cannot_be_read_is_a_503_and_not_an_empty_page(world: World) -> None:
    def broken() -> tuple[Figure, ...]:
        raise DependencyError("database_unavailable", "disk is gone")

    world.figures = broken
    status, _, content = world.ask("GET", "/metrics")
    assert (status, json.loads(content)["error"]["code"]) == (503, "database_unavailable")
    assert world.ask("GET", "/healthz")[0] == 200


def test_a_scrape_that_hangs_leaves_health_answered(world: World) -> None:
    release = threading.Event()
    world.figures = lambda: FIGURES if release.wait(30) else ()
    scrape = threading.Thread(target=world.ask, args=("GET", "/metrics"))
    scrape.start()
    status = world.ask("GET", "/healthz")[0]
    release.set()
    scrape.join(30)
    assert status == 200


@pytest.mark.parametrize("world", [1.0], indirect=True)
def test_idle_connections_take_no_more_than_their_share_and_are_hung_up_on(world: World) -> None:
    idle = [socket.create_connection(("127.0.0.1", world.port), timeout=30) for _ in range(MAX_CONNECTIONS)]
    for connection in idle:
        connection.sendall(b"GET /hea")  # and never the rest
    time.sleep(0.2)  # until all of them are accepted
    with socket.create_connection(("127.0.0.1", world.port), timeout=30) as one_more:
        assert one_more.recv(100).startswith(b"HTTP/1.0 503")
    for connection in idle:
        connection.recv(1000)  # ends when the server hangs up
        connection.close()
    end = time.monotonic() + 10
    while world.ask("GET", "/healthz")[0] != 200:
        assert time.monotonic() < end


@pytest.mark.parametrize("world", [1.0], indirect=True)
def test_a_client_that_drips_one_byte_after_the_other_is_hung_up_on(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=30) as slow:
        began = time.monotonic()
        with contextlib.suppress(OSError):  # a reset or a broken pipe, whichever comes first
            while time.monotonic() - began < 10:
                slow.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < 5


def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DependencyError) as refused:
            Endpoint("127.0.0.1", port, Sources(lambda: WELL, lambda: WELL, lambda: ())).bind()
    assert refused.value.code == "listen_failed"
    assert str(port) in refused.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
        ("off", None),
    ],
)
def test_addresses(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "9464", ":9464", "host", "host:70000", "host:x", "http://a:1", "a@b:1", "a:1/x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_address(text)
    assert refused.value.code == "listen_address"
