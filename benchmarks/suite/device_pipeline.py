"""JPEG bytes to run lengths by the labelling engine, without Ray, compared with the bare model loop and with its bound.

pipeline  `Labeler.label`: decoding, model and run lengths overlap
bare      the model alone, on the same batches, which are on the device already
judge     of a calibrated bundle: the measures of a mask from which its presence and quality are estimated
bound     seconds that the pipeline cannot go below: on a GPU those of `bare`, or the CPU stages' on all cores if
          they are more; on a CPU the summed CPU time of all stages, spread over the threads

On a GPU `ratio` is bound to pipeline, in wall time. On a CPU it is the same in CPU time, that of the stages one after
another to that of the pipeline, which other work beside hardly changes; each stage has all threads, since two
hyperthreads of a core slow each other down. `wall_ratio` is in wall time. The masks of the
precision are compared with those of float32: `mean_iou_to_float32`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.episodes import first_set_pairs
from benchmarks.labelling import prepare_bundle
from benchmarks.photos import disc_supports, sized_photos
from benchmarks.timing import wall_and_cpu
from fss_models.clip import Images
from fss_models.run_lengths import encode_logits
from fss_models.shipped.files import bundle_url
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import mean_iou

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "size": [640, 480], "count": 64,
                          "batch": 8, "precision": "float32", "compile": False, "preprocessing": "published",
                          "repeats": 3, "data": "auto", "images": 16, "threads": 2, "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Photos a second of both ways, the bound, and the ratios."""
    with tempfile.TemporaryDirectory() as place:
        bundle = bundle_url(prepare_bundle(config, Path(place)))
        photos, what = sized_photos(config, Path(place), tuple(config["size"]), config["count"])
        options = {"precision": config["precision"], "preprocessing": config["preprocessing"],
                   "decoders": len(os.sched_getaffinity(0))}
        labeler = Labeler(bundle, config["device"], compiled=config["compile"], **options)
        plain = Labeler(bundle, config["device"], preprocessing=config["preprocessing"])
    supports = disc_supports(photos, 1)
    support = labeler.add_support(supports)
    found = _measure(labeler, photos, support, config)
    request = [(one, one.add_support(supports)) for one in (labeler, plain)]
    agreement = mean_iou(*(one.label_classes(photos[:16], MaskRequest(support_ids=(known,)), config["batch"])
                           for one, known in request))
    return {**found, "photos": what, "precision": labeler.execution.precision, "model": [labeler.info.method,
            labeler.info.preset, labeler.model.side], "mean_iou_to_float32": agreement}


@torch.inference_mode()
def _measure(labeler: Labeler, photos: list[bytes], support: str, config: dict[str, Any]) -> dict[str, Any]:
    execution, batch = labeler.execution, config["batch"]
    memory, prepared = labeler.memory(support), [labeler._preparer.whole(p) for p in photos]
    pairs = execution.indices(first_set_pairs(batch))
    batches = [Images.join(prepared[i:i + batch]).to(labeler.device)
               for i in range(0, len(photos) // batch * batch, batch)]
    sizes = [tuple(i.sizes[0].tolist()) for i in prepared]

    def bare() -> list[torch.Tensor]:
        found = []
        with execution.autocast():
            for images in batches:
                found.append(labeler.model.segment(memory, labeler.model.encode(images), pairs).logits.float())
        if execution.device.type == "cuda":
            torch.cuda.synchronize()
        return found

    logits, features = torch.cat(bare()).cpu().numpy(), labeler.model.encode(batches[0])
    found, known = labeler.model.segment(memory, features, pairs), labeler._stored(support).statistics

    def judge() -> None:
        for _ in batches:
            if labeler.judge and known:
                labeler.judge.measure_masks(found, features, pairs, [known])

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as threads:
        ways: dict[str, Callable[[], object]] = {
            "pipeline": lambda: labeler.label(photos, support, batch), "bare": bare, "judge": judge,
            "decode": lambda: list(threads.map(labeler._preparer.whole, photos)),
            "run_lengths": lambda: list(threads.map(lambda one: encode_logits(one[0], one[1], 0.0),
                                                    zip(logits, sizes, strict=False)))}
        wall, cpu = wall_and_cpu(ways, config["repeats"])
    host, model, cuda = cpu["decode"] + cpu["run_lengths"], cpu["bare"] + cpu["judge"], execution.device.type == "cuda"
    bound = max(wall["bare"], host / cores) if cuda else (host + model) / min(config["threads"], cores)
    by_wall, by_cpu = bound / wall["pipeline"], (host + model) / cpu["pipeline"]
    return {"ratio": by_wall if cuda else by_cpu, "wall_ratio": by_wall, "to_bare": wall["bare"] / wall["pipeline"],
            "images_per_s": {k: len(photos) / wall[k] for k in ("pipeline", "bare")} | {"bound": len(photos) / bound},
            "cpu_ms_a_photo": {k: 1000 * v / len(photos) for k, v in cpu.items()}}
