"""One small copy of each benchmark, and its shards, for the module that asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.data import DataConfig
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from tests.data.benchmarks.layouts import LAYOUTS


def benchmark_config(name: str, root: Path | str) -> DataConfig:
    """As a recipe would say it."""
    return DataConfig.model_validate({"name": name, "source": {"format": name, "root": str(root)}, "block_size": 4})


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The raw copy of a benchmark. Read only."""
    made: dict[str, Path] = {}

    def copy(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"raw-{name}")
            LAYOUTS[name](made[name])
        return made[name]

    return copy


@pytest.fixture(scope="session")
def built(
    ray_cluster: object, raw: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Shards]:
    """Its shards. Read only."""
    made: dict[str, str] = {}

    def shards(name: str) -> Shards:
        if name not in made:
            made[name] = str(tmp_path_factory.mktemp("built") / name)
            build_shards(benchmark_config(name, raw(name)), made[name])
        return Shards(made[name])

    return shards
