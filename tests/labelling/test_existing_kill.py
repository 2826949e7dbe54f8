"""A job with annotations that were there is killed twice: its files equal those of an undisturbed one.

Would catch annotations of one photo in the part of another, kept masks that a resumed job computes anew, and an index
that does not travel to the actors. Slow: real processes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.labelling.commands import PHOTOS, QuietJob, started, written
from tests.serving.helpers import photo_folder, run_fss, supports_file

pytestmark = pytest.mark.slow


def annotations(place: Path, photos: Path) -> int:
    """Write COCO polygons, the lower left quarter of every third photo. Returns their number."""
    document: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": [
        {"id": 7, "name": "ball"}]}
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[::3], 1):
        width, height = Image.open(path).size
        document["images"].append({"id": number, "file_name": str(path.relative_to(photos)), "width": width,
                                   "height": height})
        x, y = width // 2, height // 2
        document["annotations"].append({"id": number, "image_id": number, "category_id": 7, "iscrowd": 0,
                                        "segmentation": [[0, y, x, y, x, height, 0, height]]})
    place.write_text(json.dumps(document))
    return len(document["annotations"])


@pytest.mark.parametrize("engine", ["serve", "actors"])
def test_a_killed_job_that_keeps_annotations(engine: str, bundle: str, tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "given" / "photos", PHOTOS)
    supports_file(tmp_path / "given")
    count = annotations(tmp_path / "there.json", photos)
    quiet = QuietJob(str(tmp_path / "given"), bundle)
    more = ("--engine", engine, "--existing", str(tmp_path / "there.json"), "--set", "label.in_flight=2")
    plain = run_fss(*quiet.words(tmp_path / "plain", *more), timeout=400)
    assert plain.returncode == 0, plain.stderr
    assert f"labels kept as they were: {count}" in plain.stdout
    quiet = replace(quiet, files=written(tmp_path / "plain"))
    out = tmp_path / "out"
    for parts in (4, 12):
        with started(quiet.words(out, *more), out, tmp_path / "log") as command:
            command.wait_for_parts(parts)
            command.kill()
    ended = run_fss(*quiet.words(out, *more), timeout=400)
    assert ended.returncode == 0, ended.stderr
    quiet.assert_same(out)
    rows = pq.read_table(out / "parts").to_pylist()
    kept = [r for r in rows if r["origin"] == "existing"]
    assert len(kept) == count
    assert np.array_equal([r["area"] for r in kept], [(r["height"] - r["height"] // 2) * (r["width"] // 2)
                                                     for r in kept])
