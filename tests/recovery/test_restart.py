"""A watcher that dies and comes back: streaks, closed incidents and counts are what they would have been (F19).

The request log is written by the test itself, line by line with the host's clocks, as a model server does; the watchers
are real processes that are really killed.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import ENV, SERVICE, Processes, Watcher, free_port, wait_until

from rearguard.config.templates import playbook_template
from rearguard.edge import read_boot_id
from rearguard.evidence.log import read
from rearguard.model.incident import Incident
from rearguard.model.service import Digest
from rearguard.model.time import NS_PER_S, rfc3339_ms
from rearguard.officer import deployments, incidents
from rearguard.officer.office import open_office

DIGEST = Digest("sha256:" + "ab" * 32)
WINDOW_S = 6
SEED = 20261124
SETTINGS = f"""\
version: 1
playbook: rollback_playbook.yaml
channels: {{oncall: {{kind: file, path: messages.jsonl}}}}
services:
  {SERVICE}:
    environments:
      {ENV}:
        stateless: true
        target: {{adapter: oip, url: "http://127.0.0.1:@PORT@", model: {SERVICE}}}
        telemetry: {{adapter: jsonl, requests: requests.jsonl}}
        triggers: {{latency: off, compliance: off, errors: {{limit_percent: 1}}}}
        rule: {{profile: literal, window: @WINDOW@ s, for_windows: 2, min_samples: 10}}
        no_data_after: 60 s
"""


class Log:
    """Writes the request log; each line opens the file anew, so that it may be renamed and removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.times: list[int] = []
        self._boot_id = read_boot_id()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, mono_ns: int, status: int) -> None:
        wall_ns = time.time_ns() - (time.monotonic_ns() - mono_ns)
        line = {
            "ts": rfc3339_ms(wall_ns),
            "mono_ns": mono_ns,
            "boot_id": self._boot_id,
            "service": SERVICE,
            "env": ENV,
            "digest": DIGEST,
            "version": "v2",
            "status": status,
            "latency_ms": 1.5,
            "id": "",
            "probe": False,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.times.append(mono_ns)

    def history(self, seconds: int, status: int) -> int:
        """Ten lines a second of the whole seconds before this one; the instant of the first."""
        now_ns = time.monotonic_ns() // NS_PER_S * NS_PER_S
        for at_ns in range(now_ns - seconds * NS_PER_S, now_ns, NS_PER_S // 10):
            self.write(at_ns, status)
        return now_ns - seconds * NS_PER_S

    def go_on(self, status: int, pause_s: float = 0.05) -> None:
        """One line after the other until `stop`."""

        def work() -> None:
            while not self._stop.wait(pause_s):
                self.write(time.monotonic_ns(), status)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)


class House:
    """A state directory, its log, and watchers."""

    def __init__(self, state: Path) -> None:
        state.mkdir()
        self._port = free_port()
        self.state = state
        self.set_window(WINDOW_S)
        (state / "rollback_playbook.yaml").write_text(playbook_template(), encoding="utf-8")
        self.log = Log(state / "requests.jsonl")
        self.processes = Processes()
        self._watchers = 0

    def set_window(self, window_s: int) -> None:
        text = SETTINGS.replace("@PORT@", str(self._port)).replace("@WINDOW@", str(window_s))
        (self.state / "rearguard.yaml").write_text(text, encoding="utf-8")

    def watch(self) -> Watcher:
        self._watchers += 1
        out = self.state / f"watch-{self._watchers}.jsonl"
        words = ["-m", "rearguard.interfaces.cli", "watch", "--json", "--state", str(self.state)]
        watcher = Watcher(self.processes.start(words, out=out), out)
        wait_until(lambda: watcher.events("watch_started") or watcher.process.poll() is not None, "it watches")
        return watcher

    def kill(self, watcher: Watcher) -> None:
        watcher.process.kill()
        watcher.process.wait(10)

    def saved(self) -> dict[str, Any]:
        """The saved watch, read by a program that is not ours; empty before the first save."""
        with sqlite3.connect(f"file:{self.state / 'rearguard.db'}?mode=ro", uri=True) as raw:
            found = raw.execute("SELECT body FROM watches WHERE service = ? AND env = ?", (SERVICE, ENV)).fetchone()
        raw.close()
        return json.loads(found[0]) if found else {}

    def streak(self) -> int:
        """Windows over the error limit in a row, as saved."""
        return sum(rule["errors"][0] for rule in self.saved().get("rules", []))

    def counted(self) -> Counter[int]:
        """Requests by monotonic second, as saved."""
        with sqlite3.connect(f"file:{self.state / 'rearguard.db'}?mode=ro", uri=True) as raw:
            rows = raw.execute("SELECT mono_s, requests FROM counts").fetchall()
        raw.close()
        return Counter(dict(rows))

    def incidents(self) -> tuple[Incident, ...]:
        with open_office(self.state, write=False) as office:
            return incidents.list_incidents(office)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path / "state")
    yield built
    built.log.stop()
    built.processes.end_all()


def test_a_streak_that_was_under_way_survives_a_kill_and_the_loss_of_the_log(house: House) -> None:
    first_ns = house.log.history(WINDOW_S, 500)  # the first window is over, and over the limit
    watcher = house.watch()
    wait_until(lambda: house.streak() == 1, "one window of two is saved as bad")
    house.kill(watcher)
    house.log.path.unlink()
    house.log.go_on(500)
    assert house.incidents() == ()
    house.watch()
    (incident,) = wait_until(house.incidents, "the breach is found")

    assert incident.t0.mono_ns == first_ns
    with open_office(house.state, write=False) as office, office.database.reading() as connection:
        (opened,) = [r.body for r in read(connection) if r.kind == "incident_opened"]
    assert opened["streak"] == 2
    assert opened["window"]["end_s"] == first_ns // NS_PER_S + 2 * WINDOW_S


@pytest.mark.parametrize("rotated", [False, True])
def test_f19_a_restart_does_not_resurrect_closed_incidents(house: House, rotated: bool) -> None:
    house.set_window(2)
    house.log.history(2, 500)
    house.log.go_on(500)
    watcher = house.watch()
    (incident,) = wait_until(house.incidents, "the breach is found")
    wait_until(lambda: house.streak() >= 2, "the streak is saved")
    house.kill(watcher)
    with open_office(house.state) as office:
        incidents.close(office, incident.id, by="ops", false_positive=True)
    if rotated:
        house.log.path.unlink()
    before = house.streak()
    house.watch()
    wait_until(lambda: house.streak() > before, "a window after the restart is over the limit as well")
    assert [(i.id, i.state.value) for i in house.incidents()] == [(incident.id, "closed")]


def test_f19_a_restart_opens_no_deployment_for_what_was_answering_before(house: House) -> None:
    house.log.history(3, 200)
    watcher = house.watch()
    wait_until(lambda: house.saved().get("digest") == DIGEST, "what answers is saved")
    house.kill(watcher)
    second = house.watch()
    wait_until(lambda: second.events("digest_answers"), "it is seen again")
    with open_office(house.state, write=False) as office:
        assert [(d.digest, d.source) for d in deployments.list_deployments(office)] == [(DIGEST, "unregistered")]


def test_after_kills_at_random_instants_each_line_of_the_log_is_counted_once(house: House) -> None:
    chance = random.Random(SEED)
    house.log.go_on(200, pause_s=0.004)
    for number in range(6):
        watcher = house.watch()
        time.sleep(chance.uniform(0.0, 0.9))  # the first save comes 0.25 to 0.5 s after the start
        house.kill(watcher)
        if number == 3:
            os.rename(house.log.path, house.log.path.with_name("requests.jsonl.1"))
    house.log.stop()
    watcher = house.watch()
    wait_until(lambda: sum(house.counted().values()) >= len(house.log.times), "all is counted")
    assert watcher.end() == 0
    assert house.counted() == Counter(at_ns // NS_PER_S for at_ns in house.log.times), f"seed {SEED}"
