"""Configuration of SANSA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SansaConfig:
    """SANSA's choices; the defaults are the released code's where it and the paper differ.

    stages     trunk stages with adapters, 0-based (the paper's best: the last two)
    factor     bottleneck = floor(factor * a block's input width)
    mask_loss  focal (released) or bce (paper), beside dice
    train      adapters; all_but_trunk (trains neck, memory and decoder too); auto: all_but_trunk only where no
               SAM 2 checkpoint was given, since random parts cannot stay frozen
    """

    stages: tuple[int, ...] = (2, 3)
    factor: float = 0.3
    mask_loss: Literal["focal", "bce"] = "focal"
    train: Literal["auto", "adapters", "all_but_trunk"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))  # lists come from YAML and JSON
