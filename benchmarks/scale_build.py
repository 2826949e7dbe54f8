"""The shard build of a large generated dataset, with the memory of every process over time.

    python -m benchmarks.scale_build --annotations 200000

Photos of 64 x 64 pixels with three annotations each (polygons of 64 corners) are written in COCO layout, one at a time.
The build runs in another process; this one samples the resident memory of the build and of Ray's workers. The result
below --out is a JSON file with the samples, the slopes and the hardware, and a plot as PNG.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.datasets import write_coco
from benchmarks.resident import ROLES, memory_now, memory_trend, plot_memory
from benchmarks.run import RESULTS, hardware, write_result

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


def watch_build(root: Path, out: Path, log: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Run the build and return its facts, and a sample of the resident megabytes by role every second."""
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


def memory_trends(samples: list[dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """Pass of the build -> role -> `memory_trend`.

    The first fifth of each pass is left out, in which processes start, libraries are imported and buffers grow.
    """
    parts = max(s["parts"] for s in samples)
    passes = {"reading_photos": [s for s in samples if 0 < s["parts"] < parts],
              "writing_blocks": [s for s in samples if s["parts"] == parts and s["raylet"] > 0]}
    return {name: {role: memory_trend(found[len(found) // 5 :], role) for role in ROLES}
            for name, found in passes.items() if len(found) > 4}


def run(annotations: int, folder: Path, seed: int = 0) -> Path:
    """Generate the dataset, build its shards, and write the result. Returns the path of the JSON file."""
    with tempfile.TemporaryDirectory() as place:
        root, began = Path(place) / "raw", time.monotonic()
        photos = -(-annotations // PER_PHOTO)
        write_coco(root, photos, per_photo=PER_PHOTO, size=(SIDE, SIDE), seed=seed)
        generated = time.monotonic() - began
        size = (root / "annotations" / "instances.json").stat().st_size
        print(f"{photos} photos, {photos * PER_PHOTO} annotations ({size / 1e6:.0f} MB of JSON) in {generated:.0f} s",
              file=sys.stderr, flush=True)
        facts, samples = watch_build(root, Path(place) / "shards", Path(place) / "log")
    result = {"photos": photos, "written_annotations": photos * PER_PHOTO, "json_bytes": size, **facts,
              "photos_per_s": round(photos / facts["seconds"], 1), "memory": memory_trends(samples)}
    path = write_result(folder, f"scale_build-{annotations}-cpu-{hardware()['cores']}-cores", "scale_build", __doc__,
                        config={"annotations": annotations, "side": SIDE, "seed": seed}, result=result, samples=samples)
    plot_memory(samples, f"shard build: {photos} photos, {photos * PER_PHOTO} annotations", path.with_suffix(".png"))
    return path


def main() -> None:
    """Run the benchmark with the settings of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_build",
                                     description="Measure the memory of a large shard build.")
    parser.add_argument("--annotations", type=int, default=200_000, help="annotations of the generated dataset")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result files")
    args = parser.parse_args()
    path = run(args.annotations, args.out)
    result = json.loads(path.read_text())["result"]
    print(json.dumps({k: result[k] for k in ("photos", "annotations", "seconds", "photos_per_s", "memory")}))
    print(path)


if __name__ == "__main__":
    main()
