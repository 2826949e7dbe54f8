"""Memory over time of a labelling job over 100,000 small images: the command's and Ray's processes.

The bundle is an untrained one of a small method, so that the job is measured and not the model. `ratio` is the mean
memory of the last fifth of the time in which parts are written, divided by that of the second fifth: 1 means that the
memory does not grow. Then the command is run again twice, with nothing left to do and with the last part deleted, and
its seconds are measured.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.labelling import job_words, label_words, prepare_bundle, run_fss, write_supports
from benchmarks.resident import ROLES, memory_now, memory_trend, plot_memory

CONFIG: dict[str, Any] = {"method": "prior", "preset": "debug", "count": 100_000, "side": 64, "distinct": 1000,
                          "chunk": 256, "batch": 32, "engine": "serve", "every_s": 2.0, "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Memory by role, images/s, and the seconds of a command that has nothing left to do, or one part."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(config, folder / "photos")
        out, bundle = folder / "out", prepare_bundle(config, folder)
        command = [*label_words(folder, write_supports(folder, 1), out), "--bundle", bundle,
                   "--engine", config["engine"], *job_words(config)]
        samples, began = [], time.monotonic()

        def sample(pid: int) -> None:
            done = len(os.listdir(out / "parts")) if (out / "parts").exists() else 0
            samples.append({"s": round(time.monotonic() - began, 1), **memory_now(psutil.Process(pid)),
                            "parts": float(done)})
            time.sleep(config["every_s"])

        seconds = run_fss(*command, folder=folder, on_poll=sample)
        nothing = run_fss(*command, folder=folder)
        sorted((out / "parts").iterdir())[-1].unlink()
        one_part = run_fss(*command, folder=folder)
    picture = io.BytesIO()
    plot_memory(samples, f"fss label: {config['count']} images of {config['side']} x {config['side']}", picture)
    last = max(s["parts"] for s in samples)
    working = [s for s in samples if 0 < s["parts"] < last] or samples  # without start-up and the outputs at the end
    fifth = len(working) // 5
    total = [s["driver"] + s["workers"] for s in working]
    return {"ratio": float(np.mean(total[-fifth - 1:]) / np.mean(total[fifth:2 * fifth + 1])),
            "seconds": seconds, "images_per_s": config["count"] / seconds, "again_with_nothing_left_s": nothing,
            "again_with_one_part_left_s": one_part, "memory": {r: memory_trend(working[fifth:], r) for r in ROLES},
            "samples": samples, "figures": {"png": picture.getvalue()}}


def _write(config: dict[str, Any], folder: Path) -> None:
    """Write `count` image files: `distinct` different ones, and hard links to them."""
    rng = np.random.default_rng(config["seed"])
    for i in range(config["count"]):
        path = folder / f"{i // 1000:04d}" / f"{i:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < config["distinct"]:
            small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            side = (config["side"], config["side"])
            Image.fromarray(small).resize(side, Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            source = i % config["distinct"]
            os.link(folder / f"{source // 1000:04d}" / f"{source:08d}.jpg", path)
