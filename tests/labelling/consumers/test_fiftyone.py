"""FiftyOne's own importer of COCO files reads instances as detections with masks, in an environment of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.inference.labeler import Labeler
from tests.fixtures.environments import FIFTYONE, run_tool, tool_environment
from tests.labelling.test_instances import job, photos, rows_of  # noqa: F401

pytestmark = pytest.mark.slow
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
    return tool_environment("consumers-fiftyone", FIFTYONE)


def test_fiftyone_imports_a_detection_for_each_instance(python: Path, job: Any, photos: Path,  # noqa: F811
                                                        labeler: Labeler) -> None:
    printed = run_tool(python, "-c", SCRIPT, photos, job.out.path("labels.json"))
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    for row in rows_of(job):
        wide, high = row["width"], row["height"]
        wanted = [["ball", pytest.approx([x / wide, y / high, w / wide, h / high]), one["area"]]
                  for one in row["instances"] for x, y, w, h in [one["bbox"]]]
        assert found[row["file_name"]] == wanted
