"""The training stream from an object store with `latency_ms` more on every request, compared with local files.

A real S3 server (SeaweedFS) runs behind a proxy that delays the first byte of each answer. The pool is so small that
blocks are read again all the time. Wall time is measured from the first batch to the last of `batches`; the start is
reported separately, and every second round runs in the reverse order. `step_ms` is the time between two batches, as a
training step takes it; with 0 the stream is read as fast as possible. `ratio` is the speed from S3 divided by the speed
from local files: 1 means that nothing is lost.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from benchmarks.latency import run_delay_proxy
from benchmarks.suite.training_stream import build_dataset, open_stream

CONFIG: dict[str, Any] = {"data": "auto", "images": 400, "side": 512, "shots": 1, "batch": 8, "batches": 120,
                          "pool_bytes": 40_000_000, "pixel_bytes": 0, "latency_ms": 20, "step_ms": 0, "repeats": 3,
                          "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Episodes/s from both places, and their ratio."""
    from infra.local.s3 import s3_server
    from pipelines.base.storage import Store

    with tempfile.TemporaryDirectory() as place:
        local, what = build_dataset(config, Path(place))
        with s3_server(Path(place) / "s3") as server, patch.dict(os.environ, server.env):
            far = f"{server.url}/shards"
            for name in Store(local).list():
                Store(far).write_bytes(name, Store(local).read_bytes(name))
            address = urlsplit(server.endpoint)
            with run_delay_proxy(str(address.hostname), int(address.port or 80), config["latency_ms"] / 1000) as port, \
                    patch.dict(os.environ, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}):
                delay = statistics.median([_request(far) for _ in range(9)])
                times = {"local": [], "s3": []}  # type: ignore[var-annotated]
                for turn in range(config["repeats"]):
                    for name in sorted(times, reverse=bool(turn % 2)):
                        times[name].append(_measure_seconds(far if name == "s3" else local, config))
    seconds = {name: statistics.median([t for _, t, _ in found]) for name, found in times.items()}
    episodes = config["batch"] * (config["batches"] - 1)
    return {"ratio": seconds["local"] / seconds["s3"], "data": what, "request_ms": round(delay * 1000, 1),
            "start_seconds": {name: statistics.median([s for s, _, _ in found]) for name, found in times.items()},
            "seconds": seconds, "episodes_per_s": {name: episodes / s for name, s in seconds.items()},
            "windows_used": times["s3"][0][2]}


def _measure_seconds(url: str, config: dict[str, Any]) -> tuple[float, float, int]:
    """Read `batches` batches: (seconds to the first batch, seconds for the rest, number of windows used)."""
    began = time.perf_counter()
    windows = set()
    with open_stream(url, config) as stream:
        next(stream)
        first = time.perf_counter()
        for _ in range(config["batches"] - 1):
            next(stream)
            windows.add((stream.position["epoch"], stream.position["window"]))
            time.sleep(config["step_ms"] / 1000)
        return first - began, time.perf_counter() - first, len(windows)


def _request(url: str) -> float:
    from pipelines.base.storage import Store

    began = time.perf_counter()
    Store(url).read_bytes("build.json")
    return time.perf_counter() - began
