"""What a labelling job costs beside its model: listing, claiming, chunks and outputs, a million photos, in one process.

list      names and sizes of all photos below a folder
claim     the manifest with the hash of the list
left      the listing of parts before the first one
label     every chunk read, given to a model that does nothing, and written as a part
left_again  the listing of all parts
outputs   labels.json, failures.parquet and summary.json

Photos are empty files below `folder` (empty: the system's folder for temporary files). Seconds are of CPU time of the
process, of all its threads, because other work may run beside; `wall_s` are beside them. Memory is the peak above what
the process had before the stage. `ratio` is the time of `label` for a photo in the last tenth of the chunks to that in
the second tenth: 1 means that bookkeeping does not grow with the job.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from fss_models.presence import UNCALIBRATED
from fss_models.run_lengths import empty_mask
from pipelines.base.storage import Store
from pipelines.config.mask_request import MaskRequest
from pipelines.evaluation.speed import MemoryPeak
from pipelines.inference.masks import Labels, PhotoFailure, make_label
from pipelines.labelling.images import list_images
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import JobManifest, claim_folder, describe_images
from pipelines.labelling.outputs import write_outputs

CONFIG: dict[str, Any] = {"count": 1_000_000, "chunk": 64, "in_flight": 4, "folder": "", "threads": 1,
                          "seed": 0}
FOLDER = 1000  # photos of a folder


class NullEngine:
    """Finds nothing in every photo, at once."""

    request_bytes = photo_bytes = 32_000_000

    def __init__(self) -> None:
        self._label = make_label(empty_mask((480, 640)), 0.5, UNCALIBRATED)

    def label(self, images: list[bytes], request: MaskRequest, *, checked: bool = False) -> list[Labels | PhotoFailure]:
        """The same label for every photo."""
        return [(self._label,)] * len(images)


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Seconds and memory of each stage, and what they are for a million photos."""
    with tempfile.TemporaryDirectory(dir=config["folder"] or None) as place:
        _write(Path(place, "photos"), config["count"])
        stages = _Stages()
        images = stages("list", lambda: list_images(f"{place}/photos"))
        manifest = stages("claim", lambda: _claimed(Store(f"{place}/out"), images, config))
        job = LabellingJob(Store(f"{place}/out"), images, manifest)
        left = stages("left", job.chunks_left)
        ends: list[float] = []
        stages("label", lambda: job.run(NullEngine(), left, config["in_flight"],
                                        lambda *_: ends.append(time.process_time())))
        assert not stages("left_again", job.chunks_left)
        summary = stages("outputs", lambda: write_outputs(job.out, manifest))
        assert summary["without_object"] == config["count"]
    scale = 1e6 / config["count"]
    return {"ratio": _trend(ends), "stages": stages.found,
            "a_million_photos": {name: {k: round(v * scale, 3) for k, v in one.items()}
                                 for name, one in stages.found.items()}}


class _Stages:
    """Runs stages and keeps their figures."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        peak, wall, cpu = MemoryPeak("cpu"), time.perf_counter(), time.process_time()
        result = call()
        seconds = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        self.found[name] = {k: round(v, 3) for k, v in (*seconds.items(), ("peak_mb", peak.bytes() / 1e6))}
        return result


def _claimed(out: Store, images: Any, config: dict[str, Any]) -> JobManifest:
    manifest = JobManifest(**describe_images(images), class_name="thing", support_id="0" * 16, bundle_id="0" * 16,
                           method="prior", preset="debug", chunk=config["chunk"], batch=8, limit=0, code_version="0")
    claim_folder(out, manifest)
    return manifest


def _trend(ends: list[float]) -> float:
    tenth = max(1, len(ends) // 10)
    took = [b - a for a, b in pairwise(ends)]
    early, late = took[tenth:2 * tenth] or took, took[-tenth:] or took
    return statistics.mean(late) / max(statistics.mean(early), 1e-9) if took else 1.0


def _write(folder: Path, count: int) -> None:
    """Empty files with the names of photos."""
    for first in range(0, count, FOLDER):
        place = folder / f"{first // FOLDER:06d}"
        place.mkdir(parents=True)
        for number in range(first, min(first + FOLDER, count)):
            os.close(os.open(place / f"{number:09d}.jpg", os.O_CREAT | os.O_WRONLY))
