"""Pseudo Prompt Generator: soft query masks from frozen features, without trained parameters.

Letters: P pairs of a query and a support set with K shots; D channels of the frozen features on an h x w grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.methods.fssam.ops import cosine, pool, resize, stretch_map

TEMPERATURE = 10.0  # temperature of the logits, the same as method `prior` has


@dataclass(frozen=True, kw_only=True)
class ShotPriors:
    """Prior masks of the query from each shot, all [P, K, R, R] in [0, 1].

    foreground  similarity to the object; the mask is complete, but noisy
    background  similarity to the object's surroundings
    difference  foreground minus background where positive, stretched; the mask is clean, but incomplete
    """

    foreground: Tensor
    background: Tensor
    difference: Tensor

    def mean(self) -> tuple[Tensor, Tensor]:
        """The two prior masks [P, R, R] over all shots: P_fg and P_ae."""
        return self.foreground.mean(dim=1), self.difference.mean(dim=1)


@torch.no_grad()
def trunk_features(trunk: list[Tensor]) -> Tensor:
    """Prior features from a SAM 2 trunk's four maps: unit vectors of strides 16 and 32, joined at stride 16."""
    fine, coarse = trunk[2:4]
    coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([F.normalize(fine, dim=1), F.normalize(coarse, dim=1)], dim=1)


@torch.no_grad()
def prior_prototypes(features: Tensor, masks: Tensor) -> Tensor:
    """Support features [E, D, h, w], masks [E, R, R] in {0, 1} -> foreground and background means [E, 2, D]."""
    small = resize(masks, features.shape[-1])
    return torch.stack([pool(features, small), pool(features, 1 - small)], dim=1)


@torch.no_grad()
def add_background(prototypes: Tensor, area: Tensor, features: Tensor, marked: Tensor) -> Tensor:
    """Prototypes [S, K, 2, D], of whose background means what is `marked` [S, K, h, w] in `features` [S, K, D, h, w]
    becomes a part in every shot of its set. `area` [S, K] is the number of cells of these means.
    """
    more = marked.sum(dim=(1, 2, 3))[:, None, None]
    total = torch.einsum("skdhw,skhw->sd", features, marked)[:, None]
    joined = (prototypes[:, :, 1] * area[..., None] + total) / (area[..., None] + more).clamp(min=1)
    shot = prototypes.abs().sum(dim=(2, 3), keepdim=True)[..., 0] > 0
    background = torch.where(shot & (more > 0), joined, prototypes[:, :, 1])
    return torch.stack([prototypes[:, :, 0], background], dim=2)


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

    They are positive where a pixel resembles the object more than its surroundings. The paper does not have them: its
    prior masks are stretched for each query, which loses this border; several shots determine it better than one.
    """
    near = cosine(prototypes.sum(dim=1), features[:, None])  # [P, 2, h, w]
    return (near[:, 0] - near[:, 1]) * TEMPERATURE
