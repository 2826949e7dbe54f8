"""Methods without training: one support set against many queries, compared with the loop of their released codes.

The released codes encode the supports again for every query, take one query at a time, and go through masks or clusters
in Python. Ours encodes and memorises the supports once and takes queries in batches. Same weights (random ones where
the preset has none), same preprocessed photos; masks must be equal. `ratio` is that of CPU seconds, since other
processes disturb the clock; on a GPU that of seconds. Needs torch, timm and scikit-learn.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.episodes import label_together
from benchmarks.timing import cpu_and_wall
from fss_models import registry
from fss_models.clip import Images
from fss_models.prompts import mask_prompt

CONFIG: dict[str, Any] = {"method": "insid3", "preset": "nano", "config": {}, "shots": 1, "images": 32, "batch": 16,
                          "side": 320, "repeats": 1, "threads": 1, "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """CPU and clock seconds of both ways, their ratios, and whether the masks are equal."""
    loop = importlib.import_module(f"benchmarks.official_loops.{config['method']}")
    model: Any = registry.build(config["method"], config["preset"], config["config"], seed=config["seed"])
    model = model.to(config["device"]).eval()
    rng = np.random.default_rng(config["seed"])
    scenes = [_scene(rng, config["side"]) for _ in range(config["shots"] + config["images"])]
    photos: Images = model.prepare([photo for photo, _ in scenes]).to(config["device"])
    shots = config["shots"]
    marks = model.collate([[mask_prompt(mask) for _, mask in scenes[:shots]]], photos.sizes[:shots].cpu())
    marks = marks.to(config["device"])

    def ours() -> torch.Tensor:
        given = photos.rows(0, shots), marks, photos.rows(shots, len(photos))
        return torch.cat([logits > 0 for logits in label_together(model, *given, config["batch"])])

    prepared = loop.prepare(model)

    def official() -> torch.Tensor:
        given = model, prepared, photos.pixels[:shots], marks.masks[0]
        return torch.stack([loop.segment(*given, photos.pixels[i : i + 1]) for i in range(shots, len(photos))])

    with torch.inference_mode():
        masks = {name: way() for name, way in (("ours", ours), ("official", official))}
        spent = {name: _spent(way, config) for name, way in (("ours", ours), ("official", official))}
    cpu, clock = ({name: s[i] for name, s in spent.items()} for i in (0, 1))
    ratios = {"cpu": cpu["official"] / cpu["ours"], "clock": clock["official"] / clock["ours"]}
    return {"ratio": ratios["cpu" if config["device"] == "cpu" else "clock"], "ratios": ratios, "cpu_seconds": cpu,
            "seconds": clock, "same_masks": bool(torch.equal(masks["ours"], masks["official"])),
            "object_share": float(masks["ours"].float().mean()),
            "images_encoded": {"ours": shots + config["images"], "official": (shots + 1) * config["images"]}}


def _spent(way: Callable[[], torch.Tensor], config: dict[str, Any]) -> tuple[float, float]:
    """CPU and clock seconds, the least of the repeats each."""
    found = [cpu_and_wall(lambda: way().cpu()) for _ in range(config["repeats"])]
    return min(f[0] for f in found), min(f[1] for f in found)


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
