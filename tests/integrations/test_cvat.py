"""The detection function for CVAT, driven by the real cvat-sdk and cvat-cli against a server of their API."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from pipelines.inference.label_sets import read_label_set
from pipelines.inference.masks import Label
from pipelines.inference.supports import SupportSet
from pipelines.integrations.photo_labeler import PhotoLabeler
from pipelines.labelling.formats.outline import polygons
from tests.fixtures.environments import run_tool, tool_environment
from tests.integrations.cvat_server import FUNCTION, LABEL_IDS, TASK, TOKEN, CvatServer, running_cvat
from tests.integrations.scenes import CLASSES, photo_folder, supports_folder
from tests.serving.helpers import supports_file

pytestmark = pytest.mark.slow
OWN = ("presence", "quality", "status")
REQUEST = {"type": "annotate_task", "task": TASK, "threshold": None, "conv_mask_to_poly": False,
           "mapping": {name: {"name": name, "attributes": {one: one for one in OWN}} for name in CLASSES}}
DRAWN = [  # in the first photo a mask of four pixels by two and a polygon; in the second what an agent drew
    {"frame": 0, "label_id": LABEL_IDS, "type": "mask", "source": "manual",
     "points": [0.0, 8.0, 20.0, 10.0, 23.0, 11.0]},
    {"frame": 0, "label_id": LABEL_IDS + 1, "type": "polygon", "source": "semi-auto",
     "points": [30.0, 40.0, 50.0, 40.0, 50.0, 60.0, 30.0, 60.0]},
    {"frame": 1, "label_id": LABEL_IDS, "type": "mask", "source": "auto", "points": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]}]


@dataclass(frozen=True)
class CvatRun:
    """What was sent to the server, printed and written as supports, and the labels (with instances) to be sent."""

    server: CvatServer
    printed: list[str]
    written: list[SupportSet]
    labels: list[Any]

    @property
    def pairs(self) -> list[tuple[int, str, Label]]:
        """(frame, class, label) of all."""
        return [(frame, name, label) for frame, labels in enumerate(self.labels)
                for name, label in zip(CLASSES, labels, strict=True)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bundle: str) -> CvatRun:
    python = tool_environment("consumers-cvat", ["cvat-cli==2.80.0", "cvat-sdk==2.80.0"])
    folder = tmp_path_factory.mktemp("cvat")
    photos, supports = photo_folder(folder / "photos", 2), supports_folder(folder / "supports")
    other = folder / "other"
    other.mkdir()
    supports_file(other).write_text(supports_file(other).read_text().replace('"ball"', '"moon"'))
    server = CvatServer(photos, [*CLASSES, "another"], OWN, requests=[dict(REQUEST)], drawn=DRAWN)
    with running_cvat(server):
        printed = run_tool(python, "-m", "tests.integrations.cvat_run", server.url, str(TASK), str(FUNCTION), supports,
                           str(other / "supports.json"), bundle, folder / "written",
                           CVAT_ACCESS_TOKEN=TOKEN, FSS_SHIPPED="", HOME=str(folder))
    labeler = PhotoLabeler(supports, bundle=bundle, device="cpu", instances="pieces")
    return CvatRun(server, printed.splitlines(), read_label_set(str(folder / "written" / "supports.json")),
                   labeler.label([photo.read_bytes() for photo in photos]))


def test_every_command_ends_as_it_should(run: CvatRun) -> None:
    said = [line for line in run.printed if line.startswith("-- ")]
    assert said[:6] == [f"-- {name} 0" for name in ("masks", "threshold", "polygons", "calibrated", "create", "agent")]
    assert said[6].startswith("-- other label 'moon' is not in dataset"), "the SDK's own check"
    assert said[7].startswith("-- mistake url names a service, which has a bundle and a device of its own (leave out")
    assert said[8] == "-- supports {'ball': 1, 'brick': 1}"
    assert len(run.server.uploads) == 4


def test_a_task_gets_the_masks_of_every_class(run: CvatRun) -> None:
    shapes = run.server.uploads[0]
    for frame, name, label in run.pairs:
        truth, found = coco.decode(label.rle).astype(bool), run.server.mask(shapes, frame, name)
        assert (found & truth).sum() >= 0.99 * (found | truth).sum(), (frame, name)
        scores = [s["score"] for s in shapes
                  if (s["frame"], s["label_id"]) == (frame, LABEL_IDS + CLASSES.index(name))]
        assert scores == ([pytest.approx(label.score, abs=1e-3)] if label.area else [])


def test_a_threshold_and_polygons(run: CvatRun, tmp_path: Path, bundle: str) -> None:
    assert run.server.uploads[1] == []
    shapes = run.server.uploads[2]
    assert {s["type"] for s in shapes} == {"polygon"}
    labels = PhotoLabeler(supports_folder(tmp_path / "supports"), bundle=bundle, device="cpu", threshold=0.6).label(
        [run.server.photos[0].read_bytes()])[0]
    wanted = [one.ravel().tolist() for label in labels for one in polygons(coco.decode(label.rle).astype(bool))]
    assert [s["points"] for s in shapes if s["frame"] == 0] == wanted


def test_a_calibrated_bundle_fills_the_attributes(run: CvatRun) -> None:
    shapes = run.server.uploads[3]
    assert {s["label_id"] for s in shapes} == {LABEL_IDS, LABEL_IDS + 1}
    for shape in shapes:
        assert run.server.checked(shape).any()
        assert [a["spec_id"] for a in shape["attributes"]] == [90, 91, 92], "the task's ids"
        presence, quality, status = [a["value"] for a in shape["attributes"]]
        assert 0 <= float(quality) <= float(presence) <= 1
        assert status in ("accepted", "review")


def test_what_people_drew_becomes_supports(run: CvatRun) -> None:
    ball, brick = run.written
    assert (ball.class_name, brick.class_name) == CLASSES
    (images, prompts), (_, others) = ball.decoded(), brick.decoded()
    with Image.open(run.server.photos[0]) as photo:
        assert (images[0] == np.asarray(photo)).all()
    wanted = np.zeros(run.server.size(0), dtype=bool)
    wanted[10:12, 20:24] = True
    assert (np.asarray(prompts[0].mask) == wanted).all()
    wanted[:] = False
    wanted[40:60, 30:50] = True
    assert (np.asarray(others[0].mask) == wanted).all()


def test_an_agent_answers_a_request(run: CvatRun) -> None:
    (made,) = run.server.functions
    assert [label["name"] for label in made["labels_v2"]] == list(CLASSES)
    assert {label["type"] for label in made["labels_v2"]} == {"mask"}
    assert run.server.failed == []
    (answer,) = run.server.completed
    shapes = answer["annotations"]["shapes"]
    assert len(shapes) == sum(len(label.instances or ()) for _, _, label in run.pairs)
    assert all(run.server.checked(shape).any() for shape in shapes)
    assert {a["value"] for shape in shapes for a in shape["attributes"]} == {""}, "a bundle without a calibrator"
