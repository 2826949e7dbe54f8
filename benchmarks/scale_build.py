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
from pathlib import Path
from typing import Any

import psutil

from benchmarks.datasets import write_coco
from benchmarks.resident import ROLES, draw, memory_now, slope
from benchmarks.run import RESULTS, commit, hardware, versions

SIDE, PER_PHOTO, EVERY_S = 64, 3, 1.0


_BUILD = """
import json, sys, time
from pipelines.base.cluster import cluster
from pipelines.config.data import DataConfig, SourceConfig
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
            samples.append({"s": round(time.monotonic() - began, 1), **memory_now(psutil.Process(build.pid)),
                            "parts": float(sum(1 for _ in out.glob("images/part-*.parquet"))),
                            "block_files": float(sum(1 for _ in out.glob("blocks/train/class-*.parquet")))})
            time.sleep(EVERY_S)
    answer = build.stdout.read() if build.stdout else b""
    if build.returncode:
        raise SystemExit(f"error: the build failed:\n{log.read_text()[-2000:]}")
    return json.loads(answer.splitlines()[-1]), samples


def slopes(samples: list[dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """By pass and role: the least-squares slope, the mean and the peak.

    The first fifth of each pass is left out: processes start, libraries are imported, buffers reach their size.
    """
    parts = max(s["parts"] for s in samples)
    passes = {"reading_photos": [s for s in samples if 0 < s["parts"] < parts],
              "writing_blocks": [s for s in samples if s["parts"] == parts and s["raylet"] > 0]}
    return {name: {role: slope(found[len(found) // 5 :], role) for role in ROLES}
            for name, found in passes.items() if len(found) > 4}


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
