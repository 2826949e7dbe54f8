"""SAM 3's golden cases: canvases of one to five supports, prompt tokens that are reused, single functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Images, Memory
from fss_models.methods.sam3.boxes import mask_boxes
from fss_models.methods.sam3.build import require_transformers
from fss_models.methods.sam3.config import Sam3Config
from fss_models.methods.sam3.detector import LEVELS, Detections
from fss_models.methods.sam3.instances import FoundObjects, read_objects
from fss_models.methods.sam3.layout import CanvasLayout, five_layout, pair_layout
from fss_models.methods.sam3.model import Sam3
from fss_models.prompts import mask_prompt
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.recorder import Recorder
from fss_models.verification.sam3_case import BOUNDS, Sam3Case, StoredWords, load_parts, nearest, unreadable
from fss_models.verification.sam3_units import check_units
from fss_models.verification.tolerances import EXACT

PHRASE = "the case's class name"


@torch.no_grad()
def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare one case with everything its file holds; what cannot be read is a check that fails."""
    require_transformers()
    try:
        to = Sam3Case(name, folder / f"{name}.safetensors")
        {"canvas": _canvas, "token": _token}[case["kind"]](to, folder, case)
    except Exception as error:  # a damaged file shows in many ways: no header, a name that is missing, another shape
        yield unreadable(name, error)
    else:
        yield from to.checks()


@torch.no_grad()
def run_units(folder: Path) -> Iterator[GoldenCheck]:
    """Compare single functions: prompt tokens, cells, boxes of masks, suppression."""
    case = next(iter(json.loads((folder / "cases.json").read_text()).values()))
    try:
        yield from check_units(folder, load_parts(folder, case))
    except Exception as error:  # as above
        yield unreadable("units", error)


def layout_of(case: dict[str, Any], side: int) -> CanvasLayout:
    """The canvas layout that a case's settings name."""
    about, ratio = case["settings"], case["settings"]["split_ratio"]
    if about.get("rule") == "fsod":
        return pair_layout(side, ratio, query_first=False) if case["shots"] == 1 else five_layout(
            side, ratio, rounding=math.floor)
    if case["shots"] == 1:
        return pair_layout(side, ratio, about["orientation"], about["swap_order"])
    return five_layout(side, ratio, about["layout_type"])


def build(to: Sam3Case, folder: Path, case: dict[str, Any]) -> Sam3:
    """The model of a canvas case, with its layout and the ids of its class name."""
    ids = to.given("text.input_ids")
    parts = load_parts(folder, case, visual=int(ids[0, 1]))
    named = case.get("class_name") is not None
    config = Sam3Config(class_names=named, layout="pair" if case["shots"] == 1 else "five", threshold=case["threshold"])
    words = StoredWords({PHRASE: ids}) if named else None
    return Sam3(preset="golden", config=config, parts=parts, layouts=(layout_of(case, parts.side),), tokenizer=words)


def _canvas(to: Sam3Case, folder: Path, case: dict[str, Any]) -> None:
    """Compare a canvas, its prompt, the detector on it, and what is read from it."""
    model, shots = build(to, folder, case), case["shots"]
    photos = [to.photo(f"inputs.support.{k}") for k in range(shots)] + [to.photo("inputs.query")]
    masks = [to.given(f"inputs.support_mask.{k}").numpy() for k in range(shots)]
    for k, mask in enumerate(masks):
        to.compare(_xywh(mask_boxes(mask)[0]), f"inputs.support_box.{k}")
    images, layout = model.prepare(photos), model.layouts[0]
    prompts = model.collate([[mask_prompt(m) for m in masks]], images.sizes, names=[PHRASE])
    features, pair = model.encode(images), torch.tensor([[0, shots]])
    memory = model.memorise(features, prompts)
    canvas = model.canvases(memory, features, pair)
    to.compare(canvas[0].permute(1, 2, 0), "canvas.pixels")
    to.compare(torch.tensor(layout.supports[:shots]), "canvas.support_regions")
    to.compare(torch.tensor(layout.query), "canvas.query_region")
    to.compare_absolute(memory.tensors["boxes"][0].float(), "prompt.boxes", BOUNDS["boxes"])
    to.compare(memory.tensors["boxes_valid"][0], "prompt.labels")
    seen = _detector(to, model, memory, canvas)
    objects = read_objects(seen.scores[0], seen.masks[0], case["threshold"], layout)
    _kept(to, seen, objects, case["threshold"], layout, photos[-1].shape)
    _masks(to, "", objects, nearest, photos[-1].shape)
    predicted = model.segment(memory, features, pair)
    to.compare(predicted.logits[0], "query.logits")
    to.compare(predicted.logits[0] > 0, "final.crop")
    best = max([0.0, *to.want["instances.scores"].tolist()] if "instances.scores" in to else [0.0])
    to.record("score", abs(float(predicted.scores[0]) - best), BOUNDS["forward"])


def _detector(to: Sam3Case, model: Sam3, memory: Memory, canvas: Tensor) -> Detections:
    """Compare prompt tokens and the detector's outputs on the canvas."""
    pixels = (canvas.float() / 255 - 0.5) / 0.5
    to.compare(pixels, "canvas.input")
    maps = model.detector.vision(pixels)
    to.compare(model.detector._places(maps["coarse"]), "vision.pos.2")
    for number, level in enumerate(LEVELS):
        to.compare(maps[level], f"vision.fpn.{number}")
    tokens, valid = model.detector.geometry(maps["coarse"], memory.tensors["boxes"], memory.tensors["boxes_valid"])
    tokens = torch.cat([memory.tensors["text"], tokens], dim=1)
    valid = torch.cat([memory.tensors["text_valid"], valid], dim=1)
    to.compare(memory.tensors["text_valid"], "text.attention_mask")
    to.compare(valid, "prompt.valid")
    _tokens(to, tokens, valid, "prompt.tokens")
    with Recorder(fusion=model.detector.sam.detr_encoder) as record:
        seen = model.detector.detect(maps, tokens, valid)
    to.compare(record.got["fusion"][0].last_hidden_state, "encoder.out")
    to.compare(seen.queries, "decoder.queries")
    _raw(to, "", seen, 0)
    return seen


def _tokens(to: Sam3Case, ours: Tensor, valid: Tensor, key: str) -> None:
    """Compare the valid tokens only: those at padding depend on the padding's id."""
    shown = valid[..., None].to(ours)
    if key in to:
        to.want[key] = to.want[key] * shown
    to.compare(ours * shown, key)


def _raw(to: Sam3Case, prefix: str, seen: Detections, row: int) -> None:
    """Compare the outputs of the detector for one picture."""
    for name, value in (("raw.logits", seen.logits), ("raw.presence", seen.presence), ("raw.boxes", seen.boxes),
                        ("raw.masks", seen.masks), ("raw.semantic", seen.semantic), ("scores.all", seen.scores)):
        to.compare(value[row:row + 1], prefix + name)


def _kept(to: Sam3Case, seen: Detections, objects: FoundObjects, threshold: float, layout: CanvasLayout,
          size: tuple[int, ...]) -> None:
    """Compare the queries that are kept on the whole canvas, and their boxes by the detection evaluator's rule."""
    to.compare(objects.queries, "kept.query_index")
    to.compare(objects.scores, "kept.scores")
    boxes = seen.boxes[0, objects.queries] * layout.side
    to.compare(boxes, "kept.boxes_canvas")
    clipped = _boxes_in_photo(boxes, layout, size)
    to.compare_absolute(clipped, "kept.boxes_query_fsod", BOUNDS["pixel boxes"])
    order = objects.queries.argsort()
    order = order[~clipped[order].isnan().any(dim=1)]
    to.compare_absolute(clipped[order], "fsod.boxes_xywh", BOUNDS["pixel boxes"])
    to.compare(objects.scores[order], "fsod.scores")
    if "kept.masks_canvas" in to:
        whole = CanvasLayout(side=layout.side, supports=(), query=type(layout.query)(0, 0, layout.side, layout.side))
        masks = read_objects(seen.scores[0], seen.masks[0], threshold, whole).logits
        to.compare(masks > 0, "kept.masks_canvas")
        to.compare(masks.sigmoid(), "kept.mask_probabilities")


def _boxes_in_photo(boxes: Tensor, layout: CanvasLayout, size: tuple[int, ...]) -> Tensor:
    """Boxes [M, 4] x0 y0 x1 y1 on the canvas, clipped to the query's cell -> x y w h in the photo.

    nan where a side of the clipped box is at most one pixel long.
    """
    x, y, width, height = layout.query
    low, scale = torch.tensor([x, y]), torch.tensor([size[1] / width, size[0] / height])
    corners = [torch.minimum((c - low).clamp(min=0), torch.tensor([width, height])) * scale
               for c in (boxes[:, :2], boxes[:, 2:])]
    found = torch.cat([corners[0], corners[1] - corners[0]], dim=1)
    small = ((corners[1] - corners[0]) / scale <= 1).any(dim=1)
    return torch.where(small[:, None], torch.full_like(found, float("nan")), found)


def _masks(to: Sam3Case, prefix: str, objects: FoundObjects, resize: Any, size: tuple[int, ...]) -> None:
    """Compare the objects' masks and their union at the photo's size."""
    shape = (size[0], size[1])
    each = [resize(one > 0, shape) for one in objects.logits]
    union = torch.stack(each).any(dim=0) if each else torch.zeros(shape, dtype=torch.bool)
    to.compare(union, f"{prefix}final.mask")
    there = torch.tensor([i for i, mask in enumerate(each) if bool(mask.any())], dtype=torch.int64)
    to.compare(there, f"{prefix}instances.index")
    to.compare(objects.scores[there], f"{prefix}instances.scores")
    to.compare(torch.stack(each)[there] if each else torch.zeros(0, *shape), f"{prefix}instances.masks")


def _token(to: Sam3Case, folder: Path, case: dict[str, Any]) -> None:
    """Compare prompt tokens of all sets, memorised together, and every pair of a set and a query."""
    names = [f"set {s}" if name is not None else "" for s, name in enumerate(case["class_names"])]
    ids = {name: to.given(f"set.{s}.text.input_ids") for s, name in enumerate(names)}
    parts = load_parts(folder, case, visual=int(ids[""][0, 1]) if "" in ids else 0)
    model = Sam3(preset="golden", parts=parts, tokenizer=StoredWords(ids), config=Sam3Config(
        mode="token", exemplar=case["exemplar"], class_names=True, threshold=case["threshold"]))
    places = [(s, k) for s, count in enumerate(case["sets"]) for k in range(count)]
    queries = range(case["queries"])
    squares = [f"set.{s}.support_resized.{k}" for s, k in places] + [f"query.{q}.resized" for q in queries]
    photos = [to.photo(f"set.{s}.support.{k}") for s, k in places] + [to.photo(f"query.{q}.photo") for q in queries]
    for square, own in zip(squares, model.prepare(photos).pixels, strict=True):
        levels = ((own * 0.5 + 0.5) * 255).round().permute(1, 2, 0)
        to.record("resize", float((levels - to.given(square)).abs().max()), BOUNDS["resize"])
    pixels = torch.stack([to.given(square) for square in squares]).permute(0, 3, 1, 2).float()
    sizes = torch.tensor([p.shape[:2] for p in photos])
    features = model.encode(Images(pixels=(pixels / 255 - 0.5) / 0.5, sizes=sizes))
    for row, (s, k) in enumerate(places):
        to.compare(features.maps["coarse"][row:row + 1], f"set.{s}.vision.fpn.2.{k}")
    for row, q in enumerate(queries, len(places)):
        to.compare(features.maps["coarse"][row:row + 1], f"query.{q}.vision.fpn.2")
    masks = {place: to.given("set.{}.support_mask.{}".format(*place)).numpy() for place in places}
    for (s, k), mask in masks.items():
        to.compare(_xywh(mask_boxes(mask)[0]), f"set.{s}.support_box.{k}")
    sets = [[mask_prompt(masks[s, k]) for k in range(count)] for s, count in enumerate(case["sets"])]
    prompts = model.collate(sets, sizes, names=names)
    memory = model.memorise(features, prompts)
    _memory(to, model, memory, case)
    boxes = model._prompt_boxes(prompts)[0]
    for s, k in places:
        low, high = boxes[s, k, :, :2], boxes[s, k, :, 2:]
        to.compare_absolute(torch.cat([(low + high) / 2, high - low], dim=1), f"set.{s}.box.{k}", BOUNDS["boxes"])
    pairs = torch.tensor([[s, len(places) + q] for s in range(len(sets)) for q in queries])
    seen, predicted = model._detect_tokens(memory, features, pairs), model.segment(memory, features, pairs)
    for row, (s, image) in enumerate(pairs.tolist()):
        prefix = f"pair.{s}.{image - len(places)}."
        _raw(to, prefix, seen, row)
        _pair(to, prefix, read_objects(seen.scores[row], seen.masks[row], case["threshold"]), photos[image].shape)
        best = max([0.0, *to.want[f"{prefix}kept.scores"].tolist()])
        to.record("score", abs(float(predicted.scores[row]) - best), BOUNDS["forward"])


def _memory(to: Sam3Case, model: Sam3, memory: Memory, case: dict[str, Any]) -> None:
    """Compare the tokens of each set, less the padding up to the largest set."""
    text = model.visual.shape[1]
    for s, count in enumerate(case["sets"]):
        tokens, valid = (memory.tensors[n][s:s + 1, :text + 2 * count] for n in ("tokens", "valid"))
        to.compare(valid, f"set.{s}.prompt.valid")
        to.compare(valid[:, :text], f"set.{s}.text.attention_mask")
        _tokens(to, tokens, valid, f"set.{s}.prompt.tokens")
        _tokens(to, tokens[:, :text], valid[:, :text], f"set.{s}.text.tokens")
        for k in range(count):
            to.compare(tokens[:, text + 2 * k:text + 2 * k + 2], f"set.{s}.geometry.{k}")
        to.record("padding", float(memory.tensors["valid"][s, text + 2 * count:].sum()), EXACT)


def _pair(to: Sam3Case, prefix: str, objects: FoundObjects, size: tuple[int, ...]) -> None:
    """Compare the kept queries of a pair and their masks, enlarged to the photo as logits."""
    to.compare(objects.queries, f"{prefix}kept.query_index")
    to.compare(objects.scores, f"{prefix}kept.scores")
    if len(objects.logits):
        large = F.interpolate(objects.logits[None], size=size[:2], mode="bilinear", align_corners=False)[0]
        objects = FoundObjects(queries=objects.queries, scores=objects.scores, logits=large)
        to.compare(objects.whole, f"{prefix}final.logits")
    _masks(to, prefix, objects, lambda mask, _: mask, size)


def _xywh(box: Any) -> Tensor:
    return torch.tensor([box[0], box[1], box[2] - box[0], box[3] - box[1]], dtype=torch.float64)
