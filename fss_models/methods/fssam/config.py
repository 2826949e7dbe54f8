"""Configuration of FSSAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fss_models.errors import FssError


@dataclass(frozen=True, kw_only=True)
class FssamConfig:
    """Settings of FSSAM. The defaults are the released code's, except `k_shot`, whose released form is a mistake.

    side           input side in pixels; 0: 512 as published, at nano and debug the preset's own
    prior          features that prior masks are computed from: DINOv2 ViT-B/14 (published) or ViT-L/14, or the SAM 2
                   trunk's own frozen features; auto: the trunk at nano and debug, else dinov2_base
    prior_weights  local file of DINOv2 weights in the hub's format; empty: random values
    ppg            pseudo prompt generator; without it the query has no memory of its own, and `num_refine` must be 0
                   and `scma` false
    num_refine     rounds of iterative memory refinement (paper and code: 3)
    ver_refine     v2 stretches the gate to [0, 1] in every round
    scma           support-calibrated memory attention; false is SAM 2's own attention
    k_shot         how the calibration treats several shots. repaired: all shots are supports, averaged token by
                   token; released: only the first is a support, and the second is taken for the query memory
    train          published: the parameters of the official optimiser (11.5 M); reached: those of them that ever get
                   a gradient; all_but_trunk: everything outside the trunk, with an IoU loss beside dice; auto:
                   published with a SAM 2 checkpoint, else all_but_trunk, since random parts cannot stay frozen
    prior_logits   weight at which `prior.prior_logits` are added to the mask's logits (published: 0); needs `ppg`
    void           void pixels count as background in the loss (published) or are ignored
    """

    side: int = 0
    prior: Literal["auto", "dinov2_base", "dinov2_large", "trunk"] = "auto"
    prior_weights: str = ""
    ppg: bool = True
    num_refine: int = 3
    ver_refine: Literal["v1", "v2"] = "v1"
    scma: bool = True
    k_shot: Literal["repaired", "released"] = "repaired"
    train: Literal["auto", "published", "reached", "all_but_trunk"] = "auto"
    prior_logits: float = 0.0
    void: Literal["background", "ignored"] = "background"

    def __post_init__(self) -> None:
        """Raises `FssError` for settings that contradict each other."""
        if self.num_refine < 0:
            raise FssError(f"num_refine is {self.num_refine}", hint="0 switches the refinement off")
        if self.side % 32:
            raise FssError(f"side is {self.side}", hint="SAM 2 needs a multiple of 32")
        if self.prior_logits < 0 or (self.prior_logits and not self.ppg):
            raise FssError(f"prior_logits is {self.prior_logits} and ppg {str(self.ppg).lower()}",
                           hint="a weight above 0 needs the features of ppg: true")
        if not self.ppg and (self.num_refine or self.scma):
            raise FssError("without the pseudo prompt generator there is no query memory to refine or to calibrate",
                           hint="with ppg: false set num_refine: 0 and scma: false")
