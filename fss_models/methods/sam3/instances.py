"""From SAM 3's queries to the objects of a photo, and to the mask of their class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Instances, Prediction
from fss_models.instances import suppress
from fss_models.methods.sam3.layout import CanvasLayout

NOTHING = -10.0  # logit of a photo in which nothing is kept


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """The queries of one pair that are kept, from the best score to the worst.

    queries, scores [M]; logits [M, h, w] in the photo's part of the picture: positive on the object, which may lie
    outside of it
    """

    queries: Tensor
    scores: Tensor
    logits: Tensor

    @property
    def present(self) -> Tensor:
        """[M] bool: whether the object has a pixel in the photo."""
        return (self.logits > 0).flatten(1).any(dim=1)

    @property
    def whole(self) -> Tensor:
        """[h, w]: the largest logit of all kept queries; their union is the class's mask."""
        if not len(self.logits):
            return self.logits.new_full(self.logits.shape[1:], NOTHING)
        return self.logits.amax(dim=0)

    def without_repeats(self, limit: float) -> FoundObjects:
        """The objects that are in the photo, less those that share more than `limit` of the smaller mask with a
        better one.
        """
        rows = self.present.nonzero()[:, 0]
        rows = rows[suppress(self.logits[rows] > 0, limit)]
        return FoundObjects(queries=self.queries[rows], scores=self.scores[rows], logits=self.logits[rows])


def read_objects(scores: Tensor, masks: Tensor, threshold: float, layout: CanvasLayout | None = None,
                 square: bool = False) -> FoundObjects:
    """The queries with `scores` [Q] above `threshold` and their `masks` [Q, m, m] of logits.

    With a `layout` the masks are enlarged to the canvas as logits and cut to the query's cell, and with `square` also
    stretched to the canvas's side. Equal scores are in the order of queries.
    """
    queries = scores.argsort(descending=True, stable=True)
    queries = queries[scores[queries] > threshold]
    logits = masks[queries]
    if layout is not None:
        side, (rows, columns) = layout.side, layout.query.part
        logits = _enlarge(logits, (side, side))[:, rows, columns]
        if square:
            logits = _enlarge(logits, (side, side))
    return FoundObjects(queries=queries, scores=scores[queries], logits=logits)


def as_prediction(found: Sequence[FoundObjects], limit: float) -> Prediction:
    """The masks of classes of P pairs, and their objects without repeats. Masks are unions of all kept queries."""
    listed = [one.without_repeats(limit) for one in found]
    height, width = found[0].logits.shape[1:]
    best = [one.scores[one.present].amax() if bool(one.present.any()) else one.scores.new_zeros(()) for one in found]
    counts = torch.tensor([len(one.scores) for one in listed])
    window = torch.tensor([[0, 0, height, width]], device=found[0].logits.device).expand(len(found), -1)
    instances = Instances(
        pair=torch.arange(len(found)).repeat_interleave(counts).to(window.device), window=window,
        scores=torch.cat([one.scores for one in listed]), logits=torch.cat([one.logits for one in listed]))
    return Prediction(logits=torch.stack([one.whole for one in found]), scores=torch.stack(best), instances=instances)


def _enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(logits):
        return logits.new_zeros(0, *size)
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
