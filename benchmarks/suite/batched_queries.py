"""Labelling N images with one support set: one memory and batches of queries, compared with N separate episodes.

Published evaluation code encodes the supports and the query, and memorises the supports, in every episode. Both ways
give the same masks; the largest relative difference is reported (in bf16 the best candidate can change). Peak memory
is reported for each way on a GPU, and for the process. Needs only torch, timm and sam2.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from benchmarks.timing import time_interleaved
from fss_models import registry
from fss_models.clip import Images
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter

CONFIG: dict[str, Any] = {"method": "sansa", "preset": "tiny", "config": {}, "shots": 1, "images": 16, "batch": 16,
                          "side": 640, "precision": "float32", "compile": False, "repeats": 3, "threads": 2,
                          "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Images a second of both ways, their ratio, the largest difference of the masks, and peak memory."""
    model = registry.build(config["method"], config["preset"], config["config"], seed=config["seed"])
    model = model.to(config["device"]).eval()
    _settle(model, config)
    supports, queries = (_pictures(model, config, n) for n in (config["shots"], config["images"]))
    marks = model.collate([[mask_prompt(_disc(config["side"])) for _ in range(config["shots"])]], supports.sizes.cpu())
    marks = marks.to(config["device"])

    def together() -> torch.Tensor:
        memory, found = model.memorise(model.encode(supports), marks), []
        for first in range(0, len(queries), config["batch"]):
            chunk = _some(queries, first, config["batch"])
            pairs = torch.stack([torch.zeros(len(chunk)), torch.arange(len(chunk))], dim=1).long()
            found.append(model.segment(memory, model.encode(chunk), pairs.to(config["device"])).logits.float())
        return torch.cat(found)

    def separate() -> torch.Tensor:
        found = []
        pair = torch.tensor([[0, config["shots"]]], device=config["device"])
        for i in range(len(queries)):
            query = _some(queries, i, 1)
            frames = Images(pixels=torch.cat([supports.pixels, query.pixels]),
                            sizes=torch.cat([supports.sizes, query.sizes]))
            features = model.encode(frames)
            found.append(model.segment(model.memorise(features, marks), features, pair).logits.float())
        return torch.cat(found)

    with torch.inference_mode(), _precision(config):
        batched, single = together(), separate()
        peaks = {name: _peak(way, config["device"]) for name, way in (("together", together), ("separate", separate))}
        times = time_interleaved({"together": together, "separate": separate}, config["repeats"], config["device"])
    difference = (batched - single).abs().flatten(1).amax(1) / single.abs().flatten(1).amax(1)
    speeds = {f"{name}_images_per_s": config["images"] / t for name, t in times.items()}
    return {"ratio": times["separate"] / times["together"], "largest_relative_difference": float(difference.max()),
            "same_masks": bool((difference < 1e-3).all()) or config["precision"] == "bfloat16",
            "share_of_equal_pixels": float(((batched > 0) == (single > 0)).float().mean()),
            "encodes_per_image": {"together": 1 + config["shots"] / config["images"], "separate": 1 + config["shots"]},
            "seconds": times, "peak_bytes": peaks, "process_peak_bytes": _process_peak(), **speeds}


def _settle(model: Any, config: dict[str, Any]) -> None:
    """Compile the image encoder, which does nearly all of the work, if the setting `compile` is on."""
    if config["compile"]:
        encoder = model.core.sam.image_encoder
        encoder.forward = torch.compile(encoder.forward)


def _precision(config: dict[str, Any]) -> AbstractContextManager[Any]:
    device = config["device"].split(":")[0]
    return torch.autocast(device, dtype=torch.bfloat16, enabled=config["precision"] == "bfloat16")


def _peak(way: Callable[[], object], device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats()
    way()
    return int(torch.cuda.max_memory_allocated())


def _process_peak() -> int:
    """Largest resident memory of the whole process so far, in bytes, including the model."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _pictures(model: Segmenter, config: dict[str, Any], count: int) -> Images:
    rng = np.random.default_rng([config["seed"], count])
    side = config["side"]
    images: Images = model.prepare([rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)])
    moved: Images = images.to(config["device"])
    return moved


def _some(images: Images, first: int, count: int) -> Images:
    return Images(pixels=images.pixels[first : first + count], sizes=images.sizes[first : first + count])


def _disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.asarray((y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 4) ** 2)
