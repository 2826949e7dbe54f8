"""Configuration of SANSA: one switch for each place where the paper and the released code differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fss_models.adapters.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class SansaConfig:
    """Settings of SANSA. The defaults are the released code's, since its weights and figures were made with them.

    What is trained (paper, tables 5 and 6):

    tuning     choice in `adapters.tuning`; adaptformer is SANSA
    stages     trunk stages with adapters, 0-based (the paper's best: the last two)
    factor     bottleneck = floor(factor * a block's input width); generalist models use 0.8
    rank       rank of LoRA; 96 has about as many parameters as factor 0.3 (the paper gives none)
    rest       whether neck, memory and decoder are trained too; auto: only where they hold random values, since
               those cannot stay frozen

    Losses:

    mask_loss  focal (released) or bce (paper), beside dice
    supervise  targets: only targets enter the loss; all: references do too, since their logits are predictions;
               auto (released): all if a reference is marked by anything else than a mask, otherwise all but the first
               frame (only targets if a clip lacks its references' masks)

    References:

    references      first_conditioning (released): their order matters, and of more than seven the middle ones are
                    dropped; all_conditioning (paper): their order does not matter
    memory_mask     resampled (released): a mask prompt is softened before it enters memory; exact: as SAM 2 does
    memory_dropout  on (released): the frozen memory attention drops activations while adapters are trained; off
    data_side       0, or a square side to which images and masks are resized first (released: 640; 518 for some sets)
    mask_threshold  a mask resized to `data_side` is cut above 0 (released: it grows by a pixel) or 0.5
    """

    tuning: Tuning = "adaptformer"
    stages: tuple[int, ...] = (2, 3)
    factor: float = 0.3
    rank: int = 96
    rest: Literal["auto", "frozen", "trained"] = "auto"
    mask_loss: Literal["focal", "bce"] = "focal"
    supervise: Literal["auto", "targets", "all"] = "auto"
    references: Literal["first_conditioning", "all_conditioning"] = "first_conditioning"
    memory_mask: Literal["resampled", "exact"] = "resampled"
    memory_dropout: bool = True
    data_side: int = 0
    mask_threshold: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))  # lists come from YAML and JSON
