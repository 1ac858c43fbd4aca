"""A place that may be deployed to and rolled back: v2 serves again after its release, and v1 is the way back.

The parts that the gate and the approval tests share: real processes, a clock that is wrong on purpose, and people with
keys.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import ENV, PLACE, SERVICE, Lived, write_settings

from rearguard.database import open_database
from rearguard.edge import SystemClock, read_boot_id
from rearguard.evidence.log import read
from rearguard.interfaces.cli import main as cli_main
from rearguard.model.breach import Judgement, Trigger
from rearguard.model.evidence import Record
from rearguard.model.outcome import Outcome
from rearguard.model.time import NS_PER_S, Instant, rfc3339_ms
from rearguard.officer import automation, checkpoints, deployments, incidents
from rearguard.officer.incidents import Breach
from rearguard.officer.office import Office, open_office

Start = Callable[..., "Process"]
APPROVAL = "        approval: {required: true, expires: 15 min}\n"


@pytest.fixture(scope="session")
def ready_once(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never change it."""
    state = tmp_path_factory.mktemp("ready") / "state"
    shutil.copytree(lived.state, state, symlinks=True)
    write_settings(state)
    with open_office(state) as office:
        checkpoints.release(office, service=SERVICE, version="v2", env=ENV, reason="fit again", by="ops")
        deployments.deploy(office, service=SERVICE, env=ENV, version="v2", by="ops")
        automation.set_armed(office, PLACE, armed=True, by="ops")
    return state


@pytest.fixture
def ready(ready_once: Path, tmp_path: Path) -> Path:
    """A copy to change, with proofs of this minute."""
    state = tmp_path / "ready"
    shutil.copytree(ready_once, state, symlinks=True)
    write_settings(state)
    with open_office(state) as office:
        for row in checkpoints.list_checkpoints(office, SERVICE):
            checkpoints.verify_if_older(office, row.checkpoint, 300)
    return state


@pytest.fixture
def guarded(ready: Path) -> Path:
    """The same, where a rollback needs an approval."""
    file = ready / "rearguard.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.count("        recovery:") == 1
    file.write_text(text.replace("        recovery:", f"{APPROVAL}        recovery:"), encoding="utf-8")
    return ready


class Shifted(SystemClock):
    """The system's clocks, both so many seconds off."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._ns = int(seconds * NS_PER_S)

    def now(self) -> Instant:
        return super().now().plus(self._ns)


@contextmanager
def office_at(state: Path, seconds: float = 0.0) -> Iterator[Office]:
    """The state directory, opened in this process, with a clock that is off."""
    office = Office(
        state=state,
        settings_path=state / "rearguard.yaml",
        database=open_database(state),
        clock=Shifted(seconds),
    )
    try:
        yield office
    finally:
        office.close()


def breach(office: Office, *, note: str = "") -> str | None:
    """What a watcher does that saw the active version fail; the id of the run."""
    now = office.clock.now()
    second = now.mono_ns // NS_PER_S
    with office.database.reading() as connection:
        active = deployments.newest(connection, PLACE)
    assert active is not None
    judgement = Judgement(
        trigger=Trigger.ERRORS,
        digest=active.digest,
        outcome=Outcome.FAIL,
        reason="breach",
        window_start_s=second - 60,
        window_end_s=second,
        samples=200,
        exceedances=10,
        observed=Decimal("0.05"),
        limit=Decimal("0.01"),
        streak=2,
        first_bad_mono_ns=now.mono_ns - NS_PER_S,
    )
    found = Breach(
        place=PLACE,
        digest=active.digest,
        judgement=judgement,
        also=(),
        t0=now.plus(-NS_PER_S),
        t1=now,
        telemetry=(),
        p95_ms=None,
        note=note,
    )
    _, run_id = incidents.open_incident(office, found)
    return run_id


def records(state: Path, *kinds: str, run_id: str | None = None) -> list[Record]:
    """Evidence of some kinds, oldest first; of one run when named."""
    with open_office(state, write=False) as office, office.database.reading() as connection:
        return [r for r in read(connection) if r.kind in kinds and run_id in (None, r.run_id)]


def rearguard(*words: object) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli_main.main([str(word) for word in words])
    code = ended.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(list(words), code, out.getvalue(), err.getvalue())


def error_of(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """Exit code and code word of a command that was called with `--json` and refused."""
    return done.returncode, json.loads(done.stdout)["error"]["code"]


class Person:
    """Somebody with a key, made with `rearguard key new` and enrolled with `rearguard key enroll`."""

    def __init__(self, state: Path, folder: Path, name: str, *, enrolled: bool = True) -> None:
        self.name = name
        self.private = folder / f"{name}.pem"
        self.public = folder / f"{name}.pub"
        made = rearguard("key", "new", name, "--out", self.private)
        assert made.returncode == 0, made.stderr
        self.public.write_text(made.stdout, encoding="utf-8")
        if enrolled:
            done = rearguard("key", "enroll", name, self.public, "--by", "admin", "--state", state)
            assert done.returncode == 0, done.stderr


class Process:
    """`rearguard WORDS` in a process of its own, with files for what it prints."""

    def __init__(self, folder: Path, *words: object) -> None:
        self.out, self.err = folder / f"{words[0]}.out", folder / f"{words[0]}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.handle = subprocess.Popen(
                [sys.executable, "-m", "rearguard.interfaces.cli", *map(str, words)], stdout=out, stderr=err
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of a watch that prints JSON."""
        lines = self.out.read_text(encoding="utf-8").splitlines(keepends=True)
        return [e for e in (json.loads(line) for line in lines if line.endswith("\n")) if e["event"] == name]

    def end(self) -> int:
        """SIGTERM; its exit code."""
        if self.handle.poll() is None:
            self.handle.terminate()
        return self.handle.wait(20)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start processes; they are ended with the test."""
    started: list[Process] = []

    def begin(*words: object) -> Process:
        started.append(Process(tmp_path, *words))
        return started[-1]

    yield begin
    for process in reversed(started):
        process.end()


def until(claim: Callable[[], Any], what: str) -> Any:
    """The first true answer."""
    end = time.monotonic() + 30
    while not (found := claim()):
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)
    return found


def answered_by(state: Path, digest: str) -> None:
    """One line of the request log, of now: this digest answered."""
    line = {
        "ts": rfc3339_ms(time.time_ns()),
        "mono_ns": time.monotonic_ns(),
        "boot_id": read_boot_id(),
        "service": SERVICE,
        "env": ENV,
        "digest": digest,
        "version": "",
        "id": "1",
        "latency_ms": 1,
        "status": 200,
        "probe": False,
    }
    with (state / "requests.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
