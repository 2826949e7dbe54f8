"""A job of several classes: its rows, its COCO file, and its equality with one job for each class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from fss_models.errors import FssError
from pipelines.inference.labeler import Labeler
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.outputs import summary_line, write_outputs
from pipelines.labelling.parts import part_name
from tests.inference.test_classes import support_set
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import photo_folder

NAMES = ["ball", "noise"]


@pytest.fixture(scope="module")
def labeler(bundle: str) -> Labeler:
    return Labeler(bundle)


@pytest.fixture(scope="module")
def ids(labeler: Labeler) -> list[str]:
    return [labeler.add_support(s) for s in (support_set("ball", 1000), support_set("noise", 1001, invert=True))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = photo_folder(tmp_path_factory.mktemp("photos") / "p", 10)
    (folder / "0002.jpg").write_bytes(b"no photo")
    return folder


def run(photos: Path, out: Path, labeler: Labeler, ids: list[str], **changes: object) -> dict[str, object]:
    job = make_job(photos, out, "", labeler, class_names=NAMES, support_ids=ids, **changes)
    job.run(DirectEngine(labeler), job.chunks_left(), 1)
    return write_outputs(job.out, job.manifest)


def test_as_many_jobs_of_one_class(photos: Path, tmp_path: Path, labeler: Labeler, ids: list[str]) -> None:
    """The rows of each class equal those of a job with this class; an unreadable photo has one row without a class."""
    run(photos, tmp_path / "both", labeler, ids)
    both = [r for c in range(2) for r in pq.read_table(tmp_path / "both" / part_name(c)).to_pylist()]
    for name, support_id in zip(NAMES, ids, strict=True):
        job = make_job(photos, tmp_path / name, support_id, labeler, class_name=name)
        job.run(DirectEngine(labeler), job.chunks_left(), 1)
        alone = [r for c in range(2) for r in pq.read_table(tmp_path / name / part_name(c)).to_pylist()]
        assert [r for r in both if r["class_name"] == name] == [r for r in alone if not r["error"]]
    (bad,) = [r for r in both if r["error"]]
    assert (bad["file_name"], bad["class_name"], bad["stage"]) == ("0002.jpg", None, "decode")
    assert [r["image_id"] for r in both] == sorted(r["image_id"] for r in both)


def test_outputs_of_a_semantic_job(photos: Path, tmp_path: Path, labeler: Labeler, ids: list[str]) -> None:
    summary = run(photos, tmp_path, labeler, ids, overlaps="resolve", threshold=0.3)
    assert (summary["images"], summary["with_object"], summary["failed"]) == (10, 9, 1)
    assert summary["with_class"] == {"ball": 9, "noise": 9}
    assert "9 with a mask of 2 classes" in summary_line(summary)
    labels = COCO(str(tmp_path / "labels.json"))
    assert [c["name"] for c in labels.loadCats(labels.getCatIds())] == NAMES
    assert len(labels.imgs) == 9
    assert len({a["id"] for a in labels.anns.values()}) == len(labels.anns) == 18
    for image in labels.imgs:
        masks = [labels.annToMask(a) for a in labels.loadAnns(labels.getAnnIds(image))]
        assert np.sum(masks, axis=0).max() == 1


def test_manifests_of_one_class_stay_as_they_were(photos: Path, tmp_path: Path, labeler: Labeler,
                                                  ids: list[str]) -> None:
    """Would catch a change of the manifest after which jobs of earlier versions cannot be resumed."""
    make_job(photos, tmp_path / "one", ids[0], labeler)
    written = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert set(written) == {
        "version", "images_url", "images_count", "images_hash", "class_name", "support_id", "bundle_id", "method",
        "preset", "chunk", "batch", "threshold", "limit", "max_pixels", "max_bytes", "code_version"}
    make_job(photos, tmp_path / "one", ids[0], labeler)
    make_job(photos, tmp_path / "two", "", labeler, class_names=NAMES, support_ids=ids)
    with pytest.raises(FssError, match="its overlaps is None, but this job's is 'resolve'"):
        make_job(photos, tmp_path / "two", "", labeler, class_names=NAMES, support_ids=ids, overlaps="resolve")
    again = JobManifest.model_validate(json.loads((tmp_path / "two" / "manifest.json").read_text()))
    assert again.classes == NAMES
    assert again.mask_request.support_ids == tuple(ids)
