"""Configuration of CyCTR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CyctrConfig:
    """Settings of CyCTR. The defaults are the released code's.

    side                     S, side of the square that photos are resized to, in pixels; 0: 473, at nano 256
    width                    D, channels above the trunk; 0: 256, at nano 64
    layers                   transformer layers
    points                   cells that a query cell samples for its self-alignment, in each head
    object_tokens, background_tokens   largest numbers of support cells that are drawn for each shot
    feature_dropout          dropout of whole channels of reduced features
    head_dropout             dropout of whole channels before logits
    transformer_dropout      dropout of the transformer, of cells it reads, and of the marks of inconsistent cells
    aux_weight               weight of the supports' own loss
    sampling                 random: those numbers of cells (released) | all: every cell
    sampling_flags           official: in a part that is drawn at random, a cell has the flags of the cell whose number
                             in the whole list is its number in the part | correct: it has its own
    sampling_seed            seed of the draw in evaluation (released: none); training uses torch's generator
    transformer_lr           constant learning rate of the transformer, with AdamW; 0: the recipe's rate and optimiser
    transformer_weight_decay weight decay of the transformer, except biases
    lr_factor                the recipe's learning rate times this; `transformer_lr` is not multiplied
    """

    side: int = 0
    width: int = 0
    layers: int = 2
    points: int = 9
    object_tokens: int = 300
    background_tokens: int = 300
    feature_dropout: float = 0.5
    head_dropout: float = 0.1
    transformer_dropout: float = 0.1
    aux_weight: float = 1.0
    sampling: Literal["random", "all"] = "random"
    sampling_flags: Literal["official", "correct"] = "official"
    sampling_seed: int = 321
    transformer_lr: float = 1e-4
    transformer_weight_decay: float = 1e-2
    lr_factor: float = 1.0
