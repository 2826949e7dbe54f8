"""A sweep of all methods packed into the machine, compared with the same runs one after another: wall seconds.

The real command is run on real photos (`fss sweep run --recipe nano_coco20i`, shortened), after the shards were built.
Packed means that as many runs as there are cores run at a time, with one thread each. One after another is measured
with one thread, and with a thread for each core. The time is that from the command's start to the last run's result;
`train_s` is the sum of the training times of its runs. `ratio` is the time of the packed sweep divided by the shorter
one of the others.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.datasets import coco_root
from benchmarks.labelling import run_fss, set_words

CONFIG: dict[str, Any] = {"recipe": "nano_coco20i", "methods": "", "folds": [0], "seeds": [0], "steps": 40,
                          "episodes": 60, "data": "auto", "images": 120, "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The sweep's number of runs and its seconds in each way, and their ratio."""
    cores = len(os.sched_getaffinity(0))
    ways = {"packed": (0, 1), "one_by_one_1_thread": (1, 1), f"one_by_one_{cores}_threads": (1, cores)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        root, what = coco_root(config, folder)
        sets = {"data.source": f"{{format: coco, root: {json.dumps(root)}}}", "data.name": "photos",
                "train.selection": "none",
                "train.steps": config["steps"], "eval.episodes": config["episodes"], "sweep.folds": config["folds"],
                "sweep.seeds": config["seeds"], **({"methods": config["methods"]} if config["methods"] else {})}
        split = Path(root).parent / "splits.json"  # photos that the shipped weights have seen are train photos in it
        if split.exists():
            sets |= {"data.split.file": split, "data.split.key": Path(root).name}
        common = ["--recipe", config["recipe"], *set_words(sets)]
        run_fss("shards", "build", *common, "--out", str(folder / "first"), folder=folder)
        found = {}
        for name, (parallel, cpus) in ways.items():
            out = folder / name
            out.mkdir()
            (out / "shards").symlink_to(folder / "first" / "shards")
            own = set_words({"sweep.parallel": parallel, "sweep.cpus_per_run": cpus})
            found[name] = _sweep([*common, *own, "--out", str(out)], out, folder)
    best = min(f["wall_s"] for name, f in found.items() if name != "packed")
    return {"ratio": found["packed"]["wall_s"] / best, "photos": what, "cores": cores, **found}


def _sweep(words: list[str], out: Path, folder: Path) -> dict[str, Any]:
    began = time.time()
    run_fss("sweep", "run", *words, folder=folder)
    results = list((out / "runs").glob("*/result.json"))
    trained = sum(json.loads(r.read_text())["train_s"] or 0.0 for r in results)
    return {"runs": len(results), "wall_s": max(r.stat().st_mtime for r in results) - began, "train_s": trained}
