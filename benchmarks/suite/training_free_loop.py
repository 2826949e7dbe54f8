"""Methods without training: one support set against many queries, compared with the loop of their released codes.

The released codes encode the supports again for every query, take one query at a time, and go through masks or clusters
in Python. Ours encodes and memorises the supports once and takes queries in batches. Same weights (random ones where
the preset has none), same preprocessed photos; masks must be equal. With several `classes` every query is segmented
with one support set of each: ours encodes it once, the loop in every episode. `ratio` is that of CPU seconds, since
other processes disturb the clock; on a GPU that of seconds. Needs torch, timm and scikit-learn.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.timing import cpu_and_wall
from fss_models import registry
from fss_models.clip import Images
from fss_models.point_prompts.build import build_point_parts
from fss_models.prompts import mask_prompt

CONFIG: dict[str, Any] = {"method": "insid3", "preset": "nano", "config": {}, "shots": 1, "classes": 1, "images": 32,
                          "batch": 16, "side": 320, "repeats": 1, "threads": 1, "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """CPU and clock seconds of both ways, their ratios, and whether the masks are equal."""
    loop = importlib.import_module(f"benchmarks.official_loops.{config['method']}")
    model = _model(config).to(config["device"]).eval()
    rng = np.random.default_rng(config["seed"])
    sets, first = _numbers(config)
    scenes = [_scene(rng, config["side"]) for _ in range(first + config["images"])]
    photos: Images = model.prepare([photo for photo, _ in scenes]).to(config["device"])
    masks = [[mask_prompt(scenes[i][1]) for i in one] for one in sets]
    marks = [model.collate([one], photos.sizes[own].cpu()).to(config["device"])
             for one, own in zip(masks, sets, strict=True)]
    every = model.collate(masks, photos.sizes[:first].cpu()).to(config["device"])

    def ours() -> torch.Tensor:
        memory, found = model.memorise(model.encode_supports(photos.rows(0, first)), every), []
        for begin in range(first, len(photos), config["batch"]):
            features = model.encode(photos.rows(begin, begin + config["batch"]))
            pairs = torch.tensor([[s, i] for i in range(len(features)) for s in range(len(sets))])
            found.append(model.segment(memory, features, pairs.to(config["device"])).logits > 0)
        return torch.cat(found).cpu()

    prepared = loop.prepare(model)

    def official() -> torch.Tensor:
        return torch.stack([loop.segment(model, prepared, photos.pixels[own], one.masks[0], photos.pixels[i : i + 1])
                            for i in range(first, len(photos)) for own, one in zip(sets, marks, strict=True)]).cpu()

    ways = {"ours": ours, "official": official}
    with torch.inference_mode():
        found = {name: way() for name, way in ways.items()}
        cpu, clock = _spent(ways, config["repeats"])
    ratios = {"cpu": cpu["official"] / cpu["ours"], "clock": clock["official"] / clock["ours"]}
    episodes = config["images"] * len(sets)
    return {"ratio": ratios["cpu" if config["device"] == "cpu" else "clock"], "ratios": ratios, "cpu_seconds": cpu,
            "seconds": clock, "same_masks": bool(torch.equal(found["ours"], found["official"])),
            "object_share": float(found["ours"].float().mean()),
            "images_encoded": {"ours": first + config["images"], "official": (config["shots"] + 1) * episodes}}


def _model(config: dict[str, Any]) -> Any:
    """The model; Matcher, which has no `nano`, is built around nano's frozen parts, so that a CPU can time it."""
    if (config["method"], config["preset"]) != ("matcher", "nano"):
        return registry.build(config["method"], config["preset"], config["config"], seed=config["seed"])
    parts = build_point_parts("nano", source="auto", cell_side=0, antialias=False, cell_weights="", weights=None)
    module = importlib.import_module(registry.method_class("matcher").__module__)
    return module.Matcher(preset="official", config=module.MatcherConfig(**config["config"]), parts=parts)


def _numbers(config: dict[str, Any]) -> tuple[list[list[int]], int]:
    """The photos of each support set, and the number of the first query."""
    shots = config["shots"]
    return [list(range(c * shots, (c + 1) * shots)) for c in range(config["classes"])], config["classes"] * shots


def _spent(ways: dict[str, Callable[[], torch.Tensor]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """CPU and clock seconds of each way, the least of the repeats; the ways take turns."""
    cpu, clock = ({name: float("inf") for name in ways} for _ in range(2))
    for _ in range(repeats):
        for name, way in ways.items():
            spent = cpu_and_wall(way)
            cpu[name], clock[name] = min(cpu[name], spent[0]), min(clock[name], spent[1])
    return cpu, clock


def _scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo of a striped disc on coloured squares of three sizes, and the disc's mask."""
    y, x = np.mgrid[:side, :side]
    cx, cy, radius = *rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.28)
    mask = (x / side - cx) ** 2 + (y / side - cy) ** 2 < radius**2
    photo = 0.6 * _blocks(rng, side, 4) + 0.4 * _blocks(rng, side, 10) + 0.3 * _blocks(rng, side, 40)
    photo[mask] = np.stack([210 + 30 * np.sin(x / 5), 90 + 40 * np.sin(y / 7), 40 + 0 * x], axis=2)[mask]
    return photo.clip(0, 255).astype(np.uint8), mask


def _blocks(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Coloured squares [side, side, 3], `cells` in a row."""
    at = np.arange(side) * cells // side
    return np.asarray(rng.uniform(0, 255, (cells, cells, 3))[at][:, at])
