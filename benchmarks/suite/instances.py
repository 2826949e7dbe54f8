"""Instances on real photos with several objects of a class: AP, and how often two touching objects are told apart.

Each query is a COCO photo that shows at least two objects of a class and that the bundle has not seen in training; the
supports are other photos of the class (classes are not held out). `mean_class_iou` is the quality of the masks that are
split. For each source of instances:

ap, ap50    COCO's scores of masks, each query being one image
told_apart  share of the pairs of touching objects (masks at most `gap` pixels apart) that are matched, with an IoU of
            at least 0.5, by two different instances
seconds     of splitting a photo's mask, prompts' decoding included

`given` are the same figures where the mask that is split is the true one: what remains is the error of splitting alone.
`ratio` is the AP of prompts divided by that of pieces, both on given masks.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import coco_root
from benchmarks.labelling import prepare_bundle

CONFIG: dict[str, Any] = {"data": "auto", "images": 60, "bundle": "shipped", "method": "", "preset": "nano",
                          "queries": 60, "of_class": 4, "shots": 5, "gap": 2, "least_pixels": 400,
                          "least_share": 0.02, "threads": 2, "seed": 0}
SOURCES = ("pieces", "prompts")


@dataclass(frozen=True)
class Query:
    """A photo, the class sought in it, its objects' masks [H, W] bool, and the supports (photo, mask of the class)."""

    photo: np.ndarray
    class_id: int
    objects: list[np.ndarray]
    supports: list[dict[str, Any]]


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Measure every source on the predicted and on the true masks."""
    import torch

    from fss_models import load

    torch.set_num_threads(config["threads"])
    with tempfile.TemporaryDirectory() as folder:
        model = load(prepare_bundle(config, Path(folder)), "cpu")
        root, kind = coco_root(config, Path(folder))
        queries = list(choose_queries(Path(root), config, _seen(model)))
        split = [_Splitter(model, query) for query in queries]
        found = {name: measure(split, source, config, given=given) for name, source, given in (
            *((s, s, False) for s in SOURCES), *((f"given_{s}", s, True) for s in SOURCES))}
    assert model.info is not None
    ious = [(one.mask & one.truth).sum() / (one.mask | one.truth).sum() for one in split]
    return {"ratio": found["given_prompts"]["ap"] / found["given_pieces"]["ap"], "photos": kind,
            "queries": len(queries), "mean_class_iou": float(np.mean(ious)),
            "classes": len({q.class_id for q in queries}), "objects": sum(len(q.objects) for q in queries),
            "bundle_id": model.info.bundle_id, "method": model.info.method, "preset": model.info.preset, **found}


def _seen(model: Any) -> set[str]:
    """Hashes of the photos that the bundle was trained on."""
    return {*model.info.trained_on, *model.info.pretrained_on}


def choose_queries(root: Path, config: dict[str, Any], seen: set[str]) -> Iterator[Query]:
    """Queries in random order, at most `of_class` of a class."""
    from fss_models.photo_files import decode_image

    content = json.loads(next((root / "annotations").glob("*.json")).read_text())
    files = {p.name: p for p in (root / "images").rglob("*.jpg")}
    records = {r["id"]: r for r in content["images"] if r["file_name"] in files}
    notes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for note in content["annotations"]:
        if note["image_id"] in records:
            note.setdefault("area", int(sum(m.sum() for m in _masks([note], records[note["image_id"]]))))
            notes.setdefault((note["category_id"], note["image_id"]), []).append(note)
    rng, data = random.Random(config["seed"]), {i: files[r["file_name"]] for i, r in records.items()}
    good = {key: own for key, own in notes.items() if _counts(own, records[key[1]], config)}
    asked = [key for key, own in good.items() if sum(n["area"] >= config["least_pixels"] for n in own) > 1]
    rng.shuffle(asked)
    taken: dict[int, int] = {}
    chosen = 0
    for class_id, image_id in asked:
        others = [i for c, i in good if c == class_id and i != image_id]
        if chosen == config["queries"] or taken.get(class_id, 0) == config["of_class"] or len(others) < config["shots"]:
            continue
        photo = data[image_id].read_bytes()
        if hashlib.sha256(photo).hexdigest()[:16] in seen:
            continue
        taken[class_id], chosen = taken.get(class_id, 0) + 1, chosen + 1
        supports = [{"image": str(data[i]), "mask": np.logical_or.reduce(_masks(good[class_id, i], records[i]))}
                    for i in rng.sample(others, config["shots"])]
        yield Query(decode_image(photo), class_id, _masks(good[class_id, image_id], records[image_id]), supports)


def _counts(own: list[dict[str, Any]], record: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a class is large enough in a photo, and no part of it is a crowd."""
    pixels = sum(n["area"] for n in own)
    return not any(n["iscrowd"] for n in own) and pixels >= config["least_share"] * record["height"] * record["width"]


def _masks(own: list[dict[str, Any]], record: dict[str, Any]) -> list[np.ndarray]:
    from pipelines.data import rle

    size = record["height"], record["width"]
    return [rle.decode(rle.from_coco(n["segmentation"], *size), *size) for n in own]


class _Splitter:
    """A query with the mask that the model predicts for it, ready to be split."""

    def __init__(self, model: Any, query: Query) -> None:
        import torch
        import torch.nn.functional as F

        self.model, self.query = model.model, query
        with torch.inference_mode():
            self.memory = _memory(model, query)
            self.features = self.model.encode(self.model.prepare([query.photo]))
            self.pairs = torch.zeros(1, 2, dtype=torch.int64)
            self.predicted = self.model.segment(self.memory, self.features, self.pairs)
            full = F.interpolate(self.predicted.logits[None].float(), size=query.photo.shape[:2], mode="bilinear",
                                 align_corners=self.model.corners_aligned)[0, 0]
        self.mask, self.truth = (full > 0).numpy(), np.logical_or.reduce(query.objects)

    def split(self, source: str, *, given: bool) -> list[Any]:
        """The instances in the predicted mask, or in the true one."""
        import torch
        import torch.nn.functional as F

        from fss_models.clip import Prediction
        from fss_models.instances import SplitRules, add_prompted, split_mask

        found, side = self.predicted, self.model.side
        if given:
            logits = torch.from_numpy(self.truth).float()[None, None] * 20 - 10
            found = Prediction(logits=F.interpolate(logits, size=(side, side), mode="area")[:, 0], scores=torch.ones(1))
        if source == "prompts":
            found = add_prompted(self.model, found, self.memory, self.features, self.pairs, [0.0])
        own = found.instances.of_pair(0) if found.instances is not None else None
        rules = SplitRules(source=source, corners=self.model.corners_aligned)  # type: ignore[arg-type]
        return split_mask(self.truth if given else self.mask, float(found.scores[0]), rules, own)


def _memory(model: Any, query: Query) -> Any:
    from fss_models.photo_files import decode_image
    from fss_models.prompts import mask_prompt

    images = model.model.prepare([decode_image(Path(s["image"]).read_bytes()) for s in query.supports])
    prompts = model.model.collate([[mask_prompt(s["mask"]) for s in query.supports]], images.sizes)
    return model.model.memorise(model.model.encode(images), prompts)


def measure(split: list[_Splitter], source: str, config: dict[str, Any], *, given: bool) -> dict[str, float]:
    """The figures of one source."""
    from pipelines.evaluation.instances import average_precision, coded

    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    touching = apart = 0
    seconds = 0.0
    for number, one in enumerate(split, 1):
        began = time.perf_counter()
        masks = one.split(source, given=given)
        seconds += time.perf_counter() - began
        where = {"image_id": number, "category_id": one.query.class_id}
        truth += [{**coded(m), **where, "iscrowd": 0} for m in one.query.objects]
        found += [{**coded(i.mask), **where, "score": i.score} for i in masks]
        pairs = list(touching_pairs(one.query.objects, config["gap"], config["least_pixels"]))
        best = _best_matches(one.query.objects, [i.mask for i in masks])
        touching += len(pairs)
        apart += sum(best[a] is not None and best[b] is not None and best[a] != best[b] for a, b in pairs)
    ap, ap50 = average_precision(truth, found)
    return {"ap": ap, "ap50": ap50, "told_apart": apart / max(touching, 1), "touching": touching, "apart": apart,
            "found": len(found), "seconds": seconds / len(split)}


def touching_pairs(objects: list[np.ndarray], gap: int, least: int) -> Iterator[tuple[int, int]]:
    """The pairs of objects of at least `least` pixels whose masks are at most `gap` pixels apart."""
    from scipy import ndimage

    large = [n for n, mask in enumerate(objects) if mask.sum() >= least]
    grown: Callable[[int], np.ndarray] = lambda n: ndimage.binary_dilation(objects[n], iterations=gap)  # noqa: E731
    wide = {n: grown(n) for n in large}
    yield from ((a, b) for i, a in enumerate(large) for b in large[i + 1:] if (wide[a] & objects[b]).any())


def _best_matches(objects: list[np.ndarray], masks: list[np.ndarray]) -> list[int | None]:
    """For each object the instance that overlaps most, None if the IoU is below 0.5."""
    found: list[int | None] = []
    for mask in objects:
        ious = [(mask & m).sum() / max((mask | m).sum(), 1) for m in masks]
        best = int(np.argmax(ious)) if ious else -1
        found.append(best if best >= 0 and ious[best] >= 0.5 else None)
    return found
