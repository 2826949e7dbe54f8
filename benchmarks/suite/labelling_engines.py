"""Labelling jobs of real photos with each engine, compared with the model alone and with a plain loop: images/s.

All ways run in turn, in their own processes with the same number of torch threads:

bare     the model alone, on photos that are already prepared
decoded  a plain loop of decoding, model, resizing to full size and run lengths, one batch after another
actors   `fss label --engine actors`
handle   `fss label` with its own deployment
http     `fss label` through `fss serve` over HTTP

The rate of a job is that of its middle parts, without start-up. `ratio` is the rate of the slowest job divided by that
of `decoded`. `cpu_ms_a_photo` shows the CPU time by process: on a machine without a spare core, all other processes
take their time from the model. A job of a bundle with a calibrator also computes presence and quality, which the plain
loop does not.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import labelling
from benchmarks.episodes import first_set_pairs
from benchmarks.timing import seconds_of

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "shots": 1, "count": 768, "chunk": 32,
                          "batch": 8, "rounds": 2, "data": "auto", "images": 60, "threads": 2, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The median rate of each way over the rounds, and the ratios of the jobs to the loops."""
    rates: dict[str, list[float]] = {name: [] for name in ("bare", "decoded", "actors", "handle", "http")}
    took: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = config | {"bundle": labelling.prepare_bundle(config, folder)}
        what = labelling.fill_photos(config, folder)
        supports = labelling.write_supports(folder, config["shots"])
        for number in range(config["rounds"]):
            alone = labelling.run_apart("labelling_engines", json.dumps(config), str(folder))
            took["decoded"] = {"model": alone.pop("decoded_cpu_ms")}
            for name, rate in alone.items():
                rates[name].append(rate)
            for name in ("actors", "handle", "http"):
                rate, took[name] = _job(name, config, folder, supports, folder / f"{name}-{number}")
                rates[name].append(rate)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    slowest = min(middle[name] for name in ("actors", "handle", "http"))
    return {"ratio": slowest / middle["decoded"], "photos": what, "cpu_ms_a_photo": took,
            **{f"{name}_images_per_s": value for name, value in middle.items()},
            **{f"{name}_to_decoded": middle[name] / middle["decoded"] for name in ("actors", "handle", "http")},
            **{f"{name}_to_bare": middle[name] / middle["bare"] for name in ("actors", "handle", "http")}}


def _job(name: str, config: dict[str, Any], folder: Path, supports: Path, out: Path) -> tuple[float, dict[str, float]]:
    """Run a job: its rate in images/s, and milliseconds of CPU time a photo by role."""
    changes = [*labelling.job_words(config), *labelling.set_words({"serve.max_batch": config["batch"]})]
    command = [*labelling.label_words(folder, supports, out), *changes]
    parts = config["count"] // config["chunk"]
    if name == "http":
        with labelling.run_service("--bundle", config["bundle"], *changes, folder=folder) as (url, pid):
            account = labelling.CpuAccount(out, parts, more=(pid,))
            labelling.run_fss(*command, "--service", url, folder=folder, on_poll=account.sample)
    else:
        engine = "actors" if name == "actors" else "serve"
        account = labelling.CpuAccount(out, parts)
        labelling.run_fss(*command, "--bundle", config["bundle"], "--engine", engine, folder=folder,
                          on_poll=account.sample)
    return labelling.images_per_s(out, config["chunk"]), account.ms_a_photo(config["chunk"])


def measure_loops(config: dict[str, Any], folder: Path) -> dict[str, float]:
    """Images/s of the model alone and of a plain loop with every step of a label, and the loop's CPU time a photo."""
    import torch

    from fss_models.photo_files import decode_image
    from fss_models.run_lengths import encode_logits
    from fss_models.shipped.files import bundle_url
    from pipelines.inference.labeler import Labeler
    from pipelines.inference.masks import make_label
    from pipelines.inference.support_files import read_support_file

    torch.set_num_threads(config["threads"])
    labeler, batch = Labeler(bundle_url(config["bundle"])), config["batch"]
    model = labeler.model
    memory = labeler.memory(labeler.add_support(read_support_file(str(folder / "supports.json"))))
    files = sorted((folder / "photos").iterdir())[:config["count"] // 4 // batch * batch]
    pairs = first_set_pairs(batch)

    def prepared(first: int) -> Any:
        return model.prepare([decode_image(f.read_bytes(), exif=True) for f in files[first:first + batch]])

    def plain(first: int) -> list[Any]:
        images = prepared(first)
        found = model.segment(memory, model.encode(images), pairs)
        sizes = [tuple(s) for s in images.sizes.tolist()]
        masks = [encode_logits(one.numpy(), size, 0.0, corners=model.corners_aligned)
                 for one, size in zip(found.logits.float(), sizes, strict=True)]
        return [make_label(mask, score) for mask, score in zip(masks, found.scores.tolist(), strict=True)]

    with torch.inference_mode():
        ready = [prepared(first) for first in range(0, len(files), batch)]
        for images in ready:  # warm up
            model.segment(memory, model.encode(images), pairs)
        bare = seconds_of(lambda: [model.segment(memory, model.encode(images), pairs) for images in ready])
        began = time.process_time()
        decoded = seconds_of(lambda: [plain(first) for first in range(0, len(files), batch)])
        used = 1000 * (time.process_time() - began) / len(files)
    return {"bare": len(files) / bare, "decoded": len(files) / decoded, "decoded_cpu_ms": used}


if __name__ == "__main__":
    print(json.dumps(measure_loops(json.loads(sys.argv[1]), Path(sys.argv[2]))))
