"""Resident memory and CPU time of a command and of Ray's processes below it, by role."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil

ROLES = ("driver", "workers", "largest_worker", "raylet", "gcs")
_MODELS = {"ChunkLabeler": "model", ":bulk": "model", ":service": "service", "Proxy": "service"}
_ROLES = {"ray::": "workers", "raylet": "raylet", "gcs_server": "gcs"}


def memory_now(driver: psutil.Process) -> dict[str, float]:
    """Resident memory in megabytes of the driver, of the workers (all and the largest) and of Ray's own processes.

    Shared pages (the object store) are left out, because they would be counted in every process that maps them.
    """
    found: dict[str, float] = {"driver": 0.0, "workers": 0.0, "largest_worker": 0.0, "raylet": 0.0, "gcs": 0.0}
    with suppress(psutil.NoSuchProcess):
        for process in (driver, *driver.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                own = process.memory_info()
                size = (own.rss - own.shared) / 1e6
                role = "driver" if process.pid == driver.pid else _role(process)
                if role:
                    found[role] += size
                if role == "workers":
                    found["largest_worker"] = max(found["largest_worker"], size)
    return {k: round(v, 1) for k, v in found.items()}


def _role(process: psutil.Process) -> str:
    line = " ".join(process.cmdline()[:1])
    return next((role for mark, role in _ROLES.items() if mark in line), "")


def cpu_now(pids: Sequence[int]) -> dict[int, tuple[str, float]]:
    """Process id -> (role, CPU seconds so far) of these processes and their children; other processes are `ray`."""
    found: dict[int, tuple[str, float]] = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            for process in (top, *top.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    times, line = process.cpu_times(), " ".join(process.cmdline()[:1])
                    named = next((name for mark, name in _MODELS.items() if mark in line), "ray")
                    role = "commands" if process.pid == pid else named
                    found[process.pid] = (role, times.user + times.system)
    return found


def memory_trend(samples: list[dict[str, float]], role: str) -> dict[str, float]:
    """The memory of one role over time: least-squares slope, growth over the whole time, mean and peak."""
    values = np.array([s[role] for s in samples])
    rate = float(np.polyfit([s["s"] for s in samples], values, 1)[0])
    return {"mb_per_minute": round(rate * 60, 2), "grown_mb": round(rate * (samples[-1]["s"] - samples[0]["s"]), 1),
            "mean_mb": round(float(values.mean()), 1), "peak_mb": float(values.max())}


def plot_memory(samples: list[dict[str, float]], title: str, place: Path | BinaryIO) -> None:
    """Write a plot of the memory over time, with a line for each role, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for role in ROLES:
        axes.plot([s["s"] for s in samples], [s[role] for s in samples], label=role.replace("_", " "))
    axes.set(xlabel="seconds", ylabel="resident memory, not shared [MB]", title=title)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(place, dpi=110, format="png")
