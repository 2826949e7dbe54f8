"""Scoring instances on an episode list: COCO's AP, beside the mIoU of the classes' masks.

Each episode counts as one image of COCO's evaluation: its query's instances of the class are the truth, crowd and void
regions are ignored, and the instances that the model finds with the episode's supports are the detections.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fss_models.errors import FssError
from fss_models.execution import autocast, chosen_precision
from fss_models.instances import ObjectMask, SplitRules, add_prompted, split_mask
from fss_models.segmenter import Segmenter
from fss_models.settings import InstanceSource
from pipelines.config.evaluate import EvalConfig
from pipelines.data import rle
from pipelines.data.episodes import Episode, EpisodeList, load_episode
from pipelines.data.shardset import Shards, cropped
from pipelines.evaluation.evaluate import FeatureCache, OnProgress, SupportMemory, at_size, memorise_supports

Row = dict[str, Any]  # an annotation or a detection in COCO's format


@torch.inference_mode()
def score_instances(model: Segmenter, shards: Shards, episodes: EpisodeList, config: EvalConfig,
                    source: InstanceSource, *, on_progress: OnProgress = lambda done: None) -> dict[str, Any]:
    """AP (mean over IoUs from 0.5 to 0.95) and AP50 as fractions, the source, and the numbers of objects and found.

    Raises `FssError` if no query shows several instances of its class: then the data has one mask a class.
    """
    truth = {e.episode_id: true_instances(shards, e) for e in episodes}
    if not any(sum(not row["iscrowd"] for row in rows) > 1 for rows in truth.values()):
        raise FssError("no query of the list has several instances of its class", where=shards.url,
                       hint="leave --instances out: the masks of this dataset are one a class")
    cache, found = FeatureCache(model), []
    ordered = sorted(episodes, key=lambda e: (e.class_id, e.episode_id))  # neighbours share photos
    for first in range(0, len(ordered), config.batch):
        chunk = ordered[first:first + config.batch]
        samples = [load_episode(shards, e) for e in chunk]
        with autocast(model.device, chosen_precision(config.precision, model.device)):
            masks_of_all = _instances_of(model, memorise_supports(model, cache, chunk, samples, config), source)
        for episode, masks in zip(chunk, masks_of_all, strict=True):
            found += [{**coded(one.mask), "score": one.score, "image_id": episode.episode_id,
                       "category_id": episode.class_id} for one in masks]
        on_progress(first + len(chunk))
    ap, ap50 = average_precision([row for rows in truth.values() for row in rows], found)
    objects = sum(not row["iscrowd"] for rows in truth.values() for row in rows)
    return {"source": source, "ap": ap, "ap50": ap50, "objects": objects, "found": len(found)}


def _instances_of(model: Segmenter, batch: SupportMemory, source: InstanceSource) -> list[list[ObjectMask]]:
    found = model.segment(batch.memory, batch.features, batch.pairs)
    if source == "prompts":
        found = add_prompted(model, found, batch.memory, batch.features, batch.pairs, [0.0] * len(batch.samples))
    found = found.to(model.device, torch.float32)
    rules, split = SplitRules(source=source, corners=model.corners_aligned), []
    for row, one in enumerate(batch.samples):
        logits = at_size(found.logits[row], one.targets[0].mask.shape, corners=model.corners_aligned)
        own = found.instances.of_pair(row) if found.instances is not None else None
        split.append(split_mask((logits > 0).cpu().numpy(), float(found.scores[row]), rules, own))
    return split


def true_instances(shards: Shards, episode: Episode) -> list[Row]:
    """The instances of the class in an episode's query, in COCO's format; crowd and void regions are crowds."""
    photo = shards.photo(episode.query)
    height, width = photo["height"], photo["width"]
    own = [(i["rle"], i["iscrowd"]) for a in photo["annotations"] if a["class_id"] == episode.class_id
           for i in a["instances"]]
    own += [(photo["void_rle"], True)] if photo["void_rle"] else []
    rows = []
    for counts, crowd in own:
        (mask,) = cropped(photo.get("crop"), rle.decode(counts, height, width))
        rows.append({**coded(mask), "iscrowd": int(crowd), "image_id": episode.episode_id,
                     "category_id": episode.class_id})
    return [row for row in rows if row["area"]]


def coded(mask: np.ndarray) -> Row:
    """A mask [H, W] bool as segmentation, area and bbox of COCO's format."""
    height, width = mask.shape
    counts = rle.encode(mask)
    return {"segmentation": {"size": [height, width], "counts": counts}, "area": rle.area(counts, height, width),
            "bbox": rle.bbox(counts, height, width)}


def average_precision(truth: Sequence[Row], found: Sequence[Row]) -> tuple[float, float]:
    """COCO's AP and AP50 of masks, by pycocotools; both 0 if nothing was found."""
    if not found:
        return 0.0, 0.0
    coco = COCO()
    images = {row["image_id"]: row["segmentation"]["size"] for row in (*truth, *found)}
    coco.dataset = {"images": [{"id": i, "height": h, "width": w} for i, (h, w) in sorted(images.items())],
                    "categories": [{"id": c} for c in sorted({row["category_id"] for row in truth})],
                    "annotations": [{**row, "id": number} for number, row in enumerate(truth, 1)]}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
        judged = COCOeval(coco, coco.loadRes([dict(row) for row in found]), "segm")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return max(0.0, float(judged.stats[0])), max(0.0, float(judged.stats[1]))
