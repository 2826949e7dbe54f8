"""Labelling N images with one support set: one memory and batches of queries, compared with N separate episodes.

Published evaluation code encodes the supports and the query, and memorises the supports, in every episode. A third way
keeps the memory but takes one image at a time: `memory_ratio` is what the memory alone gains, `batch_ratio` the batch.
All ways give the same masks; the largest relative difference is reported (in bf16 the best candidate can change). Peak
memory is reported for each way on a GPU, and for the process. Needs only torch, timm and sam2.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.episodes import autocast, disc_marks, label_separately, label_together, noise_photos
from benchmarks.timing import time_interleaved
from fss_models import registry

CONFIG: dict[str, Any] = {"method": "sansa", "preset": "tiny", "config": {}, "shots": 1, "images": 16, "batch": 16,
                          "side": 640, "precision": "float32", "compile": False, "repeats": 3, "threads": 2,
                          "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Images a second of all ways, their ratios, the largest difference of the masks, and peak memory."""
    model = registry.build(config["method"], config["preset"], config["config"], seed=config["seed"])
    model = model.to(config["device"]).eval()
    _settle(model, config)
    supports, queries = (noise_photos(model, n, config["side"], config["seed"]).to(config["device"])
                         for n in (config["shots"], config["images"]))
    marks = disc_marks(model, supports, config["side"])

    def with_memory(batch: int) -> torch.Tensor:
        return torch.cat([*label_together(model, supports, marks, queries, batch)])

    def separate() -> torch.Tensor:
        return torch.cat([*label_separately(model, supports, marks, queries)])

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "together": lambda: with_memory(config["batch"]), "one_by_one": lambda: with_memory(1), "separate": separate}
    with torch.inference_mode(), autocast(config):
        batched, alone, single = (way() for way in ways.values())
        peaks = {name: _peak(way, config["device"]) for name, way in ways.items()}
        times = time_interleaved(ways, config["repeats"], config["device"])
    difference = torch.stack([(batched - other).abs().flatten(1).amax(1) / other.abs().flatten(1).amax(1)
                              for other in (alone, single)]).amax(0)
    speeds = {f"{name}_images_per_s": config["images"] / t for name, t in times.items()}
    return {"ratio": times["separate"] / times["together"], "memory_ratio": times["separate"] / times["one_by_one"],
            "batch_ratio": times["one_by_one"] / times["together"],
            "largest_relative_difference": float(difference.max()),
            "same_masks": bool((difference < 1e-3).all()) or config["precision"] == "bfloat16",
            "share_of_equal_pixels": float(((batched > 0) == (single > 0)).float().mean()),
            "encodes_per_image": {"together": 1 + config["shots"] / config["images"], "separate": 1 + config["shots"]},
            "seconds": times, "peak_bytes": peaks, "process_peak_bytes": _process_peak(), **speeds}


def _settle(model: Any, config: dict[str, Any]) -> None:
    """Compile the image encoder, which does nearly all of the work, if the setting `compile` is on."""
    if config["compile"]:
        encoder = model.core.sam.image_encoder
        encoder.forward = torch.compile(encoder.forward)


def _peak(way: Callable[[], object], device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats()
    way()
    return int(torch.cuda.max_memory_allocated())


def _process_peak() -> int:
    """Largest resident memory of the whole process so far, in bytes, including the model."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
