"""Time to label 10,000 images from one example, from the command's start to its last output.

It follows SANSA's annotation test (NeurIPS 2025): 10,000 images of COCO or LVIS, fold 0, on an RTX 4090; the paper
states 16 minutes for SANSA, 38 for VRP-SAM, 58 for GF-SAM, 77 for SegIC. Another bundle or other photos:
`--set bundle=PATH --set data=FOLDER`; if there are fewer photos, they are repeated. `ratio` is the rate of the whole
command, with start-up and outputs, divided by the rate of its middle.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks import labelling

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "count": 10_000, "chunk": 64,
                          "batch": 8, "engine": "serve", "data": "auto", "images": 200, "threads": 2, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Minutes and images/s of the whole command, and the images/s of its middle."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = config | {"bundle": labelling.prepare_bundle(config, folder)}
        what, supports, out = labelling.fill_photos(config, folder), labelling.write_supports(folder, 1), folder / "out"
        seconds = labelling.run_fss(*labelling.label_words(folder, supports, out), "--bundle", config["bundle"],
                                    "--engine", config["engine"], *labelling.job_words(config), folder=folder)
        middle = labelling.images_per_s(out, config["chunk"])
    return {"ratio": config["count"] / seconds / middle, "minutes": seconds / 60, "photos": what,
            "images_per_s": config["count"] / seconds, "middle_images_per_s": middle}
