"""Labelling with one support set: its memory computed once, compared with computing it again for every image.

Both ways encode every image once and give the same masks, which is checked. They differ only in whether the supports
are encoded and memorised again. Needs only torch, timm and sam2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.episodes import disc_marks, first_set_pairs, noise_photos
from benchmarks.timing import time_interleaved
from fss_models import registry
from fss_models.clip import Memory

CONFIG: dict[str, Any] = {"method": "prior", "preset": "nano", "shots": 5, "images": 8, "side": 480, "repeats": 5,
                          "threads": 1, "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Images a second of both ways, and their ratio."""
    torch.manual_seed(config["seed"])
    model = registry.build(config["method"], config["preset"]).to(config["device"]).eval()
    supports, images = (noise_photos(model, n, config["side"], config["seed"]).to(config["device"])
                        for n in (config["shots"], config["images"]))
    prompts, pair = disc_marks(model, supports, config["side"]), first_set_pairs(1, config["device"])

    def memorise() -> Memory:
        return model.memorise(model.encode(supports), prompts)

    def label(memory: Callable[[], Memory]) -> torch.Tensor:
        return torch.cat([model.segment(memory(), model.encode(images.rows(i, i + 1)), pair).logits
                          for i in range(len(images))])

    with torch.inference_mode():
        kept = memorise()
        same = bool(torch.allclose(label(lambda: kept), label(memorise), atol=1e-4))
        times = time_interleaved({"kept": lambda: label(lambda: kept), "again": lambda: label(memorise)},
                                 config["repeats"], config["device"])
    speeds = {f"{name}_images_per_s": config["images"] / t for name, t in times.items()}
    return {"ratio": times["again"] / times["kept"], "same_masks": same, "seconds": times, **speeds}
