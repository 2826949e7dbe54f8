"""From a method's logits, on the host, to the labels of a photo at its size; overlaps are kept or resolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from fss_models.presence import UNCALIBRATED, Presence
from fss_models.run_lengths import (
    STRIP,
    Rle,
    empty_mask,
    enlarge,
    enlarge_columns,
    enlarge_rows,
    is_large,
    mask_area,
)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object, in pixels of the upright photo: COCO's counts, bbox (x, y, width, height), area, score in [0, 1].

    Instances that a person drew have no score.
    """

    counts: str
    bbox: tuple[float, float, float, float]
    area: int
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Label(Presence):
    """One mask, in pixels of the upright photo: COCO's counts, bbox (x, y, width, height), area, score in [0, 1].

    instances  one mask for each object, by falling score; None where they were not asked for
    """

    height: int
    width: int
    counts: str
    bbox: tuple[float, float, float, float]
    area: int
    score: float
    instances: tuple[Instance, ...] | None = None

    @property
    def rle(self) -> Rle:
        """COCO's run lengths, as pycocotools takes them."""
        return {"size": [self.height, self.width], "counts": self.counts.encode()}


@dataclass(frozen=True, kw_only=True)
class PhotoFailure:
    """The reason why a photo has no label, and the stage (read, send or decode) at which it failed."""

    reason: str
    stage: str = "decode"


Labels = tuple[Label, ...]  # the labels of one photo, one for each class


def threshold_logit(threshold: float) -> float:
    """The logit of the probability `threshold`."""
    return math.log(threshold / (1 - threshold))


def semantic_map(logits: Sequence[Tensor], scores: Sequence[float], size: tuple[int, ...], level: float, *,
                 corners: bool) -> np.ndarray:
    """C classes' logits [h, w] of one photo -> [H, W] int16 in column order: class + 1, 0 for none.

    A pixel belongs to the class with the highest probability times score among those whose logit is above `level`.
    A class with a negative score gets no pixel. Of a large photo a strip of each enlarged map is in memory at a time.
    """
    height, width = size[0], size[1]
    taking = {n: one.float() for n, (one, score) in enumerate(zip(logits, scores, strict=True)) if score >= 0}
    if not is_large((height, width)):
        maps = {n: enlarge(one, (height, width), corners) for n, one in taking.items()}
        return _owners(maps, scores, (width, height), level)
    columns = {n: enlarge_columns(one, height, corners) for n, one in taking.items()}
    found = np.zeros((width, height), dtype=np.int16)
    least = level - 1e-6 * abs(level)  # rounding may lift a value of the other step over the level
    for first in range(0, height, STRIP):
        strips = {n: c[:, first:first + STRIP] for n, c in columns.items()}
        maps = {n: enlarge_rows(c, width, corners) for n, c in strips.items() if bool((c > least).any())}
        if maps:
            found[:, first:first + STRIP] = _owners(maps, scores, next(iter(maps.values())).shape, level).T
    return found.T


def _owners(maps: dict[int, Tensor], scores: Sequence[float], size: Sequence[int], level: float) -> np.ndarray:
    """[r, W] int16: the owner of each pixel of enlarged maps [W, r]; `size` is theirs."""
    best, owner = torch.full(tuple(size), -1.0), torch.zeros(tuple(size), dtype=torch.int16)
    for number, turned in maps.items():
        weight = turned.sigmoid() * scores[number]
        wins = (turned > level) & (weight > best)
        best, owner = torch.where(wins, weight, best), torch.where(wins, number + 1, owner)
    return owner.numpy().T


def mean_iou(results: Sequence[Labels | PhotoFailure], others: Sequence[Labels | PhotoFailure]) -> float | None:
    """Mean IoU of two results' masks for the same photos and classes, without pairs of empty masks.

    None where all masks are empty, or no photo was readable.
    """
    pairs = [(a, b) for one, other in zip(results, others, strict=True)
             if not isinstance(one, PhotoFailure) and not isinstance(other, PhotoFailure)
             for a, b in zip(one, other, strict=True) if a.area or b.area]
    ious = [float(coco.iou([a.rle], [b.rle], [0])[0, 0]) for a, b in pairs]
    return float(np.mean(ious)) if ious else None


def make_label(rle: Rle, score: float, presence: Presence = UNCALIBRATED) -> Label:
    """The label of a mask. With the status `empty` the label has no pixels."""
    height, width = rle["size"]
    if presence.status == "empty":
        rle = empty_mask((height, width))
    elif presence.status and not mask_area(rle):
        presence = replace(presence, status="empty")
    x, y, w, h = (float(v) for v in coco.toBbox(rle))
    return Label(height=height, width=width, counts=rle["counts"].decode(), bbox=(x, y, w, h),
                 area=mask_area(rle), score=score,
                 presence=presence.presence, quality=presence.quality, status=presence.status)
