"""FiftyOne's own importer of COCO files reads instances as detections with masks, in an environment of its own.

Only the importer is run: a FiftyOne dataset would need a MongoDB server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from pipelines.inference.labeler import Labeler
from tests.labelling.test_instances import job, labeler, photos, rows_of, support  # noqa: F401

pytestmark = pytest.mark.slow
PLACE = Path(sys.prefix) / "consumers-fiftyone"
WANTED = ("fiftyone==1.22.1", "pycocotools==2.0.11")
SCRIPT = """
import json, sys
from fiftyone.utils.coco import COCODetectionDatasetImporter
found = {}
given = {"data_path": sys.argv[1], "labels_path": sys.argv[2], "label_types": "segmentations"}
with COCODetectionDatasetImporter(**given) as photos:
    for path, _, labels in photos:
        own = labels["segmentations"].detections if isinstance(labels, dict) else labels.detections
        found[path.rsplit("/", 1)[1]] = [[d.label, list(d.bounding_box), int(d.mask.sum())] for d in own]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of FiftyOne's environment, which is made once, in the project's environment."""
    stamp, interpreter = PLACE / "installed", PLACE / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != " ".join(WANTED):
        venv.create(PLACE, with_pip=True, clear=True)
        made = subprocess.run([interpreter, "-m", "pip", "install", "-q", *WANTED], capture_output=True, text=True,
                              timeout=800, check=False)
        if made.returncode:
            pytest.skip(f"cannot install {WANTED[0]}: {made.stderr.strip().splitlines()[-1]}")
        stamp.write_text(" ".join(WANTED))
    return interpreter


def test_fiftyone_imports_a_detection_for_each_instance(python: Path, job: Any, photos: Path,  # noqa: F811
                                                        labeler: Labeler) -> None:  # noqa: F811
    done = subprocess.run([python, "-c", SCRIPT, str(photos), job.out.path("labels.json")], capture_output=True,
                          text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for row in rows_of(job):
        wide, high = row["width"], row["height"]
        wanted = [["ball", pytest.approx([x / wide, y / high, w / wide, h / high]), one["area"]]
                  for one in row["instances"] for x, y, w, h in [one["bbox"]]]
        assert found[row["file_name"]] == wanted
