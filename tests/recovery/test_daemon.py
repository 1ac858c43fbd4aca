"""The daemon as an operating system and a Prometheus see it: real processes that are asked, signalled, hung and killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from stage import Policy, Server, Stage, Watcher, free_port, wait_until

from rearguard.database import LEASE_S, officer_presence
from rearguard.model.run import RunState
from rearguard.officer import settings_in_force

SetStage = Callable[..., Stage]
RequirePart = Callable[[str, bool, str], None]
UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "rearguard.service"
ALERTS = Path(__file__).parents[2] / "docs" / "how-to" / "prometheus-alerts.yaml"
HANGS_AFTER_S = 1
"""Silence after which the stage's daemons have something to write; with the database locked they hang at it."""


def start(stage: Stage, *words: str, fault: str = "", listen: str = "127.0.0.1:0", **variables: str) -> Watcher:
    """`rearguard run`, its events as those of a watcher."""
    out = stage.state / f"run-{time.monotonic_ns()}.jsonl"
    command = ["-m", "rearguard.interfaces.cli", "run", "--state", str(stage.state), "--listen", listen, *words]
    environment = {"REARGUARD_FAULT": fault, **variables}
    return Watcher(stage.processes.start(command, out=out, variables=environment), out)


def in_office(daemon: Watcher) -> Watcher:
    wait_until(lambda: daemon.events("watch_started"), "the daemon is in office")
    return daemon


def ask(daemon: Watcher, path: str) -> tuple[int, bytes]:
    """What its endpoint answers."""
    (listening,) = wait_until(lambda: daemon.events("endpoint_listening"), "the endpoint listens")
    connection = http.client.HTTPConnection("127.0.0.1", listening["port"], timeout=20)
    connection.request("GET", path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def health(daemon: Watcher) -> tuple[int, dict[str, Any]]:
    status, content = ask(daemon, "/healthz")
    return status, dict(json.loads(content))


def declare_heartbeat(stage: Stage) -> Path:
    """A sign of life every second into a file."""
    settings = stage.state / "rearguard.yaml"
    settings.write_text(settings.read_text() + "heartbeat: {kind: file, path: beats.jsonl, every: 1 s}\n")
    return stage.state / "beats.jsonl"


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_real_prometheus_scrapes_a_rollback_and_answers_what_it_did(
    server: Server, set_stage: SetStage, tmp_path: Path, require_part: RequirePart
) -> None:
    require_part("prometheus", which("prometheus") is not None, "apt-get install prometheus")
    stage = set_stage(server)
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    stage.send_traffic()
    daemon = in_office(start(stage))
    (listening,) = daemon.events("endpoint_listening")
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: 500ms}}\nrule_files: [{ALERTS}]\nscrape_configs:\n"
        f"  - {{job_name: rearguard, static_configs: [{{targets: ['127.0.0.1:{listening['port']}']}}]}}\n"
    )
    words = [
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        prometheus = subprocess.Popen(["prometheus", *words], stdout=log, stderr=log)
    try:
        assert stage.wait_for_end().state is RunState.SUCCEEDED

        def answer(query: str) -> float | None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
                result = json.loads(connection.getresponse().read())["data"]["result"]
                return float(result[0]["value"][1]) if result else None
            except (OSError, ValueError):
                return None
            finally:
                connection.close()

        wait_until(lambda: answer('rearguard_runs_total{state="succeeded"}') == 1, "Prometheus knows of the rollback")
        assert answer("rearguard_incidents_total{trigger='errors'}") == 1
        assert answer("rearguard_up") == 1
        rto_s = answer("rearguard_rto_last_seconds")
    finally:
        prometheus.terminate()
        prometheus.wait(10)
    (finished,) = stage.records("rollback_finished")
    assert rto_s == int(finished.body["rto_achieved_ms"]) / 1000  # type: ignore[arg-type, call-overload]
    checked = subprocess.run(["promtool", "check", "metrics"], input=ask(daemon, "/metrics")[1], capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    assert (health(daemon)[0], ask(daemon, "/readyz")[0], daemon.end()) == (200, 200, 0)


def test_the_alerts_are_valid_rules_over_metrics_that_exist(require_part: RequirePart) -> None:
    require_part("promtool", which("promtool") is not None, "apt-get install prometheus")
    checked = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path, require_part: RequirePart) -> None:
    require_part("systemd-analyze", which("systemd-analyze") is not None, "apt-get install systemd")
    unit = tmp_path / "rearguard.service"
    unit.write_text(UNIT.read_text().replace("/opt/rearguard/bin/rearguard", sys.executable))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=30)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_sigterm_in_the_middle_of_a_run_hands_it_over_and_the_next_one_ends_it(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=Policy(recovery_s=6))
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    stage.send_traffic()
    first = in_office(start(stage))
    wait_until(lambda: [e for e in first.events("step_done") if e["step"] == "activate"], "traffic was switched")
    began = time.monotonic()
    assert first.end() == 0
    assert time.monotonic() - began < 12
    assert first.events("watch_stopped")[0]["handed_over"] == 1
    second = in_office(start(stage))
    run = stage.wait_for_end()
    assert second.end() == 0
    assert (run.state, len(stage.runs())) == (RunState.SUCCEEDED, 1)
    assert stage.kinds(run.id)["traffic_switched"] == 1


@pytest.mark.long
def test_a_database_that_somebody_else_locks_silences_the_heartbeat_and_is_no_reason_to_replace_the_officer(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=Policy(no_data_after_s=HANGS_AFTER_S))
    beats = declare_heartbeat(stage)
    lock = sqlite3.connect(stage.state / "rearguard.db", isolation_level=None)
    daemon = in_office(start(stage))
    wait_until(lambda: daemon.events("telemetry_silent"), "it is told of silence")
    stage.deploy("v1")
    clients = stage.send_traffic()
    wait_until(lambda: daemon.events("telemetry_back"), "it hears requests")
    wait_until(lambda: lines_of(beats), "it is alive")
    assert health(daemon)[1]["heartbeat_age_s"] < 5
    lock.execute("BEGIN IMMEDIATE")  # nobody else can write now
    clients.stop()  # silence is to be recorded: the loop waits for the database
    document = wait_until(lambda: found if "failing" in (found := health(daemon)[1]) else None, "healthz tells", 30)
    assert [part["component"] for part in document["failing"]] == ["watch"]
    assert b"rearguard_up 0.0" in ask(daemon, "/metrics")[1]
    at_hang = lines_of(beats)
    time.sleep(2.5)
    assert lines_of(beats) == at_hang
    with stage.office(write=False) as office:
        presence = officer_presence(stage.state, office.clock.now())
    assert presence.idle_s is not None
    assert presence.idle_s < LEASE_S / 2  # the office's own beat goes on: a successor could do no better
    lock.execute("ROLLBACK")
    lock.close()
    wait_until(lambda: health(daemon)[0] == 200, "it goes on")
    wait_until(lambda: lines_of(beats) > at_hang, "the heartbeat is back")
    assert daemon.end() == 0
    assert stage.records("telemetry_silent")  # what could not be written was not lost


def test_a_standby_takes_over_after_a_kill_and_only_then(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    first = in_office(start(stage))
    second = start(stage, "--wait")
    wait_until(lambda: second.events("standing_by"), "the second stands by")
    assert health(second)[1]["status"] == "standby"
    assert ask(second, "/readyz")[0] == 503
    third = start(stage)
    assert third.process.wait(20) == 75
    assert not second.events("watch_started")
    first.process.kill()
    in_office(second)
    assert wait_until(lambda: ask(second, "/readyz")[0] == 200, "it is ready")
    assert second.end() == 0


def test_a_standby_whose_take_over_meets_a_locked_database_pages_and_tries_again(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server)
    first = in_office(start(stage))
    second = start(stage, "--wait")
    wait_until(lambda: second.events("standing_by"), "the second stands by")
    lock = sqlite3.connect(stage.state / "rearguard.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    first.process.kill()
    wait_until(lambda: second.events("take_over_failed"), "it says why it cannot", 30)
    wait_until(lambda: "no officer is in office" in cries(stage), "somebody is paged")
    assert second.process.poll() is None
    lock.execute("ROLLBACK")
    lock.close()
    in_office(second)
    assert second.end() == 0


def test_a_standby_says_that_the_settings_do_not_read_and_takes_over_on_those_that_did(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server)
    first = in_office(start(stage))
    second = start(stage, "--wait")
    wait_until(lambda: second.events("standing_by"), "the second stands by")
    settings = stage.state / "rearguard.yaml"
    good = settings.read_text()
    settings.write_text(good.replace("margin_ms: 5", "margin_ms: five"))
    wait_until(lambda: second.events("settings_unreadable"), "it says so while there is time")
    status, content = ask(second, "/readyz")
    assert (status, "margin_ms" in json.loads(content)["reason"]) == (503, True)
    first.process.kill()
    in_office(second)
    wait_until(lambda: "the files do not read now" in cries(stage), "somebody is paged")
    assert second.end() == 0


def test_a_standby_takes_over_on_the_settings_as_they_are_then(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    first = in_office(start(stage))
    second = start(stage, "--wait")
    wait_until(lambda: second.events("standing_by"), "the second stands by")
    settings = stage.state / "rearguard.yaml"
    good = settings.read_text()
    settings.write_text(good.replace("margin_ms: 5", "margin_ms: five"))
    wait_until(lambda: second.events("settings_unreadable"), "it says so while there is time")
    settings.write_text(good.replace("margin_ms: 5", "margin_ms: 6"))
    wait_until(lambda: second.events("settings_read"), "it says that they are mended")
    first.process.kill()
    in_office(second)
    with stage.office(write=False) as office:
        assert not settings_in_force.changed(office, office.clock.now())
    assert second.end() == 0


def damage(stage: Stage, table: str) -> None:
    """Overwrite the root page of a table, as a bad disk does."""
    database = stage.state / "rearguard.db"
    raw = sqlite3.connect(database)
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ((page_bytes,),) = raw.execute("PRAGMA page_size").fetchall()
    ((root,),) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    raw.close()
    with database.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xa5" * page_bytes)


def test_an_officer_whose_database_is_damaged_ends_with_65_and_not_in_silence(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server, policy=Policy(no_data_after_s=600))
    stage.deploy("v1")
    stage.arm()
    stage.deploy("v2")
    daemon = in_office(start(stage))
    damage(stage, "incidents")
    stage.send_traffic()
    assert daemon.process.wait(60) == 65
    assert cries(stage).count("its records are damaged") == 1
    again = start(stage)  # as systemd does
    assert again.process.wait(60) == 65
    assert cries(stage).count("its records are damaged") == 1


def cries(stage: Stage) -> str:
    """What was put into the channel's file."""
    file = stage.state / "messages.jsonl"
    return file.read_text() if file.exists() else ""


def test_a_standby_that_is_stopped_ends_at_once_and_leaves_the_office_alone(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server)
    first = in_office(start(stage))
    second = start(stage, "--wait")
    wait_until(lambda: second.events("standing_by"), "the second stands by")
    assert second.end() == 0
    with stage.office(write=False) as office:
        presence = officer_presence(stage.state, office.clock.now())
    assert presence.pid == first.process.pid
    assert first.end() == 0


@pytest.mark.long
def test_a_frozen_officer_is_replaced_paged_about_and_ends_with_75_when_it_wakes(
    server: Server, set_stage: SetStage
) -> None:
    stage = set_stage(server)
    beats = declare_heartbeat(stage)
    first = in_office(start(stage))
    wait_until(lambda: lines_of(beats), "it is alive")
    second = start(stage, "--wait")
    wait_until(lambda: second.events("standing_by"), "the second stands by")
    os.kill(first.process.pid, signal.SIGSTOP)
    wait_until(lambda: second.events("officer_replaced"), "it is replaced", 40)
    in_office(second)
    assert stage.records("officer_replaced")[0].body["pid"] == first.process.pid
    wait_until(lambda: [m for m in stage.messages() if "was replaced" in m["title"]], "somebody is paged")
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.process.wait(20) == 75
    assert first.events("officer_superseded")
    assert not first.events("watch_stopped")
    assert second.end() == 0


def test_a_second_signal_ends_at_once_and_leaves_the_run_where_it_stands(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    stage.deploy("v1")
    stage.deploy("v2")
    stage.arm()
    stage.force_breach()
    daemon = in_office(start(stage, fault="verify:after_effect:freeze"))
    pid = daemon.process.pid
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", "frozen mid-run")
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGCONT)
    assert daemon.process.wait(5) == 130
    assert [run.state for run in stage.runs()] == [RunState.RUNNING]  # for the next officer


def test_the_log_is_reopened_on_sighup(server: Server, set_stage: SetStage, tmp_path: Path) -> None:
    stage = set_stage(server)
    log = tmp_path / "rearguard.jsonl"
    daemon = Watcher(start(stage, "--log", str(log), "--log-max-mib", "0").process, log)
    wait_until(lambda: log.exists() and daemon.events("watch_started"), "it is in office")
    moved = log.rename(log.with_suffix(".moved"))
    os.kill(daemon.process.pid, signal.SIGHUP)
    assert daemon.end() == 0
    after = [line["event"] for line in map(json.loads, log.read_text().splitlines())]
    assert (after[-1], "watch_started" in after) == ("watch_stopped", False)
    before = [json.loads(line) for line in moved.read_text().splitlines()]
    assert {"endpoint_listening", "watch_started"} <= {line["event"] for line in before}
    assert "watch_stopped" not in {line["event"] for line in before}


def test_systemd_is_told_of_readiness_life_and_the_end(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    name = f"rearguard-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)  # an abstract socket, as containers have
        manager.settimeout(20)
        daemon = start(stage, NOTIFY_SOCKET="@" + name, WATCHDOG_USEC="1000000")
        told = manager.recv(4096).decode().splitlines()
        assert told == ["READY=1"]
        watchdogs = 0
        while watchdogs < 3:
            watchdogs += manager.recv(4096).decode().splitlines().count("WATCHDOG=1")
        began = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - began < 12
        rest = []
        while "STOPPING=1" not in rest:
            rest += manager.recv(4096).decode().splitlines()


def test_a_wrong_address_is_said_before_the_office_is_taken(server: Server, set_stage: SetStage) -> None:
    stage = set_stage(server)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon = start(stage, listen=f"127.0.0.1:{taken.getsockname()[1]}")
        assert daemon.process.wait(20) == 69
    assert not daemon.events("watch_started")
