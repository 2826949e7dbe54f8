"""Labelling ten classes in one pass, each photo encoded once, compared with ten passes of one class each: images/s.

A pass turns JPEG bytes into run-length masks with cached supports. `ratio` is how many times faster one pass is than
a pass for each class. The speed with a single class is also measured. Both ways must give the same masks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.labelling import fill_photos, prepare_bundle, write_supports
from benchmarks.timing import time_interleaved

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "shots": 1, "classes": 10, "count": 48,
                          "batch": 8, "pairs": 0, "repeats": 3, "data": "auto", "images": 60, "threads": 2,
                          "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Images/s with one class, with all classes in one pass, and with a pass for each class."""
    from fss_models.shipped.files import bundle_url
    from pipelines.config.mask_request import MaskRequest
    from pipelines.inference.label_sets import read_label_set
    from pipelines.inference.labeler import Labeler

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = config | {"bundle": prepare_bundle(config, folder)}
        what = fill_photos(config, folder)
        sets = read_label_set(str(write_supports(folder, config["shots"], config["classes"])))
        photos = [p.read_bytes() for p in sorted((folder / "photos").iterdir())]
        labeler = Labeler(bundle_url(config["bundle"]), config["device"])
    ids = tuple(labeler.add_support(s) for s in sets)
    together, batch = MaskRequest(support_ids=ids, pairs=config["pairs"]), config["batch"]

    def one_by_one() -> list[Any]:
        return [labeler.label_classes(photos, MaskRequest(support_ids=(i,)), batch) for i in ids]

    turned = [tuple(labels[0] for labels in photo) for photo in zip(*one_by_one(), strict=True)]
    same = turned == labeler.label_classes(photos, together, batch)
    times = time_interleaved({
        "one_class": lambda: labeler.label_classes(photos, MaskRequest(support_ids=ids[:1]), batch),
        "one_pass": lambda: labeler.label_classes(photos, together, batch),
        "one_by_one": one_by_one,
    }, config["repeats"], config["device"])
    speeds = {f"{name}_images_per_s": config["count"] / seconds for name, seconds in times.items()}
    return {"ratio": times["one_by_one"] / times["one_pass"], "same_masks": same, "photos": what,
            "one_pass_to_one_class": times["one_class"] / times["one_pass"], **speeds}
