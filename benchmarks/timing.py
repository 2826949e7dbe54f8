"""Fair timing of several ways to do the same thing: each is warmed up and run in turn; medians of several rounds."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping


def time_interleaved(ways: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each way. Every round runs all ways, so that a slow phase of the machine affects them all."""
    for call in ways.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        order = list(ways) if turn % 2 == 0 else list(ways)[::-1]
        for name in order:
            times[name].append(seconds_of(ways[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_of(call: Callable[[], object], device: str = "cpu") -> float:
    """Wall seconds of one call, until the device has done its work."""
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def cpu_seconds() -> float:
    """CPU seconds so far of this process with all its threads, and of its children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def cpu_and_wall(call: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one call, with this process's threads and children that end in it."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    call()
    return cpu_seconds() - cpu, time.perf_counter() - wall


def wall_and_cpu(ways: Mapping[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall and CPU seconds of this process for each way. Every round runs all ways; the first one warms up."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, call in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    middle = [{n: statistics.median(t[kind] for t in times[1:]) for n, times in took.items()} for kind in (0, 1)]
    return middle[0], middle[1]
