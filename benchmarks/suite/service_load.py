"""A service under a load of `times` its capacity: accepted and refused requests a second, latency and memory.

`fss serve` runs as a process. A closed loop of `clients` clients measures its capacity. Then requests are sent at
`times` this rate for `seconds`; latencies count from the time when a request was due. The client runs on the service's
machine: the CPU time that it used and how late it sent are reported. With `max_replicas` above 1 the number of replicas
over time is reported, and with `back_s` above 0 the time until one replica is left (Serve waits five minutes). Memory
is that of all processes of the service, without shared pages. `ratio` is the accepted rate divided by the capacity.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.http_load import Endpoint, RequestTiming, run_closed_loop, run_open_loop
from benchmarks.labelling import prepare_bundle, run_service, segment_request, set_words
from benchmarks.resident import memory_now

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "seconds": 300, "times": 4,
                          "capacity_s": 20, "clients": 16, "side": 128, "batch": 8, "max_replicas": 0, "back_s": 0,
                          "threads": 1, "seed": 0}
WARM_S = 5  # seconds of the closed loop before its answers count
EVERY_S = 1.0  # seconds between two samples of the processes
SHOWN = 60  # points of the memory curve in the result
OWN = ("driver", "workers", "raylet", "gcs")  # roles that together are all processes of the service


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The figures of the load; latencies are in seconds, memory is in megabytes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = set_words({"serve.threads": config["threads"], "serve.max_batch": config["batch"],
                           "serve.max_replicas": config["max_replicas"]})
        bundle = prepare_bundle(config, folder)
        with run_service("--bundle", bundle, *words, folder=folder) as (url, pid), ProcessWatch(pid) as watch:
            return asyncio.run(_measure(url, watch, config))


async def _measure(url: str, watch: ProcessWatch, config: dict[str, Any]) -> dict[str, Any]:
    endpoint = Endpoint(f"{url}/v1/segment", segment_request(url, config))
    await run_closed_loop(endpoint, config["clients"], WARM_S)
    calm = await run_closed_loop(endpoint, config["clients"], config["capacity_s"])
    capacity = _per_s(calm)
    rate, began, busy = config["times"] * capacity, time.monotonic(), time.process_time()
    answers = await run_open_loop(endpoint, rate, config["seconds"], config["seed"])
    ended, busy = time.monotonic(), time.process_time() - busy
    after = [await endpoint.send() for _ in range(3)]
    back = await _wait_for_one_replica(watch, config["back_s"]) if config["back_s"] else None
    await endpoint.close()
    return {**_figures(answers, config["seconds"], capacity), "capacity_per_s": capacity,
            "calm_s": _seconds([a for a in calm if a.status == 200]),
            "calm_statuses": _statuses(calm), "memory_mb": watch.halves(began, ended),
            "client_cores": busy / (ended - began), "replicas": watch.replicas(began),
            **({"one_replica_again_s": back} if config["back_s"] else {}),
            "after": {"statuses": _statuses(after), "slowest_s": max(a.seconds for a in after)},
            "limits": _limits(config)}


def _figures(answers: list[RequestTiming], seconds: float, capacity: float) -> dict[str, Any]:
    accepted = [a for a in answers if a.status == 200]
    refused = [a for a in answers if a.status in (429, 503)]
    return {"ratio": len(accepted) / seconds / capacity, "offered_per_s": len(answers) / seconds,
            "accepted_per_s": len(accepted) / seconds, "refused_per_s": len(refused) / seconds,
            "statuses": _statuses(answers), "accepted_s": _seconds(accepted), "refused_s": _seconds(refused),
            "lines": dict(Counter(f"{a.status} {a.line}" for a in answers if a.status != 200).most_common(10)),
            "without_a_line": sum(not a.line for a in answers if a.status != 200),
            "late_s": _quantiles([a.late for a in answers])}


def _limits(config: dict[str, Any]) -> dict[str, int]:
    """The number of requests that may wait before the service refuses, and the largest batch."""
    from pipelines.serving.guards import MAX_WAITING

    return {"waiting": MAX_WAITING, "batch": config["batch"]}


def _per_s(answers: list[RequestTiming]) -> float:
    """Accepted requests a second, from the first that was sent to the last answer."""
    good = [a for a in answers if a.status == 200]
    if not good:
        raise SystemExit(f"error: the service accepted no request (HTTP status: count {_statuses(answers)})")
    return len(good) / (max(a.due + a.seconds for a in good) - min(a.due for a in good))


def _seconds(answers: list[RequestTiming]) -> dict[str, float]:
    return _quantiles([a.seconds for a in answers])


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.quantile(values, [0.5, 0.99, 1.0])
    return dict(zip(("p50", "p99", "max"), found.round(4).tolist(), strict=True))


def _statuses(answers: list[RequestTiming]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(Counter(a.status for a in answers).items())}


async def _wait_for_one_replica(watch: ProcessWatch, patience_s: float) -> float | None:
    """Wait until one replica is left. Returns the seconds, or None if it takes longer than `patience_s`."""
    began = time.monotonic()
    while time.monotonic() - began < patience_s:
        if watch.models == 1:
            return time.monotonic() - began
        await asyncio.sleep(EVERY_S)
    return None


class ProcessWatch:
    """Samples the memory and the replicas of a service's processes in a thread while the block runs."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        # (time, megabytes by role, replicas for interactive requests)
        self._seen: list[tuple[float, dict[str, float], int]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def models(self) -> int:
        """The number of replicas for interactive requests in the latest sample."""
        return self._seen[-1][2] if self._seen else 0

    def halves(self, began: float, ended: float) -> dict[str, Any]:
        """The peak of all processes together in each half of the time, the memory by role at the end, and the curve."""
        seen = [(at - began, sum(roles[r] for r in OWN), roles) for at, roles, _ in self._seen if began <= at <= ended]
        middle = (ended - began) / 2
        halves = [max((mb for at, mb, _ in seen if (at >= middle) == second), default=0.0) for second in (False, True)]
        curve = [[round(at), round(mb)] for at, mb, _ in seen[::max(1, len(seen) // SHOWN)]]
        return {"first_half": round(halves[0], 1), "second_half": round(halves[1], 1),
                "at_the_end": seen[-1][2] if seen else {}, "curve": curve}

    def replicas(self, began: float) -> list[list[int]]:
        """[seconds since `began`, number of replicas for interactive requests] at every change of the number."""
        changes = [(at, n) for i, (at, _, n) in enumerate(self._seen) if not i or n != self._seen[i - 1][2]]
        return [[round(at - began), n] for at, n in changes]

    def _look(self) -> None:
        while not self._end.wait(EVERY_S):
            with suppress(psutil.NoSuchProcess):
                self._seen.append((time.monotonic(), memory_now(self._process), self._count()))

    def _count(self) -> int:
        found = 0
        for process in self._process.children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                found += ":interactive" in " ".join(process.cmdline()[:1])
        return found
