"""Benchmarks that build shards of photos, or are given some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fss_models import registry
from pipelines.bundles.bundle import save_bundle
from tests.benchmarks.test_benchmarks import BUILDING, NEEDS_SHARDS, check_benchmark, run


@pytest.mark.parametrize("name", BUILDING)
def test_every_benchmark_on_shards_runs(ray_cluster: object, name: str, tmp_path: Path) -> None:
    check_benchmark(name, tmp_path)


@pytest.mark.slow
def test_precisions_are_compared_on_shards(shapes_shards: str, tmp_path: Path) -> None:
    save_bundle(str(tmp_path / "bundle"), registry.build("prior", "debug"))
    path = run(NEEDS_SHARDS, {"bundle": str(tmp_path / "bundle"), "shards": shapes_shards, "episodes": 4, "batch": 2},
               tmp_path)
    found = json.loads(path.read_text())["result"]
    assert found["miou_percent"].keys() == {"float32", "bfloat16"}
    assert found["episodes"] == 4
