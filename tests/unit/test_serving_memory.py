"""How much memory a standby may take: what proc(5) and cgroup v2 say, written to a folder as the kernel writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rearguard.serving.memory import available_bytes, enough_for

MIB = 1024 * 1024


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 1000 MiB available and no control group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {1000 * 1024} kB\nSwapFree: 7 kB\n")
    return tmp_path


def group(machine: Path, path: str, *, limit: str, used_mib: int = 0, cache_mib: int = 0) -> None:
    (machine / "proc/self/cgroup").write_text("0::/a/b\n")
    folder = machine / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used_mib * MIB}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache_mib * MIB}\nactive_file 3\n")


def test_without_control_groups_the_machine_decides(machine: Path) -> None:
    assert available_bytes(machine) == 1000 * MIB


def test_a_group_without_a_limit_does_not_count(machine: Path) -> None:
    group(machine, "a/b", limit="max")
    assert available_bytes(machine) == 1000 * MIB


def test_a_groups_limit_less_its_use_counts_with_the_cache_given_back(machine: Path) -> None:
    group(machine, "a/b", limit=str(500 * MIB), used_mib=400, cache_mib=50)
    assert available_bytes(machine) == 150 * MIB


def test_the_tightest_of_the_groups_above_counts(machine: Path) -> None:
    group(machine, "a/b", limit=str(500 * MIB))
    group(machine, "a", limit=str(90 * MIB), used_mib=70)
    assert available_bytes(machine) == 20 * MIB


def test_in_a_container_the_mounted_root_is_the_group(machine: Path) -> None:
    group(machine, "", limit=str(80 * MIB), used_mib=30)
    (machine / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    assert available_bytes(machine) == 50 * MIB


def test_a_kernel_that_tells_nothing_is_no_reason_to_hold_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    assert enough_for(2**50, None)


@pytest.mark.parametrize(
    ("asked_mib", "available_mib", "enough"),
    [(0, 63, False), (0, 64, True), (100, 163, False), (100, 164, True), (1000, 1099, False), (1000, 1100, True)],
)
def test_a_tenth_and_at_least_64_mib_stay_free(asked_mib: int, available_mib: int, enough: bool) -> None:
    assert enough_for(asked_mib * MIB, available_mib * MIB) is enough
