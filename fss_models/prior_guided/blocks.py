"""The small blocks of PFENet, BAM, HDMNet and CyCTR. Tensor names inside a block are the official codes'.

Letters: D width, C channels, G grid side.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.augmentation import VOID

REDUCTION_DROPOUT = 0.5  # of whole channels
HEAD_DROPOUT = 0.1


def reduction(channels: int, width: int, dropout: float = REDUCTION_DROPOUT) -> nn.Sequential:
    """Fused features [N, C, G, G] -> [N, D, G, G] (`down_query`, `down_supp`)."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.ReLU(), nn.Dropout2d(dropout))


def merge(channels: int, width: int) -> nn.Sequential:
    """1x1 convolution and ReLU, [N, C, G, G] -> [N, D, G, G]."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.ReLU())


class Refinement(nn.Sequential):
    """x + two 3x3 convolutions, each followed by a ReLU, [N, D, G, G] -> [N, D, G, G]."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.ReLU(),
                         nn.Conv2d(width, width, 3, padding=1, bias=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolutions' result to x."""
        refined: Tensor = super().forward(x)
        return x + refined


def head(width: int, classes: int = 2, dropout: float = HEAD_DROPOUT) -> nn.Sequential:
    """Logits [N, classes, G, G] from [N, D, G, G]."""
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.ReLU(), nn.Dropout2d(dropout),
                         nn.Conv2d(width, classes, 1))


def enliven(module: nn.Module) -> None:
    """Give convolutions He's initial values (2015): with torch's, outputs of a deep decoder hardly vary at first.

    PFENet at nano reached a loss in 50 steps for which it needed 150 from torch's.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)


def pixel_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of [N, classes, R, R] with labels [N, R, R], mean over the batch's pixels that are not 255.

    0 where all are.
    """
    counted = (label != VOID).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), label, ignore_index=VOID, reduction="sum") / counted


def labels(masks: Tensor, void: Tensor) -> Tensor:
    """Masks [B, n, R, R] in {0, 1} and void pixels [B, n, R, R] bool -> labels [B * n, R, R] int64, 255 where void."""
    return masks.long().masked_fill(void, VOID).flatten(0, 1)
