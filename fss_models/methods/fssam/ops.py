"""The four operations that FSSAM is made of. Leading dimensions are free."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-7
_AREA = 0.0005  # is added to a mask's area in cells


def pool(features: Tensor, mask: Tensor) -> Tensor:
    """Masked average: features [..., C, h, w], mask [..., h, w] -> [..., C]; zeros for an empty mask."""
    total = (features * mask[..., None, :, :]).sum(dim=(-2, -1))
    return total / (mask.sum(dim=(-2, -1)) + _AREA)[..., None]


def cosine(prototype: Tensor, features: Tensor) -> Tensor:
    """Cosine between prototype [..., C] and every cell of features [..., C, h, w] -> [..., h, w]."""
    dot = torch.einsum("...c,...chw->...hw", prototype, features)
    return dot / (prototype.norm(dim=-1)[..., None, None] * features.norm(dim=-3) + _EPS)


def stretch(maps: Tensor) -> Tensor:
    """Min-max over the last dimension. Gradients reach one smallest and one largest element."""
    low, high = maps.min(dim=-1, keepdim=True).values, maps.max(dim=-1, keepdim=True).values
    return (maps - low) / (high - low + _EPS)


def stretch_map(maps: Tensor) -> Tensor:
    """Min-max over [..., h, w]."""
    return stretch(maps.flatten(-2)).view_as(maps)


def resize(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize [..., h, w] to [..., *size], bilinear with aligned corners and no antialias: shrinking samples points."""
    rows, columns = (size, size) if isinstance(size, int) else size
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = F.interpolate(flat, size=(rows, columns), mode="bilinear", align_corners=True)
    return out.view(*maps.shape[:-2], rows, columns)


def squared_dice(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """1 - 2 sum(pt) / (sum p^2 + sum t^2), mean over maps. All three are [E, H, W]; valid is 0 or 1."""
    p, t = logits.sigmoid() * valid, targets * valid
    both, squares = (p * t).flatten(1).sum(1), (p * p + t * t).flatten(1).sum(1)
    return (1 - 2 * both / squares.clamp(min=1e-8)).mean()
