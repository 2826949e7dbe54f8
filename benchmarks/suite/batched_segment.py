"""One support set and N images: all images in one batch, compared with one image at a time.

Needs only torch, timm and sam2.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.episodes import disc_marks, first_set_pairs, noise_photos
from benchmarks.timing import time_interleaved
from fss_models import registry
from fss_models.clip import Images

CONFIG: dict[str, Any] = {"method": "prior", "preset": "nano", "images": 8, "side": 480, "repeats": 5, "threads": 1,
                          "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Images/s of both ways, and their ratio."""
    torch.manual_seed(config["seed"])
    model = registry.build(config["method"], config["preset"]).to(config["device"]).eval()
    count, side = config["images"], config["side"]
    images: Images = noise_photos(model, count, side, config["seed"]).to(config["device"])
    pairs = first_set_pairs(count, config["device"])
    with torch.inference_mode():
        support = images.rows(0, 1)
        memory = model.memorise(model.encode(support), disc_marks(model, support, side))

        def together() -> torch.Tensor:
            return model.segment(memory, model.encode(images), pairs).logits

        def single() -> torch.Tensor:
            return torch.cat([model.segment(memory, model.encode(images.rows(i, i + 1)), pairs[:1]).logits
                              for i in range(count)])

        same = bool(torch.allclose(together(), single(), atol=1e-3))
        times = time_interleaved({"together": together, "single": single}, config["repeats"], config["device"])
    speeds = {f"{name}_images_per_s": count / t for name, t in times.items()}
    return {"ratio": times["single"] / times["together"], "same_masks": same, "seconds": times, **speeds}
