"""Training through Ray Train, compared with a plain loop of the same model, loss, optimiser and clips: episodes/s.

Each method is trained in three ways in turn, each in one process with the same number of torch threads:

ray    a run as `fss train` does it
plain  a plain PyTorch loop that makes its clips between its steps
bound  a plain PyTorch loop whose clips are ready in memory

Start-up and the first window are left out. `ratio` is the speed of `ray` divided by that of `plain`, for the method
where it is lowest. `data_wait` is the share of the run's time in which it waited for clips. On a machine without a
spare core, Ray's own processes and the thread that makes the next clip take their time from the model.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import coco_root
from benchmarks.training import short_spec, train_rows

CONFIG: dict[str, Any] = {"methods": ["sansa", "fssam", "fcp", "vrp_sam"], "preset": "nano", "steps": 48, "window": 8,
                          "batch": 4, "shots": 1, "rounds": 2, "data": "auto", "images": 120, "side": 256,
                          "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Episodes/s of each method and way: the medians over the windows of all rounds."""
    from pipelines.base.cluster import cluster
    from pipelines.config.data import DataConfig, SourceConfig
    from pipelines.data.shards import build_shards

    with tempfile.TemporaryDirectory() as folder:
        root, what = coco_root(config, Path(folder))
        url = os.path.join(folder, "shards")
        build_shards(DataConfig(name="photos", source=SourceConfig(format="coco", root=root)), url)
        with cluster():
            found = {m: _method(m, config, url, f"{folder}/{m}") for m in config["methods"]}
    slowest = min(found.values(), key=lambda f: float(f["ray_to_plain"]))
    return {"ratio": slowest["ray_to_plain"], "photos": what, **found}


def _method(method: str, config: dict[str, Any], shards: str, out: str) -> dict[str, Any]:
    speeds: dict[str, list[float]] = {"ray": [], "plain": [], "bound": []}
    waits: list[float] = []
    for number in range(config["rounds"]):
        spec = short_spec(method, config["preset"], shards, seed=config["seed"] + number, steps=config["steps"],
                          batch=config["batch"], shots=config["shots"], log_every=config["window"],
                          checkpoint_every=config["steps"])
        rows = train_rows(spec, f"{out}/{number}", threads=config["threads"])
        speeds["ray"] += [r["episodes_per_s"] for r in rows]
        waits += [r["data_wait"] for r in rows]
        for way in ("plain", "bound"):
            speeds[way] += _loop(spec, config, ready=way == "bound")
    middle = {f"{way}_episodes_per_s": statistics.median(values) for way, values in speeds.items()}
    return {**middle, "ray_to_plain": middle["ray_episodes_per_s"] / middle["plain_episodes_per_s"],
            "ray_to_bound": middle["ray_episodes_per_s"] / middle["bound_episodes_per_s"],
            "data_wait": statistics.median(waits)}


def _loop(spec: Any, config: dict[str, Any], *, ready: bool) -> list[float]:
    """Train in a plain PyTorch loop. Returns the episodes/s of each window without the first."""
    from pipelines.bundles.weights import build_model

    model = build_model(spec.method, seed=spec.seed).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=spec.train.lr, weight_decay=spec.train.weight_decay)
    clips = _clips(spec, model)
    if ready:
        clips = itertools.cycle(list(itertools.islice(clips, config["window"])))
    speeds = []
    for _ in range(config["steps"] // config["window"]):
        began = time.perf_counter()
        for clip in itertools.islice(clips, config["window"]):
            loss = torch.stack(list(model.losses(clip).values())).sum()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(params, spec.train.clip_norm)
            optimiser.step()
        speeds.append(config["window"] * config["batch"] / (time.perf_counter() - began))
    return speeds[1:]


def _clips(spec: Any, model: Any) -> Iterator[Any]:
    """The clips of a run, made one at a time: the photos, masks and flips are those of the run."""
    import numpy as np

    from pipelines.data.collate import make_clip, square_side
    from pipelines.data.folds import FoldData

    stream = FoldData.of(spec).stream(spec, position=None, rank=0, world=1, side=square_side(model, decoded=True))
    for step, samples in enumerate(stream):
        yield make_clip(model, samples, np.random.default_rng([spec.seed, 0, step]), flip=spec.train.flip)
