"""Configuration of FCP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fss_models.prototype_prompts.levels import Backbone


@dataclass(frozen=True, kw_only=True)
class FcpConfig:
    """Settings of FCP. The defaults are the released code's, except `kshot_support_sam` and `empty_mask`.

    backbone           source of class-consistent features; auto: resnet50, at debug and nano SAM 2's trunk
    backbone_weights   its local ImageNet file (or an official checkpoint that holds it)
    steps              T, attention steps on either side (figure 5)
    support_tokens, query_tokens   prototypes a side
    features           both | res | sam: features that the steps read (table 2, columns Res and SAM)
    matching           prototype-prototype matching (table 2, PPM); without it the support prototypes attend the query
                       image themselves, as VRP-SAM's do
    pseudo_mask        attention: each step's mask guides the next (released) | attention_last: it guides only the last
                       step's value (paper, eq. 6 and 8) | conventional: never (tables 2 and 3 without APM)
    kshot_support_sam  each: every shot uses its own SAM features | first: all use the first shot's (released)
    *_dropout          dropout of reduced features, attention steps and matching
    *_weight           weights of prompt, guide and orthogonal loss (table 4: 0 leaves a loss out)
    guide_mode         released: sum over t of obj(mask_t) / (T - t), masks taken as logits | paper: mean over t (eq. 9)
    ortho_mode         released: ReLU, mean over N x N, all T steps | paper: off-diagonal sum, t < T, mean (eq. 14)
    dice_mode          released | paper: squares below, no smoothing (eq. 19)
    void               background (released) | ignored: how losses treat void pixels
    empty_mask         fill: an object that the grid misses marks the cells it touches | error
    train              encoder | all_but_trunk (SAM 2's neck and decoder too) | auto: all_but_trunk only where SAM 2 has
                       no checkpoint, since random parts cannot stay frozen
    """

    backbone: Backbone = "auto"
    backbone_weights: str = ""
    steps: int = 3
    support_tokens: int = 50
    query_tokens: int = 50
    features: Literal["both", "res", "sam"] = "both"
    matching: bool = True
    pseudo_mask: Literal["attention", "attention_last", "conventional"] = "attention"
    kshot_support_sam: Literal["each", "first"] = "each"
    feature_dropout: float = 0.5
    attention_dropout: float = 0.5
    match_dropout: float = 0.2
    prompt_weight: float = 1.0
    guide_weight: float = 0.5
    ortho_weight: float = 0.05
    guide_mode: Literal["released", "paper"] = "released"
    ortho_mode: Literal["released", "paper"] = "released"
    dice_mode: Literal["released", "paper"] = "released"
    void: Literal["background", "ignored"] = "background"
    empty_mask: Literal["fill", "error"] = "fill"
    train: Literal["auto", "encoder", "all_but_trunk"] = "auto"
