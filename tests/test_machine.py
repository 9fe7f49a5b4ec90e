"""What of the machine this process may use, also in a container."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from refimpl import machine

NONE = 9223372036854771712  # what the older groups say where there is no limit


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Writes the groups of a process and the files of their limits; 8 CPUs, 8 GB."""
    monkeypatch.setattr(machine, "_GROUP", str(tmp_path / "cgroup"))
    monkeypatch.setattr(machine, "_LIMITS", str(tmp_path / "limits"))
    sizes = {"SC_PHYS_PAGES": 2**21, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)

    def write(groups: str, **files: object) -> None:
        (tmp_path / "cgroup").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "limits" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


@pytest.mark.parametrize(
    ("groups", "files", "cpus", "memory"),
    [
        ("", {}, 8, 2**33),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, 8, 2**33),
        ("0::/\n", {"cpu.max": "150000 100000", "memory.max": 2**30}, 2, 2**30),
        ("0::/\n", {"cpu.max": "1000 100000", "memory.max": 2**40}, 1, 2**33),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3, 2**33),
        ("0::/a/b\n", {"a/b/memory.max": 2**31, "a/memory.max": 2**30}, 8, 2**30),
        ("0::/gone\n", {}, 8, 2**33),
        ("0::/\n", {"cpu.max": "nonsense", "memory.max": ""}, 8, 2**33),
        (
            "4:memory:/x\n2:cpu,cpuacct:/\n0::/\n",
            {
                "memory/x/memory.limit_in_bytes": 2**29,
                "memory/memory.limit_in_bytes": NONE,
                "cpu/cpu.cfs_quota_us": 400_000,
                "cpu/cpu.cfs_period_us": 100_000,
            },
            4,
            2**29,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100_000}, 8, 2**33),
    ],
)
def test_limits_of_a_container(system, groups, files, cpus, memory) -> None:
    system(groups, **files)
    assert machine.cpus() == cpus
    assert machine.memory() == memory


def test_a_mask_counts_before_a_container(system, monkeypatch) -> None:
    system("0::/\n", **{"cpu.max": "500000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert machine.cpus() == 1


def test_a_system_that_says_nothing(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine, "_GROUP", str(Path(tmp_path, "none")))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert (machine.cpus(), machine.memory()) == (1, math.inf)
