"""Labelling photos again with kept features (`label.features=keep`), compared with labelling them anew, in CPU time.

anew   JPEG bytes to run lengths without kept features
first  the same, and features are stored
again  with what `first` stored, for another support and threshold

`ratio` is anew to again. `bytes_a_photo` is what is stored for one photo.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.labelling import prepare_bundle
from benchmarks.photos import disc_supports, sized_photos
from fss_models.shipped.files import bundle_url
from pipelines.inference.labeler import Labeler

CONFIG: dict[str, Any] = {"bundle": "shipped", "method": "", "preset": "nano", "count": 2000, "chunk": 64, "batch": 8,
                          "size": [640, 480], "data": "auto", "images": 60, "threads": 2, "device": "cpu", "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of CPU time a photo of the three ways, their ratio, and the size of what is stored."""
    with tempfile.TemporaryDirectory() as place:
        photos, what = sized_photos(config, Path(place), tuple(config["size"]), config["count"])
        kept, url = Path(place, "kept"), bundle_url(prepare_bundle(config, Path(place)))
        plain, keeping = Labeler(url, config["device"]), Labeler(url, config["device"], features_url=str(kept))
        supports, others = disc_supports(photos, 1), disc_supports(photos[1:], 1)
        for labeler in (plain, keeping):
            labeler.label(photos[:config["batch"]], labeler.add_support(supports), config["batch"])
            labeler.add_support(others)
        ways: dict[str, Callable[[list[bytes]], object]] = {
            "anew": lambda some: plain.label(some, others.support_id, config["batch"], 0.4),
            "first": lambda some: keeping.label(some, supports.support_id, config["batch"]),
            "again": lambda some: keeping.label(some, others.support_id, config["batch"], 0.4)}
        took = dict.fromkeys(ways, 0.0)
        for first in range(0, len(photos), config["chunk"]):
            for name, way in ways.items():
                began = time.process_time()
                way(photos[first:first + config["chunk"]])
                took[name] += 1000 * (time.process_time() - began) / len(photos)
        stored = sum(f.stat().st_size for f in kept.rglob("*.safetensors"))
    return {"ratio": took["anew"] / took["again"], "cpu_ms_a_photo": took, "photos": what,
            "bytes_a_photo": stored / (len(photos) + config["batch"])}
