"""Prompt tokens of boxes and points: the parts of SAM 3's geometry encoder that transformers lacks or compiles.

The layers and projections are those of transformers' `Sam3GeometryEncoder`. RoI-align is our own, since torchvision's
is missing beside a torch of another build, and its replacement there runs torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointProjections(nn.Module):
    """The three projections of a point, which Meta's checkpoint has and transformers has not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.points_direct_project = nn.Linear(2, width)
        self.points_pool_project = nn.Linear(width, width)
        self.points_pos_enc_project = nn.Linear(width, width)


def roi_align(maps: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Means of bilinear samples in a grid of `size` x `size` cells (He et al., Mask R-CNN, 2017, section 3).

    maps [N, C, h, w]; boxes [N, n, 4] x0 y0 x1 y1 in cells of the map, not shifted by half a cell; a side below one
    cell counts as one; ceil(side / size) samples a cell and axis. Returns [N, n, C, size, size]. A mean over a grid of
    bilinear samples is separable, so each axis is one matrix.
    """
    extent = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)
    across = _axis_weights(boxes[..., 0], extent[..., 0], size, maps.shape[3])
    down = _axis_weights(boxes[..., 1], extent[..., 1], size, maps.shape[2])
    return torch.einsum("nbyh,nchw,nbxw->nbcyx", down, maps, across)


def _axis_weights(start: Tensor, extent: Tensor, size: int, cells: int) -> Tensor:
    """[N, n, size, cells]: the weight of every cell of the map in every cell of the grid, along one axis."""
    step = extent / size
    counts = step.ceil()
    sample = torch.arange(int(counts.max()) if counts.numel() else 0, device=start.device)
    offset = torch.arange(size, device=start.device)[:, None] + (sample + 0.5) / counts[..., None, None]
    at = start[..., None, None] + offset * step[..., None, None]  # [N, n, size, samples]
    counted = (sample < counts[..., None, None]) & (at >= -1) & (at <= cells)
    low = at.clamp(0, cells - 1).floor().long()
    part = (at.clamp(0, cells - 1) - low).to(start)
    weight = counted / counts[..., None, None]
    found = torch.zeros(*at.shape[:3], cells, dtype=start.dtype, device=start.device)
    found.scatter_add_(-1, low, (1 - part) * weight)
    return found.scatter_add_(-1, (low + 1).clamp(max=cells - 1), part * weight)


def embed_boxes(encoder: Any, maps: Tensor, boxes: Tensor) -> Tensor:
    """Embeddings [N, n, C] of positive boxes [N, n, 4] (cx cy w h, shares) on the layer-normed `maps` [N, C, g, g]."""
    g = maps.shape[-1]
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)
    pooled = encoder.boxes_pool_project(roi_align(maps, corners * g, encoder.roi_size).flatten(0, 1)).flatten(1)
    x, y, width, height = boxes.flatten(0, 1).unbind(-1)
    place = encoder.boxes_pos_enc_project(encoder._encode_box_coordinates(x, y, width, height))
    return encoder.boxes_direct_project(boxes) + (pooled + place).unflatten(0, boxes.shape[:2])


def embed_points(encoder: Any, projections: PointProjections, maps: Tensor, points: Tensor) -> Tensor:
    """Embeddings [N, n, C] of points [N, n, 2] (x y, shares) on the layer-normed `maps` [N, C, g, g]."""
    sampled = F.grid_sample(maps, points[:, :, None] * 2 - 1, align_corners=False)[..., 0].transpose(1, 2)
    x, y = encoder.position_encoding.encode_1d_positions(*points.flatten(0, 1).unbind(-1))
    place = torch.cat([x, y], dim=1).unflatten(0, points.shape[:2])
    return (projections.points_direct_project(points) + projections.points_pool_project(sampled)
            + projections.points_pos_enc_project(place))


def prompt_tokens(encoder: Any, embedded: Tensor, positive: Tensor, valid: Tensor, maps: Tensor,
                  places: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [N, n + 1, C] and their validity [N, n + 1] of n embedded prompts on N pictures; CLS comes last.

    positive, valid [N, n] bool; `maps` and `places`: the pictures' coarsest map and its position code [N, C, g, g]
    """
    signed = embedded + encoder.label_embed(positive.long())
    tokens = torch.cat([signed, encoder.cls_embed.weight[None].expand(len(maps), -1, -1)], dim=1)
    present = F.pad(valid, (0, 1), value=True)
    tokens = encoder.prompt_layer_norm(encoder.final_proj(tokens))
    picture, place = (m.flatten(2).transpose(1, 2) for m in (maps, places))
    for layer in encoder.layers:
        tokens = layer(prompt_feats=tokens, vision_feats=picture, vision_pos_encoding=place,
                       prompt_mask=present[:, None, None])
    return encoder.output_layer_norm(tokens), present


def normed(encoder: Any, maps: Tensor) -> Tensor:
    """The maps [N, C, g, g] with the layer norm that pooling sees."""
    found: Tensor = encoder.vision_layer_norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return found
