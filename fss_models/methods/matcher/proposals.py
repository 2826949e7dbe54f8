"""SAM's masks as proposals: enlarged, filtered by SAM's own estimates, and thinned out by their boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """n masks of one photo: masks [n, R, R] bool, ious [n] predicted, stabilities [n] (nan for an empty mask)."""

    masks: Tensor
    ious: Tensor
    stabilities: Tensor

    def take(self, rows: Tensor) -> Proposals:
        """The masks `rows`, indices or a bool mask."""
        return Proposals(masks=self.masks[rows], ious=self.ious[rows], stabilities=self.stabilities[rows])

    @staticmethod
    def join(parts: list[Proposals]) -> Proposals:
        """All masks of one or more parts, in order."""
        return Proposals(masks=torch.cat([p.masks for p in parts]), ious=torch.cat([p.ious for p in parts]),
                         stabilities=torch.cat([p.stabilities for p in parts]))


def make_proposals(low: Tensor, ious: Tensor, *, sam_side: int, side: int) -> Proposals:
    """Proposals of logits [n, q, q]: enlarged bilinearly to SAM's side and from there to `side` pixels."""
    full = low[:, None]
    for size in (sam_side, side):
        full = F.interpolate(full, size=(size, size), mode="bilinear", align_corners=False)
    full = full[:, 0]
    sure, likely = ((full > limit).flatten(1).sum(dim=1) for limit in (1.0, -1.0))
    return Proposals(masks=full > 0, ious=ious, stabilities=sure / likely)


def grid_points(per_side: int, side: int) -> Tensor:
    """Points [per_side ** 2, 2] (x, y) at the middles of equal squares of a photo of `side` pixels, row by row."""
    line = (torch.arange(per_side) + 0.5) / per_side * side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=2).flatten(0, 1)


def pack_masks(masks: Tensor) -> Tensor:
    """Masks [n, R, R] bool as bits, [n, R, ceil(R / 8)] uint8."""
    packed = np.packbits(masks.cpu().numpy(), axis=-1)
    return torch.from_numpy(packed).to(masks.device)


def unpack_masks(packed: Tensor, side: int) -> Tensor:
    """Masks [n, R, R] bool of bits, R = `side`."""
    bits = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> bits) & 1).bool().flatten(-2)[..., :side]


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes [n, 4] float (x0, y0, x1, y1) from first to last pixel of masks [n, R, R]; zeros for an empty mask."""
    corners = []
    for line in (masks.any(dim=1), masks.any(dim=2)):
        last = line.shape[1] - 1 - line.flip(1).to(torch.uint8).argmax(dim=1)
        corners += [line.to(torch.uint8).argmax(dim=1), last]
    x0, x1, y0, y1 = corners
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * masks.flatten(1).any(dim=1)[:, None]


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Rows [m] of the boxes [n, 4] that stay, best score first: none overlaps a better one by an IoU above `threshold`.

    Boxes without area overlap nothing (0 / 0 is above no threshold).
    """
    order = scores.argsort(descending=True, stable=True)
    if threshold >= 1:
        return order
    sorted_boxes = boxes[order]
    area = (sorted_boxes[:, 2] - sorted_boxes[:, 0]) * (sorted_boxes[:, 3] - sorted_boxes[:, 1])
    first = torch.maximum(sorted_boxes[:, None, :2], sorted_boxes[None, :, :2])
    last = torch.minimum(sorted_boxes[:, None, 2:], sorted_boxes[None, :, 2:])
    common = (last - first).clamp(min=0).prod(dim=2)
    over = (common / (area[:, None] + area[None] - common) > threshold).cpu().numpy()
    stays = np.ones(len(over), dtype=bool)
    for row in range(len(over)):
        if stays[row]:
            stays[row + 1 :] &= ~over[row, row + 1 :]
    return order[torch.from_numpy(stays).to(order.device)]
