"""Labelled photos opened by the name of their format: people's own, or a published benchmark."""

from __future__ import annotations

from pipelines.config.data import BENCHMARKS, SourceConfig
from pipelines.data.benchmarks import open_benchmark
from pipelines.data.sources import FORMATS
from pipelines.data.sources.base import Source


def open_source(cfg: SourceConfig) -> Source:
    """The indexed source. Raises `FssError` for a missing folder or a layout that is not the format's."""
    return open_benchmark(cfg) if cfg.format in BENCHMARKS else FORMATS[cfg.format](cfg)
