"""Prior masks, masked means and resizing as PFENet's code has them; FCP, VRP-SAM, BAM and CyCTR took them over.

Letters: E rows (a query with one shot), D channels, G grid side, L = G * G cells, C channels of layer4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

AREA_EPSILON = 5e-4  # added to the number of cells a masked mean divides by
COSINE_EPSILON = 1e-7
SPAN_EPSILON = 1e-7  # added to the span that min_max divides by


def cells(maps: Tensor) -> Tensor:
    """Flatten maps [E, D, G, G] to the sequence [E, L, D] that attention reads."""
    return maps.flatten(2).transpose(1, 2)


def masked_mean(maps: Tensor, mask: Tensor, epsilon: float = AREA_EPSILON) -> Tensor:
    """Prototype [E, C] of maps [E, C, G, G] under mask [E, 1, G, G]; zero for an empty mask."""
    return (maps * mask).flatten(2).sum(dim=2) / (mask.flatten(2).sum(dim=2) + epsilon)


def resize_aligned(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [E, C, h, w] to [E, C, *size], bilinear with aligned corners; nothing changes if the sizes agree."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def object_first(top: Tensor) -> tuple[Tensor, Tensor]:
    """Order the cells of masked support features [E, C, h, w] as [E, h * w, C], zeros last, and count the others [E].

    The maximum in `prior` does not depend on the order, and can then leave out the zeros at the end.
    """
    flat = cells(top)
    zero = (flat == 0).all(dim=2)
    order = zero.to(torch.uint8).argsort(dim=1, stable=True)
    return flat.gather(1, order[..., None].expand_as(flat)), (~zero).sum(dim=1)


def prior(support: Tensor, query: Tensor) -> Tensor:
    """Prior mask (PFENet; FCP's conventional pseudo mask, eq. 5): highest cosine of a query cell to a support cell.

    support [E, l, C] masked cells, query [E, C, h, w] -> [E, 1, h, w]. Background support cells are zeros and give
    cosine 0 (one of them stands for all). The mask is not min-max normalised, unlike PFENet's and BAM's.
    """
    flat = query.flatten(2)
    lengths = support.norm(dim=2)[:, :, None] * flat.norm(dim=1)[:, None]
    cosine = (support @ flat) / (lengths + COSINE_EPSILON)
    return cosine.amax(dim=1).unflatten(1, query.shape[-2:])[:, None]


def min_max(maps: Tensor) -> Tensor:
    """Each map [E, 1, h, w] shifted and scaled to [0, 1]."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low + SPAN_EPSILON)
