"""The published benchmarks, one module each: raw layout, classes, folds, filters and lists of test episodes."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from fss_models.errors import FssError
from pipelines.config.data import BENCHMARKS, SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark
from pipelines.data.sources.base import Source

_FILES = {"pascal5i": "pascal", "coco20i": "coco", "lvis92i": "lvis"}  # other modules have the benchmark's name


def find_benchmark(name: str) -> Benchmark:
    """The benchmark with a name. Raises `FssError` if there is none."""
    if name not in BENCHMARKS:
        raise FssError(f"there is no benchmark {name!r}", hint=f"known: {', '.join(BENCHMARKS)}")
    return cast(Benchmark, import_module(f"pipelines.data.benchmarks.{_FILES.get(name, name)}").BENCHMARK)


def open_benchmark(cfg: SourceConfig) -> Source:
    """The raw data of a benchmark as an indexed source. Raises `FssError` if the layout is not the published one."""
    benchmark = find_benchmark(cfg.format)
    return benchmark.source(cfg.model_copy(update={"root": benchmark.home(cfg.root)}))
