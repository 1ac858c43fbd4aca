"""R18: a checkpoint on the storage that its service depends on is warned about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rearguard.checkpoints.storage import domain_of
from rearguard.model.outcome import Outcome
from rearguard.rules.storage import judge

SAME, UNKNOWN = "same_storage_domain", "storage_domain_unknown"


@pytest.mark.parametrize(
    ("copies", "service", "code"),
    [
        (("/dev/vda",), "/dev/vda", SAME),
        (("/dev/vda", "/dev/vda"), "/dev/vda", SAME),
        (("/dev/vda", "/dev/vdb"), "/dev/vda", ""),
        (("/dev/vdb",), "/dev/vda", ""),
        ((), "/dev/vda", SAME),
        (("",), "/dev/vda", SAME),
        (("", "/dev/vdb"), "/dev/vda", ""),
        (("/dev/vda",), "", UNKNOWN),
        (("/dev/vda", "/dev/vdb"), "", ""),
        (("/dev/vda", ""), "", UNKNOWN),
        ((), "", UNKNOWN),
    ],
)
def test_one_copy_must_lie_outside_of_the_services_storage(copies: tuple[str, ...], service: str, code: str) -> None:
    found = judge(copies, service)
    assert (found.code, found.outcome) == (code, Outcome.INCONCLUSIVE if code else Outcome.PASS)


def test_each_domain_is_told_once() -> None:
    assert judge(("b", "a", "b", ""), "c").domains == ("a", "b")


def number(folder: Path) -> str:
    device = folder.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def test_a_partition_belongs_to_its_disk(tmp_path: Path) -> None:
    """Two partitions fail together."""
    part = tmp_path / "devices" / "vdb" / "vdb1"
    part.mkdir(parents=True)
    (part / "partition").write_text("1\n")
    sysfs = tmp_path / "block"
    sysfs.mkdir()
    (sysfs / number(tmp_path)).symlink_to(part)
    assert domain_of(tmp_path, devices=sysfs) == "/dev/vdb"


def test_a_volume_belongs_to_the_disks_below_it(tmp_path: Path) -> None:
    sysfs, volume = tmp_path / "block", tmp_path / "devices" / "dm-0"
    sysfs.mkdir()
    for name, slave in (("vdc", "254:32"), ("vdb", "254:16")):
        (tmp_path / "devices" / name).mkdir(parents=True)
        (sysfs / slave).symlink_to(tmp_path / "devices" / name)
        (volume / "slaves" / name).mkdir(parents=True)
        (volume / "slaves" / name / "dev").write_text(f"{slave}\n")
    (sysfs / number(tmp_path)).symlink_to(volume)
    assert domain_of(tmp_path, devices=sysfs) == "/dev/vdb+/dev/vdc"


@pytest.mark.parametrize(
    ("line", "domain"),
    [
        ("40 1 {number} / /mnt rw - nfs4 server:/export rw", "nfs4:server:/export"),
        ("40 1 0:999 / {path} rw shared:1 - tmpfs tmpfs rw", "tmpfs:tmpfs"),
        ("40 1 0:999 / / rw - overlay overlay rw\n41 1 0:998 / {path} rw - fuse.x host:a\\040b rw", "fuse.x:host:a b"),
        ("40 1 0:999 / /elsewhere rw - tmpfs tmpfs rw", ""),
        ("nonsense", ""),
    ],
)
def test_a_file_system_without_a_disk_is_named_by_kind_and_source(tmp_path: Path, line: str, domain: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(line.replace("{number}", number(tmp_path)).replace("{path}", str(tmp_path)) + "\n")
    assert domain_of(tmp_path, mounts=mounts, devices=tmp_path / "none") == domain


def test_a_folder_that_is_not_there_has_no_domain(tmp_path: Path) -> None:
    assert domain_of(tmp_path / "absent") == ""


def test_this_machines_memory_and_disk_are_two_domains(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no file system in memory beside that of the test")
    assert domain_of(shm) != domain_of(tmp_path) != ""
