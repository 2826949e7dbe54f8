"""A service that is asked `times` as much as it can do: accepted and refused a second, latency, memory.

`fss serve` as a process. First a closed loop of as many clients as it serves at a time: its capacity. Then requests
by the clock for `seconds`, `times` as many as that, latencies counted from when a request was due. The client shares
the machine with the service: its share of a core and how late it sent are told. With `max_replicas` above 1 also when
replicas came, and, where `back_s` is above 0, when one alone was left (Serve waits five minutes). Memory is that of
all processes of the service, without shared pages. The ratio is what was accepted to the capacity.
"""

from __future__ import annotations

import asyncio
import base64
import io
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.http_load import Endpoint, RequestTiming, closed_loop, open_loop
from benchmarks.labelling import bundle_of, service
from benchmarks.resident import memory_now

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "seconds": 300, "times": 4,
                          "capacity_s": 20, "clients": 16, "side": 128, "batch": 8, "max_replicas": 0, "back_s": 0,
                          "threads": 1, "seed": 0}
WARM_S = 5  # of the closed loop, before it counts
EVERY_S = 1.0  # between two looks at the processes
SHOWN = 60  # points of the memory's curve in the result
OWN = ("driver", "workers", "raylet", "gcs")  # roles that together are all processes of the service


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The figures of the load; latencies in seconds, memory in megabytes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sets = [f"serve.threads={config['threads']}", f"serve.max_batch={config['batch']}",
                f"serve.max_replicas={config['max_replicas']}"]
        words = [word for one in sets for word in ("--set", one)]
        bundle = bundle_of(config, folder)
        with service("--bundle", bundle, *words, folder=folder) as (url, pid), ProcessWatch(pid) as watch:
            return asyncio.run(_measure(url, watch, config))


async def _measure(url: str, watch: ProcessWatch, config: dict[str, Any]) -> dict[str, Any]:
    address = Endpoint(f"{url}/v1/segment", _request(url, config))
    await closed_loop(address, config["clients"], WARM_S)
    calm = await closed_loop(address, config["clients"], config["capacity_s"])
    capacity = _per_s(calm)
    rate, began, busy = config["times"] * capacity, time.monotonic(), time.process_time()
    answers = await open_loop(address, rate, config["seconds"], config["seed"])
    ended, busy = time.monotonic(), time.process_time() - busy
    after = [await address.ask() for _ in range(3)]
    back = await _until_one(watch, config["back_s"]) if config["back_s"] else None
    await address.close()
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


def _request(url: str, config: dict[str, Any]) -> dict[str, Any]:
    """A person's request: one small photo, of a support set that the service now knows."""
    from pipelines.inference.marks import rle_json
    from pipelines.inference.supports import Support, SupportSet
    from pipelines.serving.client import Client

    rng, side = np.random.default_rng(config["seed"]), config["side"]
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG")
    y, x = np.mgrid[:side, :side]
    disc = (y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 4) ** 2
    client = Client(url)
    support = client.add_support(SupportSet("disc", (Support(out.getvalue(), {"mask": rle_json(disc)}),)))
    client.close()
    photo = base64.b64encode(out.getvalue()).decode()
    return {"support_id": support, "images": [photo]}


def _limits(config: dict[str, Any]) -> dict[str, int]:
    """How many requests the service holds at a time before it refuses."""
    from pipelines.serving.guards import MAX_WAITING

    return {"waiting": MAX_WAITING, "batch": config["batch"]}


def _per_s(answers: list[RequestTiming]) -> float:
    """Good answers a second, from the first that was sent to the last that came."""
    good = [a for a in answers if a.status == 200]
    if not good:
        raise SystemExit(f"error: the service gives no answer: {_statuses(answers)}")
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


async def _until_one(watch: ProcessWatch, patience_s: float) -> float | None:
    """Seconds until one replica is left, None if that takes longer than `patience_s`."""
    began = time.monotonic()
    while time.monotonic() - began < patience_s:
        if watch.models == 1:
            return time.monotonic() - began
        await asyncio.sleep(EVERY_S)
    return None


class ProcessWatch:
    """Memory and replicas of a service's processes, looked at by a thread while the block runs."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._seen: list[tuple[float, dict[str, float], int]] = []  # when, megabytes by role, replicas for people
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
        """Replicas for people now."""
        return self._seen[-1][2] if self._seen else 0

    def halves(self, began: float, ended: float) -> dict[str, Any]:
        """The peak of all processes together in each half of the time, by role at the end, and the curve."""
        seen = [(at - began, sum(roles[r] for r in OWN), roles) for at, roles, _ in self._seen if began <= at <= ended]
        middle = (ended - began) / 2
        halves = [max((mb for at, mb, _ in seen if (at >= middle) == second), default=0.0) for second in (False, True)]
        curve = [[round(at), round(mb)] for at, mb, _ in seen[::max(1, len(seen) // SHOWN)]]
        return {"first_half": round(halves[0], 1), "second_half": round(halves[1], 1),
                "at_the_end": seen[-1][2] if seen else {}, "curve": curve}

    def replicas(self, began: float) -> list[list[int]]:
        """[seconds since `began`, replicas for people] whenever their number was another."""
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
