"""A search whose workspace lies in a bucket, with two workers a run and kept features: slow, by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from pipelines.config.recipe import Recipe

pytestmark = pytest.mark.slow
FSS = str(Path(sys.executable).parent / "fss")


def test_a_search_in_a_bucket_with_two_workers_and_kept_features(s3_server: S3Server, tmp_path: Path) -> None:
    """Would catch a file of a search that only its own machine has."""
    out = Store(f"{s3_server.url}/search/out")
    recipe = Recipe.model_validate({
        "name": "bucket", "out": out.url, "methods": [{"name": "fcp", "preset": "debug"}],
        "data": {"source": {"format": "shapes", "images": 90, "side": 96}, "images_per_part": 30, "name": "shapes",
                 "split": {"test_fraction": 0.4}},
        "sweep": {"folds": [0], "cpus_per_run": 2},
        "train": {"steps": 4, "batch": 2, "workers": 2, "features": "float32", "flip": False,
                  "pool_bytes": 64_000_000, "selection": "base-holdout", "select": {"classes": 1, "episodes": 6}},
        "search": {"space": {"train.lr": {"log": [0.0001, 0.01]}}, "trials": 2, "rungs": 2, "eta": 2}})
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))

    first = _search(file)
    (method,) = first["methods"]
    assert sorted(len(t["scores"]) for t in method["trials"]) == [1, 2]
    made = Recipe.model_validate(yaml.safe_load(out.read_bytes(method["recipe"].removeprefix(out.url + "/"))))
    best = max(method["trials"], key=lambda trial: len(trial["scores"]))
    assert made.train.lr == best["values"]["train.lr"]
    files = out.list()
    assert any(f.startswith("features/") and f.endswith(".parquet") for f in files)
    assert len([f for f in files if f.startswith("search/scores/") and f.endswith(".json")]) == 3
    assert not list(tmp_path.rglob("checkpoint*")), "written outside the bucket"

    for lost in (f for f in files if "/step-0000004" in f):
        out.delete(lost)
    again = _search(file)
    assert [t["scores"] for t in again["methods"][0]["trials"]] == [t["scores"] for t in method["trials"]]


def _search(recipe: Path) -> dict[str, list[dict[str, object]]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([FSS, "search", "--recipe", str(recipe), "--json"], env=environment, cwd=recipe.parent,
                          capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
