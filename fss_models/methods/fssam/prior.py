"""Pseudo Prompt Generator: soft query masks from frozen features, without a parameter (specification 3).

P pairs of a query and a support set with K shots; D channels of the frozen features on an h x w grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.methods.fssam.ops import cosine, pool, resize, stretch_map

TEMPERATURE = 10.0  # of the logits, as of method `prior`


@dataclass(frozen=True, kw_only=True)
class ShotPriors:
    """What each shot says of the query, all [P, K, R, R] in [0, 1].

    foreground  similarity to the object: complete, noisy
    background  similarity to what surrounds it
    difference  the first minus the second where positive, stretched: clean, incomplete
    """

    foreground: Tensor
    background: Tensor
    difference: Tensor

    def mean(self) -> tuple[Tensor, Tensor]:
        """The two prior masks [P, R, R] over all shots: P_fg and P_ae."""
        return self.foreground.mean(dim=1), self.difference.mean(dim=1)


@torch.no_grad()
def trunk_features(trunk: list[Tensor]) -> Tensor:
    """A SAM 2 trunk's four maps as prior features: unit vectors at strides 16 and 32, side by side, at stride 16."""
    fine, coarse = trunk[2:4]
    coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([F.normalize(fine, dim=1), F.normalize(coarse, dim=1)], dim=1)


@torch.no_grad()
def prior_prototypes(features: Tensor, masks: Tensor) -> Tensor:
    """Support features [E, D, h, w], masks [E, R, R] in {0, 1} -> foreground and background means [E, 2, D]."""
    small = resize(masks, features.shape[-1])
    return torch.stack([pool(features, small), pool(features, 1 - small)], dim=1)


@torch.no_grad()
def prior_masks(features: Tensor, prototypes: Tensor, side: int) -> ShotPriors:
    """Query features [P, D, h, w], prototypes [P, K, 2, D] -> priors at `side`."""
    similar = resize(stretch_map(cosine(prototypes, features[:, None, None])), side)  # [P, K, 2, R, R]
    foreground, background = similar.unbind(dim=2)
    difference = stretch_map((foreground - background).clamp(min=0))
    return ShotPriors(foreground=foreground, background=background, difference=difference)


@torch.no_grad()
def prior_logits(features: Tensor, prototypes: Tensor) -> Tensor:
    """Query features [P, D, h, w], prototypes [P, K, 2, D], zeros where there is no shot -> [P, h, w].

    Above 0 where a pixel is more like the object than like what surrounds it. Not the paper's: the prior masks are
    stretched query by query and lose where that border is, which several shots tell better than one.
    """
    near = cosine(prototypes.sum(dim=1), features[:, None])  # [P, 2, h, w]
    return (near[:, 0] - near[:, 1]) * TEMPERATURE
