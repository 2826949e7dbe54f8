"""What a photo costs by stage, in milliseconds of CPU time: the plain way compared with what labelling does.

plain     all pixels are decoded and resized as published, the logits are enlarged to a whole map, cut and encoded
labelling the same preprocessing, run lengths from the logits themselves (the same bytes)
fast      also a JPEG decode at a fraction of the size, and the quicker resize (`label.preprocessing=fast`)

CPU time, with one thread, is used because other work may run beside. `ratio` is that of the enlarging and run lengths
of the largest photos, plain to labelling. A whole photo's ratio is given for each size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

from benchmarks.episodes import first_set_pairs
from benchmarks.labelling import prepare_bundle
from benchmarks.photos import disc_supports, sized_photos
from benchmarks.timing import wall_and_cpu
from fss_models.photo_files import decode_image, decode_reduced
from fss_models.run_lengths import encode_logits
from fss_models.shipped.files import bundle_url
from pipelines.inference.labeler import Labeler
from pipelines.inference.preparing import resize_mode

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano",
                          "sizes": [[640, 480], [1920, 1080], [4032, 3024]], "count": 8,
                          "batch": 8, "repeats": 3, "data": "auto", "images": 8, "threads": 1, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds a photo by stage for each size."""
    found, what = {}, ""
    with tempfile.TemporaryDirectory() as place:
        labeler = Labeler(bundle_url(prepare_bundle(config, Path(place))))
        for width, height in config["sizes"]:
            photos, what = sized_photos(config, Path(place) / f"{width}", (width, height), config["count"])
            found[f"{width}x{height}"] = _stages(labeler, photos, config)
    last = list(found.values())[-1]
    return {"ratio": last["plain"]["masks"] / last["labelling"]["masks"], "photos": what, "cpu_ms_a_photo": found}


@torch.inference_mode()
def _stages(labeler: Labeler, photos: list[bytes], config: dict[str, Any]) -> dict[str, Any]:
    model, side = labeler.model, labeler.model.side
    memory = labeler.memory(labeler.add_support(disc_supports(photos, 1)))
    pixels, small = [decode_image(p) for p in photos], [decode_reduced(p, 2 * side)[0] for p in photos]
    sizes = [p.shape[:2] for p in pixels]
    batches = [model.prepare(pixels[i:i + config["batch"]]) for i in range(0, len(photos), config["batch"])]

    def segmented() -> list[torch.Tensor]:
        return [logits for b in batches
                for logits in model.segment(memory, model.encode(b), first_set_pairs(len(b))).logits.float()]

    logits = segmented()

    def whole_maps() -> list[Any]:
        return [_whole(one, size, model.corners_aligned) for one, size in zip(logits, sizes, strict=True)]

    def run_lengths() -> list[Any]:
        return [encode_logits(one.numpy(), size, 0.0, corners=model.corners_aligned)
                for one, size in zip(logits, sizes, strict=True)]

    assert whole_maps() == run_lengths()
    ways: dict[str, Callable[[], object]] = {
        "decode": lambda: [decode_image(p) for p in photos],
        "prepare": lambda: [model.prepare([p], "published") for p in pixels],
        "decode_reduced": lambda: [decode_reduced(p, 2 * side) for p in photos],
        "prepare_fast": lambda: [model.prepare([p], resize_mode(p, side)) for p in small],
        "model": segmented, "whole_maps": whole_maps, "run_lengths": run_lengths}
    took = {k: 1000 * v / len(photos) for k, v in wall_and_cpu(ways, config["repeats"])[1].items()}
    rows = {"plain": ("decode", "prepare", "model", "whole_maps"),
            "labelling": ("decode", "prepare", "model", "run_lengths"),
            "fast": ("decode_reduced", "prepare_fast", "model", "run_lengths")}
    stages = {row: dict(zip(("decode", "prepare", "model", "masks"), (took[n] for n in names), strict=True))
              for row, names in rows.items()}
    totals = {row: sum(one.values()) for row, one in stages.items()}
    return {**stages, "photos_a_cpu_second": {row: 1000 / total for row, total in totals.items()},
            "ratios": {row: totals["plain"] / totals[row] for row in ("labelling", "fast")}}


def _whole(logits: torch.Tensor, size: tuple[int, int], corners: bool) -> Any:
    turned = logits.transpose(0, 1)[None, None]
    large = F.interpolate(turned, size=size[::-1], mode="bilinear", align_corners=corners)[0, 0]
    return coco.encode(np.asfortranarray((large > 0).to(torch.uint8).numpy().T))
