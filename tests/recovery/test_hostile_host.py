"""The host turns against the officer: the disk fills, the state is read-only, the wall clock jumps.

A full disk is a small tmpfs of our own where mounting is allowed, and the write calls made to fail by libfiu where it is
not; the test's report names which (`disk` in its properties).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import PLACE, Policy, Server, Stage, Watcher, wait_until

from rearguard.engine import faults
from rearguard.evidence.log import append
from rearguard.model.run import RunState
from rearguard.officer import ballast, reporting

SetStage = Callable[..., Stage]
RequirePart = Callable[[str, bool, str], None]

TMPFS_MIB = 40
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
FIU = "/usr/lib/fiu"
DATABASE_CALLS = ("pwrite", "pwrite64")
"""How SQLite writes; other writes (the log of events) go on."""
LAUNCHER = """\
import sys, threading, time
# libfaketime 0.9.10 answers EINVAL to clock_nanosleep with an absolute time, which is what CPython's sleep calls.
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
from rearguard.interfaces.cli.main import main
main()
"""
OF_ONE_RUN = ("rollback_started", "traffic_switched", "window_held", "rollback_finished", "incident_closed")


def can_mount(folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    return made.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of `TMPFS_MIB`, unmounted at the end. Where mounting is not allowed, the libfiu test stands in."""
    if not can_mount(tmp_path / "try"):
        pytest.skip("mounting a tmpfs is not allowed here; the test with libfiu stands in for it")
    folder = Path(tempfile.mkdtemp(prefix="rearguard-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", str(folder)], check=True)
    yield folder
    # What a person wants to look at when the test has failed.
    shutil.copytree(folder, tmp_path / "left", symlinks=True, ignore=shutil.ignore_patterns("filler", ballast.NAME))
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def fill(folder: Path, leave_bytes: int) -> Path:
    """Fill a disk with one file; others write to it meanwhile, so the last of it is taken block by block."""
    filler = folder / "filler"
    with filler.open("wb") as stream:
        while (room := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leave_bytes) > 0:
            with contextlib.suppress(OSError):
                size = os.fstat(stream.fileno()).st_size
                os.posix_fallocate(stream.fileno(), size, room if room <= 65_536 else room - 65_536)
    return filler


def bad_deployment(stage: Stage) -> None:
    stage.deploy("v1")
    stage.arm()
    stage.send_traffic()
    stage.deploy("v2")


def frozen(stage: Stage, point: str) -> Watcher:
    """A watcher that stopped itself at a fault point, for as long as the test needs to change its world."""
    watcher = stage.watch(fault=f"{point}:freeze")
    stat = Path(f"/proc/{watcher.process.pid}/stat")
    wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "the officer stands still", 30)
    return watcher


def lay_reserve(stage: Stage) -> None:
    """As the officer itself does in its first turns; the run may have come to its fault point before that."""
    if not (stage.state / ballast.NAME).exists():
        with (stage.state / ballast.NAME).open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, ballast.BALLAST_BYTES)


def on_small_disk(set_stage: SetStage, server: Server, disk: Path, policy: Policy) -> Stage:
    """A stage whose state folder lies on the small disk."""
    stage = set_stage(server, policy=policy)
    shutil.copytree(stage.state, disk / "state", symlinks=True)
    (disk / "state" / "scores.jsonl").symlink_to(stage.state / "scores.jsonl")  # the clients are not on trial
    stage.state = disk / "state"
    return stage


@pytest.mark.parametrize(
    "point",
    [
        "activate:after_effect",
        pytest.param("verify:after_effect", marks=pytest.mark.long),
        pytest.param("window:before_effect", marks=pytest.mark.long),
    ],
)
def test_a_disk_that_is_full_in_mid_run_is_survived_on_the_reserve(
    own_server: Server, set_stage: SetStage, small_disk: Path, point: str, record_property: Callable[[str, Any], None]
) -> None:
    record_property("disk", "tmpfs")
    stage = on_small_disk(set_stage, own_server, small_disk, Policy(recovery_s=1, deadline_s=60))
    bad_deployment(stage)
    stage.force_breach()
    watcher = frozen(stage, point)
    lay_reserve(stage)
    fill(small_disk, 0)
    os.kill(watcher.process.pid, signal.SIGCONT)

    run = stage.wait_for_end(30)
    assert (run.state, run.reason, len(stage.runs())) == (RunState.SUCCEEDED, "", 1)
    assert not (stage.state / "ballast").exists()
    kinds = stage.kinds(run.id)
    assert {kind: kinds[kind] for kind in OF_ONE_RUN} == dict.fromkeys(OF_ONE_RUN, 1)
    wait_until(lambda: watcher.events("disk_full"), "people are told")
    assert watcher.end() == 0


def test_a_disk_without_any_room_stops_the_run_and_room_lets_it_go_on_once(
    own_server: Server, set_stage: SetStage, small_disk: Path, record_property: Callable[[str, Any], None]
) -> None:
    record_property("disk", "tmpfs")
    stage = on_small_disk(set_stage, own_server, small_disk, Policy(recovery_s=1, deadline_s=120))
    bad_deployment(stage)
    stage.force_breach()
    watcher = frozen(stage, "activate:after_effect")
    (stage.state / "ballast").unlink(missing_ok=True)
    filler = fill(small_disk, 0)
    os.kill(watcher.process.pid, signal.SIGCONT)
    wait_until(lambda: watcher.events("housekeeping_failed"), "it says that it cannot write", 30)
    assert watcher.process.poll() is None
    assert stage.server.serves()["digest"] == stage.digest("v1")

    filler.unlink()
    run = stage.wait_for_end(30)
    assert watcher.end() == 0
    assert (run.state, run.reason, len(stage.runs())) == (RunState.SUCCEEDED, "", 1)
    kinds = stage.kinds(run.id)
    assert {kind: kinds[kind] for kind in OF_ONE_RUN} == dict.fromkeys(OF_ONE_RUN, 1)
    with stage.office(write=False) as office:
        assert reporting.verify_evidence(office).ok


def test_a_database_whose_writes_fail_in_mid_run_is_survived(
    own_server: Server,
    set_stage: SetStage,
    tmp_path: Path,
    require_part: RequirePart,
    record_property: Callable[[str, Any], None],
) -> None:
    record_property("disk", "libfiu")
    require_part("libfiu", shutil.which("fiu-ctrl") is not None, "apt-get install fiu-utils")
    stage = set_stage(own_server, policy=Policy(recovery_s=1, deadline_s=120))
    bad_deployment(stage)
    stage.force_breach()
    variables = {
        "LD_PRELOAD": ":".join(f"{FIU}/fiu_{part}_preload.so" for part in ("run", "posix")),
        "FIU_CTRL_FIFO": str(tmp_path / "fiu"),
        faults.VARIABLE: "activate:after_effect:freeze",
    }
    out = stage.state / "watch-fiu.jsonl"
    words = ["-m", "rearguard.interfaces.cli", "watch", "--json", "--state", str(stage.state)]
    watcher = Watcher(stage.processes.start(words, out=out, variables=variables), out)
    pid = watcher.process.pid
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "the officer stands still", 60)
    os.kill(pid, signal.SIGCONT)
    for call in DATABASE_CALLS:
        tell_fiu(tmp_path, pid, f"enable name=posix/io/rw/{call},failinfo={errno.ENOSPC}")
    wait_until(lambda: watcher.events("housekeeping_failed"), "it says that it cannot write", 30)
    assert watcher.process.poll() is None
    assert stage.server.serves()["digest"] == stage.digest("v1")

    for call in DATABASE_CALLS:
        tell_fiu(tmp_path, pid, f"disable name=posix/io/rw/{call}")
    run = stage.wait_for_end(60)
    assert watcher.end() == 0
    assert (run.state, run.reason, len(stage.runs())) == (RunState.SUCCEEDED, "", 1)
    kinds = stage.kinds(run.id)
    assert {kind: kinds[kind] for kind in OF_ONE_RUN} == dict.fromkeys(OF_ONE_RUN, 1)


def tell_fiu(folder: Path, pid: int, command: str) -> None:
    subprocess.run(["fiu-ctrl", "-f", str(folder / "fiu"), "-c", command, str(pid)], check=True, timeout=20)


def test_a_disk_that_is_full_in_mid_projection_leaves_the_named_files_whole(
    own_server: Server, set_stage: SetStage, small_disk: Path, record_property: Callable[[str, Any], None]
) -> None:
    record_property("disk", "tmpfs")
    stage = on_small_disk(set_stage, own_server, small_disk, Policy(recovery_s=1, deadline_s=60))
    with stage.office() as office:
        with office.database.transaction() as connection:
            for _ in range(3000):  # a log of about a megabyte, far larger than what one command writes to the database
                append(connection, now=office.clock.now(), kind="telemetry_back", body={}, place=PLACE)
        office.publish()
    log = stage.state / "rollback_log.json"
    before = log.read_bytes()
    assert len(before) > 1_000_000
    filler = fill(small_disk, 500_000)

    recorded = stage.cli("arm", PLACE.service, "--env", PLACE.env)
    assert (recorded.returncode, "recorded, but cannot write" in recorded.stderr) == (0, True), recorded.stderr
    assert log.read_bytes() == before
    assert list(stage.state.glob(".*.tmp")) == []

    filler.unlink()
    assert stage.cli("disarm", PLACE.service, "--env", PLACE.env).returncode == 0
    kinds = [entry["kind"] for entry in json.loads(log.read_bytes())["entries"]]
    assert kinds[-2:] == ["automation_armed", "automation_disarmed"]
    with stage.office(write=False) as office:
        assert reporting.verify_evidence(office).ok


def test_a_read_only_state_directory_is_refused_by_the_officer_and_read_by_everybody(
    own_server: Server, set_stage: SetStage, small_disk: Path
) -> None:
    stage = on_small_disk(set_stage, own_server, small_disk, Policy())
    stage.deploy("v1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        refused = stage.cli("watch", "--json")
        assert refused.returncode == 69
        assert json.loads(refused.stdout)["error"]["code"] == "state_not_writable"
        assert stage.cli("deploy", PLACE.service, "v2").returncode == 69
        assert stage.server.serves()["digest"] == stage.digest("v1")
        for words in (("status",), ("log", "verify"), ("runs", "list"), ("incident", "list")):
            assert stage.cli(*words).returncode == 0, words
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


@pytest.mark.parametrize("step_s", [3600, pytest.param(-3600, marks=pytest.mark.long)])
def test_a_wall_clock_that_jumps_an_hour_in_mid_run_changes_no_duration(
    own_server: Server, set_stage: SetStage, tmp_path: Path, require_part: RequirePart, step_s: int
) -> None:
    require_part("libfaketime", FAKETIME.exists(), "apt-get install faketime")
    stage = set_stage(own_server, policy=Policy(recovery_s=1, deadline_s=60))
    bad_deployment(stage)
    stage.force_breach()
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    out = stage.state / "watch-faked.jsonl"
    variables = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        faults.VARIABLE: "activate:after_effect:freeze",
    }
    launcher = tmp_path / "launch.py"
    launcher.write_text(LAUNCHER, encoding="utf-8")
    words = [str(launcher), "watch", "--json", "--state", str(stage.state)]
    watcher = Watcher(stage.processes.start(words, out=out, variables=variables), out)
    stat = Path(f"/proc/{watcher.process.pid}/stat")
    wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "the officer stands still", 30)
    began_ns = time.monotonic_ns()
    offset.write_text(f"{step_s:+d}\n")
    os.kill(watcher.process.pid, signal.SIGCONT)

    run = stage.wait_for_end(30)
    real_ms = (time.monotonic_ns() - began_ns) // 1_000_000
    assert watcher.end() == 0
    assert (run.state, run.reason) == (RunState.SUCCEEDED, "")
    (finished,) = (r for r in stage.records("rollback_finished"))
    stamps = [t["ts"] for t in finished.body["t"]]
    assert stamps[7][:13] != stamps[3][:13], "the wall clock did not jump"
    after_switch_ms = finished.body["offsets_ms"][7] - finished.body["offsets_ms"][4]
    assert 1000 <= after_switch_ms <= real_ms + 2000
    assert sum(finished.body["parts_ms"].values()) == finished.body["rto_achieved_ms"]
    assert finished.body["clock_step_ms"] == pytest.approx(step_s * 1000, abs=2000)
