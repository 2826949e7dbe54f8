"""A large generated dataset through the real shard build, with the memory of every process over time.

    python -m benchmarks.scale_build --annotations 200000

Photos of 64 x 64 pixels, three annotations each (polygons of 64 corners), are written in COCO layout one after
another, never held together. The build runs in a process of its own; this one reads the resident memory of it and of
Ray's workers. Kept below --out: a JSON with the samples, the slopes and the hardware, and a curve as PNG.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.run import RESULTS, commit, hardware, versions

SIDE, CORNERS, CLASSES, PER_PHOTO, EVERY_S = 64, 64, 80, 3, 1.0
_ROLES = {"ray::": "workers", "raylet": "raylet", "gcs_server": "gcs"}


def write_dataset(root: Path, annotations: int, seed: int = 0) -> int:
    """Photos and annotations/instances.json below `root`; returns how many photos."""
    photos = -(-annotations // PER_PHOTO)
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for i in range(photos):
        path = root / "images" / f"{i // 1000:04d}" / f"{i:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_photo(rng))
    with (root / "annotations" / "instances.json").open("w") as out:
        for text in _document(photos, annotations, rng):
            out.write(text)
    return photos


def _photo(rng: np.random.Generator) -> bytes:
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(out, "JPEG")
    return out.getvalue()


def _document(photos: int, annotations: int, rng: np.random.Generator) -> Iterator[str]:
    """The annotations in random order of photos, as COCO's own files have them."""
    classes = [{"id": c + 1, "name": f"class {c}"} for c in range(CLASSES)]
    yield json.dumps({"categories": classes})[:-1] + ', "images": ['
    for i in range(photos):
        record = {"id": i, "file_name": f"{i:08d}.jpg", "height": SIDE, "width": SIDE}
        yield ("," if i else "") + json.dumps(record)
    yield '], "annotations": ['
    corners = np.arange(CORNERS) * 2 * np.pi / CORNERS
    for n, slot in enumerate(rng.permutation(annotations)):
        radius, centre = rng.uniform(6, 16), rng.uniform(16, 48, 2)
        points = centre + radius * np.stack([np.cos(corners), np.sin(corners)], axis=1)
        record = {"id": n, "image_id": int(slot) // PER_PHOTO, "category_id": 1 + int(rng.integers(CLASSES)),
                  "iscrowd": 0, "segmentation": [points.round(2).ravel().tolist()]}
        yield ("," if n else "") + json.dumps(record)
    yield "]}"


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
                            "files": float(sum(1 for _ in out.glob("*/**/*.parquet")))})
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


def slopes(samples: list[dict[str, float]], photos: int) -> dict[str, dict[str, float]]:
    """Of the middle of the run (25 % to 95 % of its time), by role: the least-squares slope, the mean and the peak."""
    last = samples[-1]["s"]
    middle = [s for s in samples if 0.25 * last <= s["s"] <= 0.95 * last] or samples
    times = np.array([s["s"] for s in middle])
    rate = photos / last  # photos a second over the whole run
    found = {}
    for role in ("driver", "workers", "largest_worker", "raylet", "gcs"):
        values = np.array([s[role] for s in middle])
        slope = float(np.polyfit(times, values, 1)[0]) if len(middle) > 2 else 0.0
        found[role] = {"mb_per_minute": round(slope * 60, 2), "mb_per_100k_photos": round(slope / rate * 1e5, 1),
                       "mean_mb": round(float(values.mean()), 1), "peak_mb": max(s[role] for s in samples)}
    return found


def draw(samples: list[dict[str, float]], title: str, path: Path) -> None:
    """The curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for role in ("driver", "workers", "largest_worker", "raylet", "gcs"):
        axes.plot([s["s"] for s in samples], [s[role] for s in samples], label=role.replace("_", " "))
    axes.set(xlabel="seconds", ylabel="resident memory, not shared [MB]", title=title)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=110)


def run(annotations: int, folder: Path, seed: int = 0) -> Path:
    """Generate, build, and write the result; returns the JSON's path."""
    with tempfile.TemporaryDirectory() as place:
        root, began = Path(place) / "raw", time.monotonic()
        photos = write_dataset(root, annotations, seed)
        generated = time.monotonic() - began
        size = (root / "annotations" / "instances.json").stat().st_size
        print(f"{photos} photos, {annotations} annotations ({size / 1e6:.0f} MB of JSON) in {generated:.0f} s",
              file=sys.stderr, flush=True)
        facts, samples = watch(root, Path(place) / "shards", Path(place) / "log")
    now = datetime.datetime.now(datetime.UTC)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d}-scale_build-{annotations}-cpu-{hardware()['cores']}-cores.json"
    result = {"photos": photos, "written_annotations": annotations, "json_bytes": size, **facts,
              "photos_per_s": round(photos / facts["seconds"], 1), "memory": slopes(samples, photos)}
    document = {"benchmark": "scale_build", "what": (__doc__ or "").split("\n\n")[0],
                "time": now.isoformat(timespec="seconds"), "hardware": hardware(), "versions": versions(),
                "commit": commit(), "config": {"annotations": annotations, "side": SIDE, "seed": seed},
                "result": result, "samples": samples}
    path.write_text(json.dumps(document, indent=1) + "\n")
    draw(samples, f"shard build: {photos} photos, {annotations} annotations", path.with_suffix(".png"))
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
