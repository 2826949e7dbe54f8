"""The shard build, compared with a plain multiprocessing script of the same work, and its growth with the photos.

plain   a pool of as many processes reads, hashes and decodes each photo, rasterises its polygons, computes boxes and
        areas, and writes Parquet files of the same part size; then it writes the classes' blocks, one file a class.
        It cannot resume after a kill, lists no failures, and writes to local disk without flushing.

Seconds are CPU seconds of all processes, including Ray's own daemons, in one cluster; the cluster's start is reported
separately. The cost of a build of `least` photos also counts as start-up (`start_up_cpu_seconds`). Beyond that
start-up, ten times the photos may cost 10.5 times as much.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.datasets import write_coco
from benchmarks.resident import cpu_now

CONFIG: dict[str, Any] = {"images": 2000, "least": 20, "height": 480, "width": 640, "per_photo": 3, "classes": 20,
                          "processes": 2, "part": 64, "repeats": 3, "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Photos a CPU second of both ways, their ratio, and the growth from a tenth of the photos to all."""
    sizes = {"least": config["least"], "tenth": config["images"] // 10, "all": config["images"]}
    with tempfile.TemporaryDirectory() as place:
        roots = {name: Path(place) / name / "raw" for name in sizes}
        for name, count in sizes.items():
            write_coco(roots[name], count, per_photo=config["per_photo"], size=(config["height"], config["width"]),
                       classes=config["classes"], seed=config["seed"])
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        with ExitStack() as running:
            start = _measure_seconds(partial(_start, running, config))
            _build(roots["least"], Path(place) / "first", config)
            for turn in range(config["repeats"]):
                for name in sorted(sizes, reverse=bool(turn % 2)):
                    for kind, way in (("build", _build), ("plain", _plain)):
                        out = Path(place) / name / f"{kind}-{turn}"
                        found[f"{kind}_{name}"].append(_measure_seconds(partial(way, roots[name], out, config)))
    cpu = {name: statistics.median(c for c, _ in values) for name, values in found.items()}
    wall = {name: statistics.median(w for _, w in values) for name, values in found.items()}
    beyond = {kind: {n: max(cpu[f"{kind}_{n}"] - cpu[f"{kind}_least"], 0.01) for n in ("tenth", "all")}
              for kind in ("build", "plain")}
    photos = sizes["all"] - sizes["least"]
    return {"ratio": beyond["plain"]["all"] / beyond["build"]["all"],
            "wall_ratio": wall["plain_all"] / wall["build_all"],
            "cluster_start": {"cpu_seconds": start[0], "wall_seconds": start[1]},
            "start_up_cpu_seconds": {k: cpu[f"{k}_least"] for k in beyond},
            "photos_per_cpu_s": {k: photos / v["all"] for k, v in beyond.items()},
            "wall_photos_per_s": {k: sizes["all"] / wall[f"{k}_all"] for k in beyond},
            "growth": {k: _growth(v, sizes) for k, v in beyond.items()}, "cpu_seconds": cpu, "wall_seconds": wall}


def _growth(beyond: dict[str, float], sizes: dict[str, int]) -> float:
    """How many times the CPU seconds of a tenth of the photos all photos cost, without start-up: 10 is proportional."""
    per_tenth = beyond["tenth"] / (sizes["tenth"] - sizes["least"])
    return 10 * (beyond["all"] / (sizes["all"] - sizes["least"])) / per_tenth


# ---- the product --------------------------------------------------------------------------------------------------

def _start(running: ExitStack, config: dict[str, Any]) -> None:
    from pipelines.base.cluster import cluster

    running.enter_context(cluster(cpus=config["processes"]))


def _build(root: Path, out: Path, config: dict[str, Any]) -> None:
    from pipelines.config.data import DataConfig, SourceConfig
    from pipelines.data.shards import build_shards

    data = DataConfig(name="bench", source=SourceConfig(format="coco", root=str(root)), min_images=1,
                      images_per_part=config["part"])
    build_shards(data, str(out))


# ---- the plain script ---------------------------------------------------------------------------------------------

def _plain(root: Path, out: Path, config: dict[str, Any]) -> None:
    document = json.loads((root / "annotations" / "instances.json").read_text())
    paths = {p.name: p for p in root.rglob("*.jpg")}
    notes = defaultdict(list)
    for a in document["annotations"]:
        notes[a["image_id"]].append((a["category_id"], a["segmentation"]))
    photos = [(r["id"], str(paths[r["file_name"]]), notes[r["id"]]) for r in document["images"]]
    groups = [photos[i : i + config["part"]] for i in range(0, len(photos), config["part"])]
    for folder in ("images", "blocks"):
        (out / folder).mkdir(parents=True)
    with get_context("spawn").Pool(config["processes"]) as pool:
        places = defaultdict(list)
        for i, classes in enumerate(pool.imap(_plain_part, [(str(out), i, g) for i, g in enumerate(groups)])):
            for row, present in enumerate(classes):
                for c in present:
                    places[c].append((i, row))
        pool.map(_plain_blocks, [(str(out), c, found) for c, found in sorted(places.items())], chunksize=1)


def _plain_part(job: tuple[str, int, list[Any]]) -> list[list[int]]:
    """Write one part of the image table. Returns the class ids of each of its photos."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from pycocotools import mask as coco

    out, number, photos = job
    rows = []
    for image_id, path, notes in photos:
        data = Path(path).read_bytes()
        height, width = np.array(Image.open(io.BytesIO(data)).convert("RGB")).shape[:2]
        annotations = defaultdict(list)
        for class_id, polygons in notes:
            rle = coco.merge(coco.frPyObjects(polygons, height, width))
            annotations[class_id].append({"rle": rle["counts"], "bbox": coco.toBbox(rle).tolist(),
                                          "area": float(coco.area(rle))})
        areas = {c: int(coco.area(coco.merge([{"size": [height, width], "counts": i["rle"]} for i in found])))
                 for c, found in annotations.items()}
        rows.append({"image_id": image_id, "image": data, "sha256": hashlib.sha256(data).hexdigest(), "height": height,
                     "width": width, "annotations": [{"class_id": c, "area": areas[c], "instances": found}
                                                     for c, found in annotations.items()]})
    pq.write_table(pa.Table.from_pylist(rows), Path(out, f"images/{number:05d}.parquet"), row_group_size=8,
                   compression={"image": "NONE"}, use_dictionary=False)
    return [[a["class_id"] for a in row["annotations"]] for row in rows]


def _plain_blocks(job: tuple[str, int, list[tuple[int, int]]]) -> None:
    """Write the photos of a class in random order, 128 in each row group."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    out, class_id, places = job
    order = [places[i] for i in np.random.default_rng(class_id).permutation(len(places))]
    writer = None
    for first in range(0, len(order), 128):
        rows_of = defaultdict(list)
        for part, row in order[first : first + 128]:
            rows_of[part, row // 8].append(row % 8)
        rows = []
        for (part, group), inside in rows_of.items():
            with pq.ParquetFile(Path(out, f"images/{part:05d}.parquet")) as file:
                rows += file.read_row_group(group).take(inside).to_pylist()
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(Path(out, f"blocks/{class_id}.parquet"), table.schema,
                                            use_dictionary=False)
        writer.write_table(table)
    if writer:
        writer.close()


# ---- CPU seconds of a tree of processes ---------------------------------------------------------------------------

def _measure_seconds(way: Callable[[], None]) -> tuple[float, float]:
    """Run `way` and return (CPU seconds of this process and of all that it started, wall seconds)."""
    with _cpu_clock() as total:
        began = time.perf_counter()
        way()
        wall = time.perf_counter() - began
    return total(), wall


@contextmanager
def _cpu_clock() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the CPU seconds of this process and its children since the start of the block.

    The system does not add the time of Ray's daemons and workers to ours when they end, so all processes are sampled
    ten times a second.
    """
    first, stop = cpu_now([os.getpid()]), threading.Event()
    seen = dict(first)

    def total() -> float:
        seen.update(cpu_now([os.getpid()]))
        return sum(seconds - first.get(pid, ("", 0.0))[1] for pid, (_, seconds) in seen.items())

    def watch() -> None:
        while not stop.wait(0.1):
            seen.update(cpu_now([os.getpid()]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield total
    finally:
        stop.set()
        thread.join()
