"""How long a person waits for a mask while a job runs through the same service, compared with an idle service.

`fss serve` runs as a process. One client asks for the mask of one photo of `side` pixels, again and again: first with
nothing else running, then while `fss label --service` labels `count` photos, between its first and its last part.
`batch_s` is the job's time for one batch at that time. `ratio` is the target, idle p50 plus one batch, to the p50
beside the job: 1 or more meets it. Seconds are of wall time: run it on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import Endpoint, RequestTiming, run_closed_loop
from benchmarks.labelling import fill_photos, prepare_bundle, run_fss, run_service, segment_request, write_supports

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "count": 1000, "chunk": 64, "batch": 8,
                          "idle_s": 20, "side": 512, "data": "auto", "images": 60, "threads": 2, "seed": 0}
WARM_S = 5


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Latencies in seconds, idle and beside the job, and what the target is."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        what, bundle = fill_photos(config, folder), prepare_bundle(config, folder)
        sets = [f"serve.threads={config['threads']}", f"serve.max_batch={config['batch']}"]
        words = [word for one in sets for word in ("--set", one)]
        with run_service("--bundle", bundle, *words, folder=folder) as (url, _):
            idle, busy, ends = asyncio.run(_measure(url, folder, config))
    if not busy:
        raise SystemExit("error: the job ended before a request beside it: use a larger count")
    seconds = {"idle": _quantiles(idle), "beside_a_job": _quantiles(busy)}
    rate = config["chunk"] * (len(ends) - 1) / (ends[-1] - ends[0])
    target = seconds["idle"]["p50"] + config["batch"] / rate
    return {"ratio": target / seconds["beside_a_job"]["p50"], "seconds": seconds, "target_s": target, "photos": what,
            "batch_s": config["batch"] / rate, "images_per_s": rate, "requests": [len(idle), len(busy)]}


async def _measure(url: str, folder: Path, config: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the requests, idle and beside the job, and the times of the job's parts."""
    endpoint, out = Endpoint(f"{url}/v1/segment", segment_request(url, config)), folder / "labels"
    await run_closed_loop(endpoint, 1, WARM_S)
    idle = await run_closed_loop(endpoint, 1, config["idle_s"])
    job = threading.Thread(target=run_fss, daemon=True, kwargs={"folder": folder}, args=(
        "label", "--images", str(folder / "photos"), "--supports", str(write_supports(folder, 1)), "--out", str(out),
        "--workspace", str(folder / "none"), "--service", url, "--set", f"label.chunk={config['chunk']}",
        "--set", f"label.batch={config['batch']}"))
    began = time.time() - time.monotonic()
    job.start()
    answers: list[RequestTiming] = []
    while job.is_alive():
        answers.append(await endpoint.send())
    await endpoint.close()
    ends = sorted(p.stat().st_mtime for p in (out / "parts").glob("chunk-*.parquet"))
    if len(ends) < 2:
        raise SystemExit("error: the job wrote fewer than two parts")
    beside = [a for a in answers if ends[0] <= began + a.due and began + a.due + a.seconds <= ends[-1]]
    return _good(idle), _good(beside), ends


def _good(answers: list[RequestTiming]) -> list[float]:
    """The seconds of the answers; `SystemExit` for one that is no mask."""
    for one in answers:
        if one.status != 200:
            raise SystemExit(f"error: the service answered {one.status}: {one.line}")
    return [one.seconds for one in answers]


def _quantiles(values: list[float]) -> dict[str, float]:
    found = np.quantile(values, [0.5, 0.9, 0.99]).round(4).tolist()
    return dict(zip(("p50", "p90", "p99"), found, strict=True))
