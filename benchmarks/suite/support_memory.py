"""Labelling with one support set: its memory computed once, compared with computing it again for every image.

Both ways encode every image once and give the same masks, which is checked. They differ only in whether the supports
are encoded and memorised again. Needs only torch, timm and sam2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.timing import time_interleaved
from fss_models import registry
from fss_models.clip import Images, Memory
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter

CONFIG: dict[str, Any] = {"method": "prior", "preset": "nano", "shots": 5, "images": 8, "side": 480, "repeats": 5,
                          "threads": 1, "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Images a second of both ways, and their ratio."""
    torch.manual_seed(config["seed"])
    model = registry.build(config["method"], config["preset"]).to(config["device"]).eval()
    supports, images = _pictures(model, config, config["shots"]), _pictures(model, config, config["images"])
    masks = [[mask_prompt(_disc(config["side"])) for _ in range(config["shots"])]]
    prompts = model.collate(masks, supports.sizes.cpu()).to(config["device"])

    def memorise() -> Memory:
        return model.memorise(model.encode(supports), prompts)

    def label(memory: Callable[[], Memory]) -> torch.Tensor:
        found = [model.segment(memory(), model.encode(_one(images, i)), _pair(config)).logits
                 for i in range(len(images))]
        return torch.cat(found)

    with torch.inference_mode():
        kept = memorise()
        same = bool(torch.allclose(label(lambda: kept), label(memorise), atol=1e-4))
        times = time_interleaved({"kept": lambda: label(lambda: kept), "again": lambda: label(memorise)},
                                 config["repeats"], config["device"])
    speeds = {f"{name}_images_per_s": config["images"] / t for name, t in times.items()}
    return {"ratio": times["again"] / times["kept"], "same_masks": same, "seconds": times, **speeds}


def _pictures(model: Segmenter, config: dict[str, Any], count: int) -> Images:
    rng = np.random.default_rng([config["seed"], count])
    side = config["side"]
    images: Images = model.prepare([rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)])
    moved: Images = images.to(config["device"])
    return moved


def _one(images: Images, i: int) -> Images:
    return Images(pixels=images.pixels[i : i + 1], sizes=images.sizes[i : i + 1])


def _pair(config: dict[str, Any]) -> torch.Tensor:
    return torch.zeros(1, 2, dtype=torch.int64, device=config["device"])


def _disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.asarray((y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 4) ** 2)
