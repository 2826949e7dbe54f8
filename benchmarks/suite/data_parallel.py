"""Training with 1, 2 and 4 workers (DDP, gloo on CPUs, NCCL on GPUs): clips/s, and the share of a perfect speed-up.

Each worker has the same number of clips a step and one thread (or one GPU), so that perfect means N times the speed of
one worker. A machine of C cores bounds N workers by min(N, C) / N of that; `of_bound` is the
efficiency divided by this bound. The numbers of workers take turns for several rounds, and the median is kept. `ratio`
is the lowest `of_bound` of more than one worker.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import coco_root
from benchmarks.training import short_spec, train_rows

CONFIG: dict[str, Any] = {"method": "sansa", "preset": "nano", "workers": [1, 2, 4], "clips": 4, "steps": 32,
                          "window": 8, "rounds": 2, "data": "auto", "images": 120, "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Clips/s, efficiency, bound and their quotient for each number of workers."""
    from pipelines.base.cluster import cluster
    from pipelines.config.data import DataConfig, SourceConfig
    from pipelines.data.shards import build_shards

    gpus = torch.cuda.device_count()
    devices = gpus or len(os.sched_getaffinity(0))
    speeds: dict[int, list[float]] = {n: [] for n in config["workers"] if n <= (gpus or n)}
    with tempfile.TemporaryDirectory() as folder:
        root, what = coco_root(config, Path(folder))
        shards = os.path.join(folder, "shards")
        build_shards(DataConfig(name="photos", source=SourceConfig(format="coco", root=root)), shards)
        with cluster():
            for number in range(config["rounds"]):
                for workers in speeds:
                    speeds[workers] += _speeds(workers, config, shards, f"{folder}/{workers}-{number}")
    middle = {n: statistics.median(found) for n, found in speeds.items()}
    one = middle[min(middle)] / min(middle)
    table = {str(n): {"clips_per_s": speed, "efficiency": speed / n / one, "bound": min(n, devices) / n,
                      "of_bound": speed / min(n, devices) / one} for n, speed in middle.items()}
    several = [row["of_bound"] for n, row in table.items() if int(n) > 1]
    return {"ratio": min(several, default=1.0), "photos": what, "devices": devices, "workers": table}


def _speeds(workers: int, config: dict[str, Any], shards: str, out: str) -> list[float]:
    spec = short_spec(config["method"], config["preset"], shards, seed=config["seed"], steps=config["steps"],
                      batch=config["clips"] * workers, workers=workers, log_every=config["window"],
                      checkpoint_every=config["steps"])
    rows = train_rows(spec, out, threads=config["threads"], gpus=workers if torch.cuda.is_available() else 0)
    return [row["episodes_per_s"] for row in rows]
