"""Frozen SAM 2: references are frames of a video, the query is its next frame."""

from __future__ import annotations

from fss_models.methods.sam2_frozen.config import Sam2FrozenConfig
from fss_models.registry import register_method
from fss_models.sam2_core.matcher import MemoryMatcher


@register_method("sam2_frozen", config=Sam2FrozenConfig)
class Sam2Frozen(MemoryMatcher):
    """The baseline that adapted methods are compared with. It is untrained where no checkpoint is given or ships."""

    trains = False
    config: Sam2FrozenConfig

    def __init__(self, *, preset: str, config: Sam2FrozenConfig, weights: str | None = None) -> None:
        super().__init__(preset=preset, config=config, weights=weights)
