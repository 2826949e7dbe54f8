"""SAM 3's golden units: prompt tokens of boxes and points, cells of all layouts, boxes of masks, suppression."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fss_models.instances import suppress
from fss_models.methods.sam3.boxes import mask_boxes
from fss_models.methods.sam3.build import Sam3Parts
from fss_models.methods.sam3.detector import LEVELS
from fss_models.methods.sam3.layout import QUERY, CanvasLayout, five_layout, pair_layout, place_boxes
from fss_models.verification.frame import GoldenCheck, WorstErrors
from fss_models.verification.sam3_case import BOUNDS, Sam3Case
from fss_models.verification.tolerances import EXACT

CANVAS = 1008  # side of the canvases in the layouts' file


def check_units(folder: Path, parts: Sam3Parts) -> Iterator[GoldenCheck]:
    """The checks of the units that the folder holds."""
    if (folder / "unit_geometry.safetensors").is_file():
        yield from _geometry(Sam3Case("unit_geometry", folder / "unit_geometry.safetensors"), parts)
    if (folder / "unit_layouts.json").is_file():
        yield from _layouts(json.loads((folder / "unit_layouts.json").read_text()))
    if (folder / "unit_boxes_nms.safetensors").is_file():
        yield from _boxes(Sam3Case("unit_boxes_nms", folder / "unit_boxes_nms.safetensors"))


def _geometry(to: Sam3Case, parts: Sam3Parts) -> Iterator[GoldenCheck]:
    """Tokens of boxes together, of the first alone, of none and of points; the detector with a text only."""
    detector = parts.detector
    pixels = to.given("photo").permute(2, 0, 1)[None].float()
    maps = detector.vision((pixels / 255 - 0.5) / 0.5)
    coarse = maps["coarse"]
    to.compare(coarse, "fpn.2")
    to.compare(detector._places(coarse), "pos.2")
    boxes, signs = to.given("boxes")[None], to.given("labels")[None].bool()
    there = torch.ones_like(signs)
    to.compare(detector.geometry(coarse, boxes, there, positive=signs)[0], "tokens.boxes")
    to.compare(detector.geometry(coarse, boxes[:, :1], there[:, :1], positive=signs[:, :1])[0], "tokens.box_0")
    none, valid = detector.geometry(coarse, boxes[:, :0], there[:, :0])
    to.compare(none, "tokens.none")
    if "tokens.points" in to:
        points = to.given("points")[None]
        to.compare(detector.geometry(coarse, points, there, "point", positive=signs)[0], "tokens.points")
    ids = to.given("text_only.input_ids")
    shown = torch.arange(ids.shape[1])[None] <= ids.argmax()  # the end's id is the largest
    tokens, valid = torch.cat([detector.text(ids, shown), none], dim=1), torch.cat([shown, valid], dim=1)
    to.want["text_only.tokens"] = to.want["text_only.tokens"] * valid[..., None]
    to.compare(tokens * valid[..., None], "text_only.tokens")
    seen = detector.detect({name: maps[name] for name in LEVELS}, tokens, valid)
    for name, value in (("logits", seen.logits), ("presence", seen.presence), ("boxes", seen.boxes)):
        to.compare(value, f"text_only.{name}")
    yield from to.checks()


def _layouts(content: dict[str, Any]) -> Iterator[GoldenCheck]:
    """All cells, and a support's box in them."""
    worst = WorstErrors("unit_layouts")
    width, height = content["photo_width_height"]
    x, y, w, h = content["support_box_xywh"]
    shares = torch.tensor([x / width, y / height, (x + w) / width, (y + h) / height], dtype=torch.float64)
    for one in content["layouts"]:
        layout = _layout(one)
        count = len(one["support"])
        worst.record("cells", float([list(c) for c in layout.supports[:count]] != one["support"]
                                    or list(layout.query) != one["query"]), EXACT)
        rest = int((layout.cell_map() == QUERY).sum()) - layout.query.width * layout.query.height
        worst.record("tiling", float(rest), EXACT)
        placed = place_boxes(shares.expand(1, count, 1, 4), torch.tensor([layout.supports[:count]]), layout.side)
        wanted = torch.tensor(one["box_cxcywh"], dtype=torch.float64).view(-1, 4)
        worst.record("boxes", float((placed[0, :, 0][:len(wanted)] - wanted).abs().max()), BOUNDS["boxes"])
    yield from worst.checks()


def _layout(one: dict[str, Any]) -> CanvasLayout:
    if one["code"] == "fsod":
        if one["shots"] == 1:
            return pair_layout(CANVAS, one["ratio"], query_first=False)
        return five_layout(CANVAS, one["ratio"], rounding=math.floor)
    if one["code"] == "evaluate 1-shot":
        return pair_layout(CANVAS, one["ratio"], one["orientation"], one["query_first"])
    return five_layout(CANVAS, one["ratio"], one["layout"])


def _boxes(to: Sam3Case) -> Iterator[GoldenCheck]:
    """The box of the largest piece of each mask; greedy suppression at the limits that names of tensors give."""
    found = torch.stack([torch.from_numpy(mask_boxes(m.numpy())[0]) for m in to.given("boxes.masks")])
    to.compare(torch.cat([found[:, :2], found[:, 2:] - found[:, :2]], dim=1), "boxes.largest_xywh")
    masks, scores = to.given("nms.masks").bool(), to.given("nms.scores")
    order = scores.argsort(descending=True, stable=True)
    for key in sorted(k for k in to.want if k.startswith("nms.kept_iom_")):
        kept: Tensor = order[suppress(masks[order], float(key.removeprefix("nms.kept_iom_")))]
        to.compare(kept, key)
    yield from to.checks()
