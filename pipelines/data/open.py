"""Opens labelled photos by the name of their format: a person's own data or a published benchmark."""

from __future__ import annotations

from pipelines.config.data import BENCHMARKS, SourceConfig
from pipelines.data.benchmarks import open_benchmark
from pipelines.data.sources import FORMATS
from pipelines.data.sources.base import Source


def open_source(cfg: SourceConfig) -> Source:
    """The source that `cfg` names, with its index. Raises `FssError` for a missing folder or an unexpected layout."""
    return open_benchmark(cfg) if cfg.format in BENCHMARKS else FORMATS[cfg.format](cfg)
