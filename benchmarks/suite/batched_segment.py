"""One support set and N images: all images in one batch, compared with one image at a time.

Needs only torch, timm and sam2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.timing import time_interleaved
from fss_models import registry
from fss_models.clip import Images
from fss_models.prompts import mask_prompt

CONFIG: dict[str, Any] = {"method": "prior", "preset": "nano", "images": 8, "side": 480, "repeats": 5, "threads": 1,
                          "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Images/s of both ways, and their ratio."""
    torch.manual_seed(config["seed"])
    model = registry.build(config["method"], config["preset"]).to(config["device"]).eval()
    rng, side, count = np.random.default_rng(config["seed"]), config["side"], config["images"]
    pictures = model.prepare([rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)])
    images: Images = pictures.to(config["device"])
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    pairs = torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], dim=1).to(config["device"])
    with torch.inference_mode():
        support = Images(pixels=images.pixels[:1], sizes=images.sizes[:1])
        prompts = model.collate([[mask_prompt(mask)]], support.sizes.cpu()).to(config["device"])
        memory = model.memorise(model.encode(support), prompts)

        def together() -> torch.Tensor:
            return model.segment(memory, model.encode(images), pairs).logits

        def single() -> torch.Tensor:
            ones = [Images(pixels=images.pixels[i : i + 1], sizes=images.sizes[i : i + 1]) for i in range(count)]
            return torch.cat([model.segment(memory, model.encode(one), pairs[:1]).logits for one in ones])

        same = bool(torch.allclose(together(), single(), atol=1e-3))
        times = time_interleaved({"together": together, "single": single}, config["repeats"], config["device"])
    speeds = {f"{name}_images_per_s": count / t for name, t in times.items()}
    return {"ratio": times["single"] / times["together"], "same_masks": same, "seconds": times, **speeds}
