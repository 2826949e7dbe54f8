"""Instances of a label: run lengths of one mask for each object, at the photo's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco

from fss_models.clip import Instances
from fss_models.instances import SplitRules, split_mask


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object, in pixels of the upright photo: COCO's counts, bbox (x, y, width, height), area, score in [0, 1].

    Instances that a person drew have no score.
    """

    counts: str
    bbox: tuple[float, float, float, float]
    area: int
    score: float | None


def find_instances(mask: np.ndarray, score: float, rules: SplitRules,
                   found: Instances | None) -> tuple[Instance, ...] | None:
    """The instances of a mask [H, W] uint8, by falling score; None if none are wanted. `found`: those of the pair."""
    if rules.source == "none":
        return None
    return tuple(_coded(one.mask, one.score) for one in split_mask(mask.astype(bool), score, rules, found))


def _coded(mask: np.ndarray, score: float) -> Instance:
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    x, y, w, h = (float(v) for v in coco.toBbox(rle))
    return Instance(counts=rle["counts"].decode(), bbox=(x, y, w, h), area=int(coco.area(rle)), score=score)
