"""The runner of the benchmarks: result files say what was measured on which machine, and it runs without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.run import names, run
from benchmarks.suite.packing import shortest_makespan
from pipelines.sweeps.schedule import QueuedRun, RunResources

ROOT = Path(__file__).resolve().parents[2]
TINY = {"data": "generated", "images": 60, "side": 64, "repeats": 1}
RANDOM = {"method": "prior", "preset": "debug"}
SMALL = {
    "store_write": {"bytes": 1000, "files": 2, "repeats": 1},
    "training_stream": {**TINY, "workers": 0, "turns": 2},
    "training_stream_s3": {**TINY, "batches": 4, "latency_ms": 2},
    "shipped_bundle": {"method": "sansa", "preset": "debug", "images": 2, "batch": 2, "shots": [1], "repeats": 1},
    "data_parallel": {"data": "generated", "images": 60, "preset": "debug", "workers": [1, 2], "clips": 2, "steps": 4,
                      "window": 2, "rounds": 1},
    "training_run": {"data": "generated", "images": 60, "preset": "debug", "steps": 4, "window": 2, "rounds": 1,
                     "methods": ["sansa"]},
    "instances": {"data": "generated", "images": 60, "queries": 3, "method": "sansa", "preset": "debug", "threads": 1},
    "negatives": {"data": "generated", "images": 8, "sets": 2, "queries": 2, "preset": "debug", "threads": 1},
    "base_class_constants": {"preset": "debug", "episodes": 4, "classes": 1, "folds": [0],
                             "grid": {"tau": [0.5, 0.6]}},
    "packing": {"runs": [8, 24], "draws": 1, "real_runs": 0},
    "presence": {"images": 80, "side": 96, "threads": 1},
    "classes_per_pass": {**RANDOM, "data": "generated", "images": 4, "count": 4, "classes": 2, "batch": 2,
                         "repeats": 1},
    "labelling_engines": {**RANDOM, "data": "generated", "images": 8, "count": 64, "chunk": 8, "batch": 4, "rounds": 1},
    "annotation": {**RANDOM, "data": "generated", "images": 8, "count": 64, "chunk": 8, "batch": 4},
    "label_memory": {"count": 400, "distinct": 20, "chunk": 20, "batch": 4, "every_s": 0.5},
    "photo_stages": {**RANDOM, "data": "generated", "sizes": [[64, 48]], "count": 2, "batch": 2, "images": 4,
                     "repeats": 1},
    "device_pipeline": {**RANDOM, "data": "generated", "size": [64, 48], "count": 4, "batch": 2, "images": 4,
                        "repeats": 1, "threads": 1},
    "kept_features": {**RANDOM, "data": "generated", "size": [64, 48], "count": 8, "chunk": 4, "batch": 2, "images": 8},
    "official_loop": {**RANDOM, "shots": [1], "images": 2, "repeats": 1, "threads": 1},
    "job_ledger": {"count": 40, "chunk": 4},
    "click_latency": {**RANDOM, "data": "generated", "images": 8, "count": 64, "chunk": 4, "batch": 4, "idle_s": 2,
                      "side": 64, "threads": 1},
    "service_load": {**RANDOM, "seconds": 4, "capacity_s": 2, "clients": 4},
    "sweep_wall": {"recipe": "debug", "data": "generated", "images": 60, "steps": 2, "episodes": 4},
    "sharing_bound": {"preset": "base"},
    "shard_build": {"images": 60, "least": 4, "height": 64, "width": 64, "part": 16, "repeats": 1},
}


def small(name: str) -> dict[str, object]:
    return SMALL.get(name, {"preset": "debug", "images": 2, "side": 64, "repeats": 1})


# these start a cluster or several
COMMANDS = ("base_class_constants", "labelling_engines", "annotation", "label_memory", "sweep_wall", "service_load",
            "training_run", "data_parallel", "shard_build", "click_latency")
BUILDING = ("presence", "training_stream", "training_stream_s3")  # these build shards: see test_on_shards.py
NEEDS_SHARDS = "precision"


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in COMMANDS else n for n in names()
                                  if n not in (NEEDS_SHARDS, *BUILDING)])
def test_every_benchmark_runs_and_says_where(name: str, tmp_path: Path) -> None:
    check_benchmark(name, tmp_path)


def check_benchmark(name: str, tmp_path: Path) -> None:
    """Run a small benchmark and look at its result file."""
    path = run(name, small(name), tmp_path)
    document = json.loads(path.read_text())
    assert path.name.startswith(document["time"][:10])
    assert document["result"]["ratio"] > 0
    assert document["result"].get("same_masks", True)
    assert document["config"] | small(name) == document["config"]
    assert {"hardware", "versions", "commit", "what"} <= document.keys()
    assert document["hardware"]["cores"] > 0


@pytest.mark.parametrize(("needs", "seconds", "gpus", "end"), [
    ([1, 1, 1], [4, 3, 2], 2, 5),  # the two shorter ones after each other
    ([0.5, 0.5, 1], [4, 3, 2], 1, 6),  # the halves beside each other
    ([2, 1, 1], [1, 3, 3], 2, 4),  # on both GPUs, then one on each
    ([0.25, 0.25, 0.25, 0.5], [1, 1, 1, 1], 1, 2),  # five quarters
])
def test_the_shortest_schedule(needs: list[float], seconds: list[float], gpus: int, end: float) -> None:
    tasks = [QueuedRun(key=str(i), resources=RunResources(gpus=min(n, 1.0), workers=max(1, int(n))), seconds=s)
             for i, (n, s) in enumerate(zip(needs, seconds, strict=True))]
    assert shortest_makespan(tasks, gpus, 100.0) == end


def test_unknown_names_and_settings(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no benchmark 'spede'"):
        run("spede", {}, tmp_path)
    with pytest.raises(SystemExit, match="has no setting 'byte'"):
        run("store_write", {"byte": 1}, tmp_path)


def test_models_are_measured_without_ray(tmp_path: Path) -> None:
    code = f"""
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "pyarrow", "mlflow", "fsspec", "pipelines"):
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
from pathlib import Path
from benchmarks.run import run
print(run("batched_queries", {small("batched_queries")!r}, Path({str(tmp_path)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
