"""Opens labelled photos by the name of their format: a person's own data or a published benchmark."""

from __future__ import annotations

from fss_models.errors import FssError
from pipelines.config.data import BENCHMARKS, SourceConfig
from pipelines.data.benchmarks import open_benchmark
from pipelines.data.sources import FORMATS
from pipelines.data.sources.base import Source, unread_pictures


def open_source(cfg: SourceConfig) -> Source:
    """The source that `cfg` names, with its index.

    Pictures in formats that are not read are among the failures of a person's own data. Raises `FssError` for a missing
    folder or an unexpected layout.
    """
    if cfg.format in BENCHMARKS:
        return open_benchmark(cfg)
    try:
        source = FORMATS[cfg.format](cfg)
    except RecursionError:
        raise FssError("its annotations are nested too deeply", where=cfg.root) from None
    source.failures += unread_pictures(source.store) if cfg.root else []
    return source
