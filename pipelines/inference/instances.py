"""Instances of a label: one mask for each object, at the photo's size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pycocotools import mask as coco

from fss_models.clip import Instances
from fss_models.instances import SplitRules, split_mask
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.masks import Instance, Label, threshold_logit


def with_instances(label: Label, request: MaskRequest, found: Instances | None, *, corners: bool) -> Label:
    """The label with the instances of its mask, if the request asks for some.

    `found` are those that the model gave for the pair (`Instances.of_pair`), `corners` is its `corners_aligned`.
    """
    if request.instances == "none":
        return label
    rules = SplitRules(source=request.instances, level=threshold_logit(request.threshold), speck=request.speck,
                       corners=corners)
    mask = coco.decode({"size": [label.height, label.width], "counts": label.counts.encode()}).astype(bool)
    split = split_mask(mask, label.score, rules, found)
    return replace(label, instances=tuple(_coded(one.mask, one.score) for one in split))


def prompt_level(request: MaskRequest) -> float | None:
    """The logit above which a pixel belongs to the object, if instances come from prompts; else None."""
    return threshold_logit(request.threshold) if request.instances == "prompts" else None


def _coded(mask: np.ndarray, score: float) -> Instance:
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    x, y, w, h = (float(v) for v in coco.toBbox(rle))
    return Instance(counts=rle["counts"].decode(), bbox=(x, y, w, h), area=int(coco.area(rle)), score=score)
