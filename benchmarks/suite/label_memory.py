"""Memory of a labelling job over 100,000 small images: the command's and Ray's processes, over time.

A bundle of random values of a small method, so that the job itself and not the model is measured. `ratio` is the mean
memory of the last fifth of the time in which parts are written to that of its second fifth: 1 is flat. Then the
finished job and one that lacks its last part are started again: seconds until a command knows what is left, and has
done it.
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

from benchmarks.labelling import bundle_of, fss, write_supports
from benchmarks.resident import ROLES, draw, memory_now, slope

CONFIG: dict[str, Any] = {"method": "prior", "preset": "debug", "count": 100_000, "side": 64, "distinct": 1000,
                          "chunk": 256, "batch": 32, "engine": "serve", "every_s": 2.0, "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Slopes and peaks by role, images/s, and the seconds of a command that has nothing or one part to do."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(config, folder / "photos")
        bundle = bundle_of(config, folder)
        out, supports = folder / "out", write_supports(folder, 1)
        command = ["label", "--images", str(folder / "photos"), "--supports", str(supports), "--out", str(out),
                   "--workspace", str(folder / "none"), "--bundle", bundle, "--engine",
                   config["engine"], "--set", f"label.chunk={config['chunk']}", "--set",
                   f"label.batch={config['batch']}", "--set", f"serve.threads={config['threads']}"]
        samples, began = [], time.monotonic()

        def watch(pid: int) -> None:
            done = len(os.listdir(out / "parts")) if (out / "parts").exists() else 0
            samples.append({"s": round(time.monotonic() - began, 1), **memory_now(psutil.Process(pid)),
                            "parts": float(done)})
            time.sleep(config["every_s"])

        seconds = fss(*command, folder=folder, watch=watch)
        nothing = fss(*command, folder=folder)
        sorted((out / "parts").iterdir())[-1].unlink()
        one_part = fss(*command, folder=folder)
    picture = io.BytesIO()
    draw(samples, f"fss label: {config['count']} images of {config['side']} x {config['side']}", picture)
    last = max(s["parts"] for s in samples)
    working = [s for s in samples if 0 < s["parts"] < last] or samples  # neither start-up nor the outputs at the end
    fifth = len(working) // 5
    total = [s["driver"] + s["workers"] for s in working]
    return {"ratio": float(np.mean(total[-fifth - 1:]) / np.mean(total[fifth:2 * fifth + 1])),
            "seconds": seconds, "images_per_s": config["count"] / seconds, "again_with_nothing_left_s": nothing,
            "again_with_one_part_left_s": one_part, "memory": {r: slope(working[fifth:], r) for r in ROLES},
            "samples": samples, "figures": {"png": picture.getvalue()}}


def _write(config: dict[str, Any], folder: Path) -> None:
    """`count` files, `distinct` of them different, the others hard links."""
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
