"""Configuration of VRP-SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fss_models.prototype_prompts.levels import Backbone


@dataclass(frozen=True, kw_only=True)
class VrpSamConfig:
    """Settings of VRP-SAM. The defaults are the released code's, except `prompt` and `empty_mask`.

    backbone          source of class-consistent features; auto: resnet50, at debug and nano SAM 2's trunk
    backbone_weights  its local ImageNet file (or an official checkpoint that holds it)
    tokens            N, the number of learned queries
    prompt            mask | box | point | scribble: a reference's mask is turned into this kind first (the released
                      `condition`). Each model is trained for one kind. References marked by boxes, points or
                      scribbles are used unchanged
    prompt_seed       seed of the points and strokes drawn in evaluation; training uses torch's generator
    feature_dropout   dropout of reduced features
    void              background (released) | ignored: how losses treat void pixels
    empty_mask        fill: a mark that the grid misses covers the cells it touches | keep: none (released)
    train             encoder | all_but_trunk (SAM 2's neck and decoder too) | auto: all_but_trunk only where SAM 2 has
                      no checkpoint, since random parts cannot stay frozen
    """

    backbone: Backbone = "auto"
    backbone_weights: str = ""
    tokens: int = 50
    prompt: Literal["mask", "box", "point", "scribble"] = "mask"
    prompt_seed: int = 321
    feature_dropout: float = 0.5
    void: Literal["background", "ignored"] = "background"
    empty_mask: Literal["fill", "keep"] = "fill"
    train: Literal["auto", "encoder", "all_but_trunk"] = "auto"
