"""The losses that few-shot segmentation is trained with. Masked pixels (void, crowd) enter none of them.

Shapes: logits [B, J, H, W], targets [B, J, H, W] in {0, 1}, valid [B, J, H, W] bool.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def focal(logits: Tensor, targets: Tensor, valid: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5), mean over a clip's valid pixels, mean over clips."""
    cross = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    hit = p * targets + (1 - p) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return _clip_mean(weight * cross * (1 - hit) ** gamma, valid)


def cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy, mean over a clip's valid pixels, mean over clips."""
    return _clip_mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), valid)


def dice(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """1 - (2 sum pg + 1) / (sum p + sum g + 1), pooled over the frames of a clip, mean over clips."""
    p, g = logits.sigmoid() * valid, targets * valid
    both, either = (p * g).flatten(1).sum(1), (p + g).flatten(1).sum(1)
    return (1 - (2 * both + 1) / (either + 1)).mean()


def mask_iou(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """IoU of each pair of thresholded masks: [..., H, W] -> [...]. It has no gradient; two empty masks give 1."""
    with torch.no_grad():
        p, g = (logits > 0) & valid, (targets > 0.5) & valid
        union = (p | g).flatten(-2).sum(-1)
        return torch.where(union > 0, (p & g).flatten(-2).sum(-1) / union.clamp(min=1), torch.ones_like(union) * 1.0)


def _clip_mean(values: Tensor, valid: Tensor) -> Tensor:
    kept = (values * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    return kept.mean()
