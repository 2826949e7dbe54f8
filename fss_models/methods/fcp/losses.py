"""FCP's losses, both as the released code computes them and as the paper prints them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models import losses

NORM_EPSILON = 1e-12


def object_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """The object loss of E maps: binary cross-entropy with logits + dice. All arguments are [E, 1, H, W]."""
    return losses.cross_entropy(logits, truth, valid) + losses.dice(logits, truth, valid)


def squared_dice(p: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """1 - 2 sum pg / (sum p^2 + sum g^2), mean over E maps: the paper's eq. 19. p [E, 1, H, W] in [0, 1]."""
    p, g = p * valid, truth * valid
    both, either = (p * g).flatten(1).sum(1), (p * p + g * g).flatten(1).sum(1)
    return (1 - 2 * both / either.clamp(min=NORM_EPSILON)).mean()


def guide_loss(masks: Sequence[Tensor], truth: Tensor, valid: Tensor) -> Tensor:
    """Sum over t < T of object_loss(mask_t) / (T - t); masks in [0, 1] are taken for logits (released code).

    masks are those of the T - 1 steps before the last, [E, 1, G, G]; truth and valid have the same shape.
    """
    terms = [object_loss(m, truth, valid) / (len(masks) - t) for t, m in enumerate(masks)]
    return torch.stack(terms).sum() if terms else truth.new_zeros(())


def paper_guide_loss(masks: Sequence[Tensor], truth: Tensor, valid: Tensor) -> Tensor:
    """Mean over t < T of cross-entropy + dice of the masks as probabilities (eq. 9)."""
    terms = []
    for mask in masks:
        p = mask.float().clamp(1e-6, 1 - 1e-6)
        cross = -(truth * p.log() + (1 - truth) * (1 - p).log()) * valid
        kept = cross.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
        terms.append(kept.mean() + squared_dice(mask, truth, valid))
    return torch.stack(terms).mean() if terms else truth.new_zeros(())


def overlap(attention: Tensor) -> Tensor:
    """Cosines between the maps of every two tokens, [E, N, L] -> [E, N, N]."""
    unit = F.normalize(attention, dim=2, eps=NORM_EPSILON)
    return unit @ unit.transpose(1, 2)


def ortho_term(attention: Tensor) -> Tensor:
    """Mean over E and N x N of ReLU(cosines - identity), of one step's maps [E, N, L]."""
    cosines = overlap(attention)
    return (cosines - torch.eye(cosines.shape[-1], device=cosines.device)).relu().mean()


def ortho_loss(support: Sequence[Tensor], query: Sequence[Tensor]) -> Tensor:
    """Sum of `ortho_term` over both sides and all T steps (released code)."""
    return torch.stack([ortho_term(a) for a in (*support, *query)]).sum()


def paper_ortho_loss(support: Sequence[Tensor], query: Sequence[Tensor]) -> Tensor:
    """Sum over i != j of the cosines, over t < T, divided by T - 1, mean over rows (eq. 14)."""
    early = [*support[:-1], *query[:-1]]
    if not early:
        return support[0].new_zeros(())
    sums = [overlap(a).sum(dim=(1, 2)) - overlap(a).diagonal(dim1=1, dim2=2).sum(dim=1) for a in early]
    return torch.stack(sums).mean(dim=1).sum() / (len(support) - 1)
