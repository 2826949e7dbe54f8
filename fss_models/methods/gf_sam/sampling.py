"""Masks at the places where GF-SAM reads them, without making them at full size.

The released code enlarges every mask's logits from q to R pixels, cuts them at 0 and shrinks the result to g x g cells,
by nearest neighbour for the graph and bilinearly for the gates. Both read few pixels: here only those are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SampledMasks:
    """E masks, read at the pixels that the cells of a g x g grid need.

    nearest  [E, g, g] bool, the pixel that a nearest-neighbour resize takes
    corners  [E, 2, g, 2, g] bool, the pixels that a bilinear resize takes: above or below, left or right
    share    [2, g] float, the weights of the two pixels of each axis
    """

    nearest: Tensor
    corners: Tensor
    share: Tensor

    def soft(self) -> Tensor:
        """The masks resized bilinearly, [E, N]."""
        return self.resized(self.corners)

    def resized(self, corners: Tensor) -> Tensor:
        """Any masks of the layout of `corners`, resized bilinearly, [E, N]."""
        return torch.einsum("eaibj,ai,bj->eij", corners.to(self.share), self.share, self.share).flatten(1)

    def union(self, group: Tensor, groups: int) -> Tensor:
        """The union of the masks of each group, resized bilinearly: [groups, N] for `group` [E]."""
        flat = self.corners.flatten(1).to(self.share)
        joined = flat.new_zeros(groups, flat.shape[1]).index_add_(0, group, flat) > 0
        return self.resized(joined.unflatten(1, tuple(self.corners.shape[1:])))


def sample_masks(logits: Tensor, *, side: int, cells: int) -> SampledMasks:
    """Sample logits [E, q, q], as they stand for a mask of `side` pixels, for a grid of `cells` x `cells`."""
    near = F.interpolate(torch.arange(side).float()[None, None], size=cells, mode="nearest")[0, 0].long()
    place = ((torch.arange(cells) + 0.5) * (side / cells) - 0.5).clamp(min=0)
    first = place.long().clamp(max=side - 1)
    second = (first + 1).clamp(max=side - 1)
    second_share = (place - first).to(logits)
    enlarge = F.interpolate(torch.eye(logits.shape[-1])[None], size=side, mode="linear", align_corners=False)[0].t()
    rows = enlarge[torch.cat([near, first, second])].to(logits)  # [3g, q]
    found = rows @ logits @ rows.t() > 0
    corners = found[:, cells:, cells:].unflatten(1, (2, cells)).unflatten(3, (2, cells))
    return SampledMasks(nearest=found[:, :cells, :cells], corners=corners,
                        share=torch.stack([1 - second_share, second_share]))
