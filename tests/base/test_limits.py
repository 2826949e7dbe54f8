"""What a container may use, from the kernel's files of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.base import limits as module
from pipelines.base.limits import ContainerLimits, read_limits, usable_cores


def control_group(folder: Path, files: dict[str, str]) -> ContainerLimits:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return read_limits(folder)


def test_limits_of_a_container_are_read_in_both_versions(tmp_path: Path) -> None:
    stat = "anon 5\ninactive_file 300\n"
    found = control_group(tmp_path / "2", {"memory.max": "1000", "memory.current": "700", "memory.stat": stat,
                                           "cpu.max": "150000 100000"})
    assert (found.memory, found.free, found.cpus) == (1000, 600, 1.5)
    free = control_group(tmp_path / "none", {"memory.max": "max", "memory.current": "7", "cpu.max": "max 100000"})
    assert (free.memory, free.free, free.cpus) == (None, None, None)
    old = {"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "700",
           "memory/memory.stat": f"inactive_file 1\ntotal_{stat.splitlines()[1]}", "cpu/cpu.cfs_quota_us": "50000",
           "cpu/cpu.cfs_period_us": "100000"}
    found = control_group(tmp_path / "1", old)
    assert (found.memory, found.free, found.cpus) == (1000, 600, 0.5)
    wide = {"memory/memory.limit_in_bytes": str((1 << 63) - 4096), "cpu/cpu.cfs_quota_us": "-1"}
    free = control_group(tmp_path / "1-none", wide)
    assert (free.memory, free.cpus) == (None, None)
    assert read_limits(tmp_path / "missing") == ContainerLimits()


@pytest.mark.parametrize(("quota", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4),
                                              ("max 100000", 4)])
def test_threads_fit_the_container(quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch 64 threads that share the time of two cores."""
    monkeypatch.setattr(module, "allowed_cores", lambda: 4)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path) == cores
