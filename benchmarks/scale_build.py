"""A large generated dataset through the real shard build, with the memory of every process over time.

    python -m benchmarks.scale_build --annotations 200000

Photos of 64 x 64 pixels, three annotations each (polygons of 64 corners), are written in COCO layout one after
another, never held together. The build runs in a process of its own; this one reads the resident memory of it and of
Ray's workers. Kept below --out: a JSON with the samples, the slopes and the hardware, and a curve as PNG.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.datasets import write_coco
from benchmarks.run import RESULTS, commit, hardware, versions

SIDE, PER_PHOTO, EVERY_S = 64, 3, 1.0
ROLES = ("driver", "workers", "largest_worker", "raylet", "gcs")
_ROLES = {"ray::": "workers", "raylet": "raylet", "gcs_server": "gcs"}


_BUILD = """
import json, sys, time
from pipelines.cluster import cluster
from pipelines.config import DataConfig, SourceConfig
root, out = sys.argv[1:]
with cluster():
    from pipelines.data.shards import build_shards
    began = time.monotonic()
    m = build_shards(DataConfig(name="scale", source=SourceConfig(format="coco", root=root)), out)
    print(json.dumps({"seconds": time.monotonic() - began, "images": m.images, "annotations": m.annotations,
                      "failures": m.failures, "content_hash": m.content_hash}), flush=True)
"""


def watch(root: Path, out: Path, log: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The build's facts, and one sample of resident megabytes by role every second."""
    began, samples = time.monotonic(), []
    with log.open("wb") as errors:
        build = subprocess.Popen([sys.executable, "-c", _BUILD, str(root), str(out)], stdout=subprocess.PIPE,
                                 stderr=errors)
        while build.poll() is None:
            samples.append({"s": round(time.monotonic() - began, 1), **_memory(psutil.Process(build.pid)),
                            "parts": float(sum(1 for _ in out.glob("images/part-*.parquet"))),
                            "block_files": float(sum(1 for _ in out.glob("blocks/train/class-*.parquet")))})
            time.sleep(EVERY_S)
    answer = build.stdout.read() if build.stdout else b""
    if build.returncode:
        raise SystemExit(f"error: the build failed:\n{log.read_text()[-2000:]}")
    return json.loads(answer.splitlines()[-1]), samples


def _memory(driver: psutil.Process) -> dict[str, float]:
    """Megabytes of the driver, of the workers (all and the largest) and of Ray's own processes.

    Shared pages (the object store's) are left out: every process that maps them would count them again.
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


def slopes(samples: list[dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """By pass and role: the least-squares slope, the mean and the peak.

    The first fifth of each pass is left out: processes start, libraries are imported, buffers reach their size.
    """
    parts = max(s["parts"] for s in samples)
    passes = {"reading_photos": [s for s in samples if 0 < s["parts"] < parts],
              "writing_blocks": [s for s in samples if s["parts"] == parts and s["raylet"] > 0]}
    return {name: {role: _slope(found[len(found) // 5 :], role) for role in ROLES}
            for name, found in passes.items() if len(found) > 4}


def _slope(samples: list[dict[str, float]], role: str) -> dict[str, float]:
    values = np.array([s[role] for s in samples])
    slope = float(np.polyfit([s["s"] for s in samples], values, 1)[0])
    return {"mb_per_minute": round(slope * 60, 2), "grown_mb": round(slope * (samples[-1]["s"] - samples[0]["s"]), 1),
            "mean_mb": round(float(values.mean()), 1), "peak_mb": float(values.max())}


def draw(samples: list[dict[str, float]], title: str, path: Path) -> None:
    """The curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for role in ROLES:
        axes.plot([s["s"] for s in samples], [s[role] for s in samples], label=role.replace("_", " "))
    axes.set(xlabel="seconds", ylabel="resident memory, not shared [MB]", title=title)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=110)


def run(annotations: int, folder: Path, seed: int = 0) -> Path:
    """Generate, build, and write the result; returns the JSON's path."""
    with tempfile.TemporaryDirectory() as place:
        root, began = Path(place) / "raw", time.monotonic()
        photos = -(-annotations // PER_PHOTO)
        write_coco(root, photos, per_photo=PER_PHOTO, size=(SIDE, SIDE), seed=seed)
        generated = time.monotonic() - began
        size = (root / "annotations" / "instances.json").stat().st_size
        print(f"{photos} photos, {photos * PER_PHOTO} annotations ({size / 1e6:.0f} MB of JSON) in {generated:.0f} s",
              file=sys.stderr, flush=True)
        facts, samples = watch(root, Path(place) / "shards", Path(place) / "log")
    now = datetime.datetime.now(datetime.UTC)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d}-scale_build-{annotations}-cpu-{hardware()['cores']}-cores.json"
    result = {"photos": photos, "written_annotations": photos * PER_PHOTO, "json_bytes": size, **facts,
              "photos_per_s": round(photos / facts["seconds"], 1), "memory": slopes(samples)}
    document = {"benchmark": "scale_build", "what": (__doc__ or "").split("\n\n")[0],
                "time": now.isoformat(timespec="seconds"), "hardware": hardware(), "versions": versions(),
                "commit": commit(), "config": {"annotations": annotations, "side": SIDE, "seed": seed},
                "result": result, "samples": samples}
    path.write_text(json.dumps(document, indent=1) + "\n")
    draw(samples, f"shard build: {photos} photos, {photos * PER_PHOTO} annotations", path.with_suffix(".png"))
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_build", description="Memory of a large build.")
    parser.add_argument("--annotations", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    path = run(args.annotations, args.out)
    result = json.loads(path.read_text())["result"]
    print(json.dumps({k: result[k] for k in ("photos", "annotations", "seconds", "photos_per_s", "memory")}))
    print(path)


if __name__ == "__main__":
    main()
