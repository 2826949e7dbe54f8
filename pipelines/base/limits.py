"""Limits of the container (control group) that this process is in, as the kernel's files say, and what they leave."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

FILES = Path("/sys/fs/cgroup")
NONE = 1 << 60  # version 1 writes "no limit" as a number beyond all memories


@dataclass(frozen=True, kw_only=True)
class ContainerLimits:
    """What a control group may use; None where it has no limit of its own."""

    memory: int | None = None  # bytes
    used: int = 0  # bytes in use that the kernel cannot take back at once
    cpus: float | None = None

    @property
    def free(self) -> int | None:
        """Bytes that are left of the limit."""
        return None if self.memory is None else max(0, self.memory - self.used)


def read_limits(files: Path = FILES) -> ContainerLimits:
    """The limits of the control group whose files are at `files`, of version 2 or 1; none where they are missing."""
    if (files / "memory.max").is_file() or (files / "cpu.max").is_file():
        limit, cpu = _number(files / "memory.max"), _words(files / "cpu.max")
        used = (_number(files / "memory.current") or 0) - _statistic(files / "memory.stat", "inactive_file")
        quota, period = cpu if len(cpu) == 2 and cpu[0] != "max" else ("0", "1")
    else:
        memory = files / "memory"
        limit = _number(memory / "memory.limit_in_bytes")
        used = ((_number(memory / "memory.usage_in_bytes") or 0)
                - _statistic(memory / "memory.stat", "total_inactive_file"))
        quota = str(max(0, _number(files / "cpu" / "cpu.cfs_quota_us") or 0))  # -1: no limit
        period = str(_number(files / "cpu" / "cpu.cfs_period_us") or 1)
    return ContainerLimits(memory=limit if limit and limit < NONE else None, used=max(0, used),
                           cpus=int(quota) / int(period) if int(quota) else None)


def allowed_cores() -> int:
    """The number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(files: Path = FILES) -> int:
    """The number of threads that can compute at a time: cores that are allowed, and their time in this container."""
    share = read_limits(files).cpus
    return allowed_cores() if share is None else max(1, min(allowed_cores(), int(share)))


def free_memory() -> int:
    """Bytes of memory that this process can still get, of the machine and of its container."""
    machine, own = int(psutil.virtual_memory().available), read_limits().free
    return machine if own is None else min(machine, own)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def _statistic(path: Path, name: str) -> int:
    words = _words(path)
    return int(words[words.index(name) + 1]) if name in words else 0
