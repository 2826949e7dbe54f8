"""Conversion of every kind of prompt to a mask, the only kind that FCP and VRP-SAM work with.

A box becomes a filled rectangle, points and scribbles become the pixels that they touch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import PromptBatch, PromptKind
from fss_models.errors import FssError

BRUSH_RADIUS = 3 / 512  # radius of scribbles given as points, as a share of R; the released code draws 3 to 9 px


def mark_masks(prompts: PromptBatch) -> Tensor:
    """Masks of all references, [S, K, R, R] float in {0, 1}, zeros where padded.

    Raises `FssError` for points beside the object: neither method can use them.
    """
    side = prompts.masks.shape[-1]
    kind = prompts.kind.to(prompts.masks.device)
    if bool(((prompts.labels == 0) & (prompts.kind[..., None] != PromptKind.PAD)).any()):
        raise FssError("this method reads points on the object only", hint="leave out the points marked as background")
    touched = _touched(prompts.points, prompts.labels == 1, side).to(prompts.masks)
    radius = round(BRUSH_RADIUS * side)
    drawn = F.max_pool2d(touched, 2 * radius + 1, stride=1, padding=radius)
    boxes = _boxes(prompts.points, side).to(prompts.masks)
    masks = torch.where(_is(kind, PromptKind.MASK), prompts.masks, torch.zeros_like(prompts.masks))
    for one, value in ((PromptKind.POINTS, touched), (PromptKind.SCRIBBLE, drawn), (PromptKind.BOX, boxes)):
        masks = torch.where(_is(kind, one), value, masks)
    return masks


def grid_masks(masks: Tensor, size: Sequence[int], *, fill: bool) -> Tensor:
    """Shrink masks [E, 1, R, R] to [E, 1, h, w] by torch's `nearest`, which may miss a thin object altogether.

    With `fill`, a mask that would become empty marks every cell it touches instead.
    """
    small = F.interpolate(masks, size=tuple(size), mode="nearest")
    if not fill:
        return small
    empty = (small == 0).flatten(1).all(dim=1)[:, None, None, None]
    return torch.where(empty, F.adaptive_max_pool2d(masks, tuple(size)), small)


def _is(kind: Tensor, one: PromptKind) -> Tensor:
    return (kind == int(one))[..., None, None]


def _touched(points: Tensor, real: Tensor, side: int) -> Tensor:
    """Masks [S, K, R, R] whose pixels under the points [S, K, P, 2] are set; `real` [S, K, P] are the valid points."""
    at = points.floor().long().clamp(0, side - 1)
    flat = torch.zeros(*points.shape[:2], side * side, device=points.device)
    return flat.scatter_reduce(2, at[..., 1] * side + at[..., 0], real.float(), "amax").unflatten(2, (side, side))


def _boxes(points: Tensor, side: int) -> Tensor:
    """Masks of the rectangles between the first two points, including the pixels under both corners."""
    corners = points[:, :, :2] if points.shape[2] > 1 else points.expand(-1, -1, 2, -1)
    low, high = corners.amin(dim=2), corners.amax(dim=2)
    line = torch.arange(side, device=points.device)
    low, high = low[..., None], high[..., None]
    inside = ((line + 1 > low) & (line < high)) | (line == low.floor())  # [S, K, 2 (x, y), R]
    return (inside[:, :, 1, :, None] & inside[:, :, 0, None, :]).float()
