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
    cells = torch.cat([_cells(model, one[None]) for one in (*supports, query[0])])
    grid = int(cells.shape[2] ** 0.5)
    similarity = torch.cat([one.t() @ cells[-1] for one in cells[:-1]]).numpy()
    marked = torch.cat([F.max_pool2d(m[None, None], side // grid).flatten() > 0 for m in masks]).nonzero()[:, 0].numpy()
    found = prepared.match_patches(similarity, marked, crowded=use.crowded)
    points = prepared.patch_points(found.target, grid, side // grid)
    proposals = _proposals(model, prepared, points, query)
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


def _cells(model: Any, pixels: Tensor) -> Tensor:
    looked = {} if hasattr(model.cells, "dino") else model.sam.look(model._enlarged(pixels))
    return F.normalize(model.cells(pixels, looked), dim=1).flatten(2)


def _proposals(model: Any, prepared: Any, points: Tensor, query: Tensor) -> Any:
    """The grid's proposals, then those of every prompt in the order of the draws."""
    maps = model.sam.embed(model.sam.look(model._enlarged(query)))
    scale = model.sam.side / model.side
    box = torch.cat([points.amin(dim=0), points.amax(dim=0)]).float() * scale
    parts = [model._dense(maps)] if model.use.dense else []
    for sample in prepared.draw_samples(prepared.base_points(points, model.use), model.use):
        for some in sample.split(model.use.decoder_batch):
            rows = torch.zeros(len(some), dtype=torch.int64)
            parts.append(model._some(maps, rows, some.float() * scale, box.expand(len(some), -1))[0])
    return prepared.Proposals.join(parts)
