"""Negative supports: how much they keep a method off what it would take for the object, and what they cost the object.

Two classes that look alike, in turn: supports show the one, negative supports the other. Queries are other photos, as
many of either class. By kind of negative support (`none`, `photos`: without a mark, `marks`: with the other class's):

iou          mean IoU of the class in its own photos
taken        mean share of the other class's pixels that are taken for it in photos of that
iou_change, taken_change   difference to `none`, with the half width of its 95 % interval (over queries)

Method and classes need no training here; `ratio` is the IoU with negative photos divided by that without.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.labelling import prepare_bundle

CONFIG: dict[str, Any] = {"data": "auto", "images": 24, "bundle": "", "method": "prior", "preset": "nano", "sets": 8,
                          "shots": 2, "negatives": 2, "queries": 4, "threads": 2, "seed": 0}
Item = tuple[np.ndarray, np.ndarray]  # photo [H, W, 3] uint8, mask [H, W] bool


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Segment the same queries with each kind of negative support that the method uses."""
    import torch

    from fss_models import load

    torch.set_num_threads(config["threads"])
    with tempfile.TemporaryDirectory() as folder:
        model = load(prepare_bundle(config, Path(folder)), "cpu")
    classes, what = _classes(config)
    used = type(model.model).negatives(model.model.config)
    kinds = ["none", "photos", *(["marks"] if used == "marks" else [])]
    scores: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    rng = random.Random(config["seed"])
    for number in range(config["sets"]):
        own, other = (_draw(rng, classes[(number + side) % 2], config) for side in range(2))
        for kind in kinds:
            scores[kind] += _score(model, own, other, kind, config)
    found = {kind: _figures(scores[kind], scores["none"]) for kind in kinds}
    assert model.info is not None
    return {"ratio": found["photos"]["iou"] / found["none"]["iou"], "photos_from": what, "method": model.info.method,
            "preset": model.info.preset, "bundle_id": model.info.bundle_id,
            "queries": len(scores["none"]), **found}


def _draw(rng: random.Random, items: Sequence[Any], config: dict[str, Any]) -> list[Item]:
    """Photos and masks for supports, then for queries; none twice."""
    count = max(config["shots"], config["negatives"]) + config["queries"]
    return [_read(one) if isinstance(one, Path) else one for one in rng.sample(list(items), count)]


def _score(model: Any, own: list[Item], other: list[Item], kind: str, config: dict[str, Any]
           ) -> list[tuple[float, float]]:
    """(IoU in a photo of the class, share of the other class taken for it in one of that) for each query."""
    supports: list[dict[str, Any]] = [{"image": p, "mask": m} for p, m in own[:config["shots"]]]
    if kind != "none":
        supports += [{"image": p, "negative": True, **({"mask": m} if kind == "marks" else {})}
                     for p, m in other[:config["negatives"]]]
    memory, asked = model.memorise(supports), config["queries"]
    queries = [*own[-asked:], *other[-asked:]]
    masks = [one.mask for one in model.predict_many(memory, [p for p, _ in queries])]
    ious = [(m & t).sum() / (m | t).sum() for m, (_, t) in zip(masks[:asked], queries[:asked], strict=True)]
    taken = [(m & t).sum() / t.sum() for m, (_, t) in zip(masks[asked:], queries[asked:], strict=True)]
    return [(float(i), float(t)) for i, t in zip(ious, taken, strict=True)]


def _figures(scores: list[tuple[float, float]], plain: list[tuple[float, float]]) -> dict[str, Any]:
    values, change = np.array(scores), np.array(scores) - np.array(plain)
    half = 1.96 * change.std(axis=0, ddof=1) / len(change) ** 0.5
    mean = change.mean(axis=0)
    return {name: value for i, key in enumerate(("iou", "taken")) for name, value in (
        (key, float(values[:, i].mean())), (f"{key}_change", [float(mean[i]), float(half[i])]))}


def _classes(config: dict[str, Any]) -> tuple[list[Any], str]:
    """The items of the two classes: masks' paths of real photos of cats and dogs if they are there, or generated."""
    shared = Path(os.environ.get("FSS_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    root = shared / "data" / "pets"
    if config["data"] == "auto" and (root / "masks").is_dir():
        found = [sorted((root / "masks" / name).glob("*.png")) for name in ("cat", "dog")]
        return found, f"Oxford pets: {len(found[0])} photos of cats, {len(found[1])} of dogs"
    rng = np.random.default_rng(config["seed"])
    made = [[_disc(rng, colour) for _ in range(config["images"])] for colour in ((200, 60, 60), (200, 60, 140))]
    return made, f"{config['images']} generated photos of either of two colours"


def _read(mask: Path) -> Item:
    from fss_models.mask_files import read_mask_picture
    from fss_models.predictor import read_photo

    photo = next((mask.parents[2] / "images").glob(f"{mask.stem}.*"))
    return read_photo(photo), read_mask_picture(mask.read_bytes()).mask


def _disc(rng: np.random.Generator, colour: tuple[int, int, int]) -> Item:
    photo = rng.integers(0, 120, (96, 128, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:96, :128]
    mask = (rows - rng.integers(30, 66)) ** 2 + (columns - rng.integers(30, 98)) ** 2 < 24 ** 2
    photo[mask] = colour
    return photo, mask
