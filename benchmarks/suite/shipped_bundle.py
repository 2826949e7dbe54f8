"""Labelling with a bundle (default: the shipped one) on a CPU: images/s, start-up and peak memory, 1- and 5-shot.

Each number of shots is measured in a new process:

start_up  seconds from the start of the process to the first mask
labeler   JPEG bytes to run-length masks with cached supports
bare      the model alone, on photos that are already prepared
bound     the frozen trunk alone on the same batches, which every method on this trunk has to run

`ratio` is the speed of `labeler` divided by that of `bare`, and `bare_to_bound` the speed of `bare` divided by that of
`bound`.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.episodes import first_set_pairs
from benchmarks.labelling import prepare_bundle, run_apart
from benchmarks.photos import disc_supports, smooth_photo
from benchmarks.timing import time_interleaved

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "shots": [1, 5], "images": 32,
                          "width": 640, "height": 480, "batch": 8, "repeats": 5, "threads": 2, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Measure each number of shots in a new process. `ratio` is that of the first number of shots."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        config = config | {"bundle": prepare_bundle(config, Path(folder))}
        for shots in config["shots"]:
            found[f"{shots}-shot"] = run_apart("shipped_bundle", str(time.time()), str(shots), json.dumps(config))
    first = found[f"{config['shots'][0]}-shot"]
    return {"ratio": first["labeler_images_per_s"] / first["bare_images_per_s"], **found}


def measure(began: float, shots: int, config: dict[str, Any]) -> dict[str, Any]:
    """The figures of one number of shots, measured in this process. `began`: when the process was started."""
    import torch

    from fss_models.shipped.files import bundle_url
    from pipelines.inference.labeler import Labeler

    torch.set_num_threads(config["threads"])
    rng = np.random.default_rng(config["seed"])
    photos = [smooth_photo(rng, config["width"], config["height"], 16) for _ in range(config["images"])]
    labeler = Labeler(bundle_url(config["bundle"]))
    support = labeler.add_support(disc_supports(photos, shots))
    labeler.label(photos[:1], support, batch=1)
    start_up = time.time() - began
    batches, memory = _prepared(labeler, photos, config["batch"]), labeler.memory(support)
    pairs, trunk = first_set_pairs(config["batch"]), _trunk(labeler.model)
    with torch.inference_mode():
        times = time_interleaved({
            "labeler": lambda: labeler.label(photos, support, batch=config["batch"]),
            "bare": lambda: [labeler.model.segment(memory, labeler.model.encode(b), pairs) for b in batches],
            "bound": lambda: [trunk(b.pixels) for b in batches],
        }, config["repeats"])
    speeds = {f"{name}_images_per_s": config["images"] / seconds for name, seconds in times.items()}
    return {**speeds, "bare_to_bound": times["bound"] / times["bare"], "start_up_s": start_up,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "method": labeler.info.method,
            "preset": labeler.info.preset, "bundle_id": labeler.info.bundle_id}


def _prepared(labeler: Any, photos: list[bytes], batch: int) -> list[Any]:
    from fss_models.photo_files import decode_image

    images = [decode_image(p) for p in photos]
    return [labeler.model.prepare(images[i:i + batch]) for i in range(0, len(images), batch)]


def _trunk(model: Any) -> Any:
    """The trunk of a model that is based on SAM 2."""
    return next(m for name, m in model.named_modules() if name.endswith("trunk"))


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))))
