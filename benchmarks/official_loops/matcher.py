"""Matcher as its released code computes one episode: every drawn prompt is decoded, every mask gets its own distance.

The assignments, the draws and the measures are the method's own functions: the released code computes them alike.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.registry import method_class


def prepare(model: Any) -> Any:
    """The module that holds the method's functions."""
    return importlib.import_module(method_class("matcher").__module__)


def segment(model: Any, prepared: Any, supports: Tensor, masks: Tensor, query: Tensor) -> Tensor:
    """The mask of one query."""
    use, side = model.use, model.side
    looked = model.sam.look(model._enlarged(query))
    cells = torch.cat([*(_cells(model, one[None]) for one in supports), _cells(model, query, looked)])
    grid = int(cells.shape[2] ** 0.5)
    similarity = torch.cat([one.t() @ cells[-1] for one in cells[:-1]]).numpy()
    marked = torch.cat([F.max_pool2d(m[None, None], side // grid).flatten() > 0 for m in masks]).nonzero()[:, 0].numpy()
    found = prepared.match_patches(similarity, marked, crowded=use.crowded)
    points = prepared.patch_points(found.target, grid, side // grid)
    proposals = _proposals(model, prepared, points, looked)
    kept = proposals.take(prepared.suppress(prepared.boxes_of(proposals.masks), proposals.ious, use.nms))
    each = [prepared.score_proposals(kept.masks[i : i + 1], points, similarity, marked, use, grid)
            for i in range(len(kept.ious))]
    if not each:
        return torch.zeros(side, side, dtype=torch.bool)
    names = ("emd", "purity", "coverage", "total")
    scores = prepared.ProposalScores(**{n: torch.cat([getattr(one, n) for one in each]) for n in names})
    left = prepared.filter_proposals(scores, use)
    chosen = left[prepared.choose_proposals(scores.total[left], use, len(supports))]
    merged: Tensor = kept.masks[chosen].any(dim=0)
    return merged


def _cells(model: Any, pixels: Tensor, looked: dict[str, Tensor] | None = None) -> Tensor:
    if looked is None:
        looked = {} if hasattr(model.cells, "dino") else model.sam.look(model._enlarged(pixels))
    return F.normalize(model.cells(pixels, looked), dim=1).flatten(2)


def _proposals(model: Any, prepared: Any, points: Tensor, looked: dict[str, Tensor]) -> Any:
    """The grid's proposals, then those of every prompt in the order of the draws."""
    maps = model.sam.embed(looked)
    scale = model.sam.side / model.side
    box = torch.cat([points.amin(dim=0), points.amax(dim=0)]).float() * scale
    use, parts, least = model.use, [], (model.use.iou_filter or -torch.inf, model.use.stability_filter or None)
    if use.dense:
        for some in prepared.grid_points(use.points_per_side, model.sam.side).split(use.decoder_batch):
            low, ious = _decode(model, maps, some[:, None], None, several=False)
            parts.append(_filtered(model, prepared, low, ious, use.dense_iou, use.dense_stability))
    for sample in prepared.draw_samples(prepared.base_points(points, use), use):
        for some in sample.split(use.decoder_batch):
            boxes = box.expand(len(some), -1) if use.use_box else None
            low, ious = _decode(model, maps, some.float() * scale, boxes, several=use.masks_per_prompt == 3)
            parts.append(_filtered(model, prepared, low, ious, *least))
    return prepared.Proposals.join(parts)


def _decode(
    model: Any, maps: dict[str, Tensor], points: Tensor, boxes: Tensor | None, *, several: bool
) -> tuple[Tensor, Tensor]:
    """Masks [n, q, q] and predicted IoU [n] of prompts, by the decoder as it is released."""
    repeated = {k: v.expand(len(points), -1, -1, -1) for k, v in maps.items()}
    low, ious = model.sam.candidates(repeated, model.sam.point_prompts(points, boxes), several=several)
    return low.flatten(0, 1), ious.flatten()


def _filtered(
    model: Any, prepared: Any, low: Tensor, ious: Tensor, least_iou: float, stability: float | None
) -> Any:
    sure = ious > least_iou
    made = prepared.make_proposals(low[sure], ious[sure], sam_side=model.sam.side, side=model.side)
    return made.take(made.stabilities >= stability) if stability is not None else made
