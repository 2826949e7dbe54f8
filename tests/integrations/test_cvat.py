"""The detection function for CVAT, driven by the real cvat-sdk and cvat-cli against a server of their API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from pipelines.integrations.photo_labeler import PhotoLabeler
from pipelines.labelling.formats.outline import polygons
from tests.fixtures.environments import run_tool, tool_environment
from tests.integrations.cvat_server import TASK, TOKEN, CvatServer, running_cvat
from tests.integrations.scenes import CLASSES, photo_folder, supports_folder

pytestmark = pytest.mark.slow
MODULE = "pipelines.integrations.cvat"
COUNT = 3
REQUEST = {"type": "annotate_task", "task": TASK, "threshold": None, "conv_mask_to_poly": False,
           "mapping": {"ball": {"name": "ball"}, "brick": {"name": "brick"}}}


@pytest.fixture(scope="module")
def python() -> Path:
    return tool_environment("consumers-cvat", ["cvat-cli==2.80.0", "cvat-sdk==2.80.0"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photo_folder(tmp_path_factory.mktemp("scenes") / "photos", COUNT)


@pytest.fixture(scope="module")
def supports(tmp_path_factory: pytest.TempPathFactory) -> str:
    return supports_folder(tmp_path_factory.mktemp("given") / "supports")


def cli(python: Path, server: CvatServer, *arguments: str, supports: str, bundle: str, more: Sequence[str] = ()) -> str:
    """Run cvat-cli with the function, whose parameters are `more`."""
    given = [f"supports=str:{supports}", f"bundle=str:{bundle}", "device=str:cpu", *more]
    return run_tool(python, "-m", "cvat_cli", "--server-host", server.url, *arguments, "--function-module", MODULE,
                    *(word for one in given for word in ("-p", one)), CVAT_ACCESS_TOKEN=TOKEN)


def test_a_task_gets_the_masks_of_every_class(python: Path, photos: list[Path], supports: str, bundle: str) -> None:
    with running_cvat(CvatServer(photos, [*CLASSES, "another"])) as server:
        cli(python, server, "task", "auto-annotate", str(TASK), supports=supports, bundle=bundle)
    wanted = PhotoLabeler(supports, bundle=bundle, device="cpu").label([p.read_bytes() for p in photos])
    for frame, labels in enumerate(wanted):
        for name, label in zip(CLASSES, labels, strict=True):
            truth = coco.decode(label.rle).astype(bool)
            found = server.mask(frame, name)
            assert (found & truth).sum() > 0.99 * (found | truth).sum(), (frame, name)
    assert all(shape["score"] == pytest.approx(wanted[shape["frame"]][shape["label_id"] % 10].score, abs=1e-3)
               for shape in server.shapes)


def test_a_threshold_polygons_and_instances(python: Path, photos: list[Path], supports: str, bundle: str) -> None:
    with running_cvat(CvatServer(photos, list(CLASSES))) as server:
        given = {"supports": supports, "bundle": bundle}
        cli(python, server, "task", "auto-annotate", str(TASK), "--conf-threshold", "1", **given)
        assert server.shapes == []
        cli(python, server, "task", "auto-annotate", str(TASK), "--conv-mask-to-poly", **given,
            more=["threshold=float:0.6"])
    labels = PhotoLabeler(supports, bundle=bundle, device="cpu", threshold=0.6).label([photos[0].read_bytes()])[0]
    wanted = [one.ravel().tolist() for label in labels for one in polygons(coco.decode(label.rle).astype(bool))]
    assert [s["points"] for s in server.shapes if s["frame"] == 0] == wanted
    assert {s["type"] for s in server.shapes} == {"polygon"}


def test_an_agent_answers_a_request(python: Path, photos: list[Path], supports: str, bundle: str) -> None:
    own = ("presence", "quality", "status")
    with running_cvat(CvatServer(photos, list(CLASSES), attributes=own)) as server:
        given = {"supports": supports, "bundle": bundle, "more": ["attributes=bool:true", "instances=str:pieces"]}
        assert cli(python, server, "function", "create-native", "balls", **given).startswith("7\n")
        (made,) = server.functions
        assert [label["name"] for label in made["labels_v2"]] == list(CLASSES)
        assert {label["type"] for label in made["labels_v2"]} == {"mask"}
        server.requests.append({**REQUEST, "mapping": {
            name: {"name": name, "attributes": {one: one for one in own}} for name in CLASSES}})
        cli(python, server, "function", "run-agent", "7", "--burst", **given)
    assert server.failed == []
    shapes = server.completed[0]["annotations"]["shapes"]
    labels = PhotoLabeler(supports, bundle=bundle, device="cpu", instances="pieces").label([
        p.read_bytes() for p in photos])
    assert len(shapes) == sum(len(label.instances or ()) for photo in labels for label in photo)
    assert all(server.checked(shape).any() for shape in shapes)
    assert [a["spec_id"] for a in shapes[0]["attributes"]] == [90, 91, 92], "the task's ids"
    assert {a["value"] for shape in shapes for a in shape["attributes"]} == {""}, "a bundle without a calibrator"


def test_the_sdk_refuses_a_task_without_the_labels(python: Path, photos: list[Path], supports: str,
                                                   bundle: str) -> None:
    with running_cvat(CvatServer(photos, ["ball"])) as server, pytest.raises(AssertionError, match="'brick' is not in"):
        cli(python, server, "task", "auto-annotate", str(TASK), supports=supports, bundle=bundle)
    assert server.shapes == []


SCRIPT = """
import json, sys
import numpy as np
from PIL import Image
from cvat_sdk.masks import decode_mask
from cvat_sdk.auto_annotation.driver import _DetectionFunctionContextImpl
from pipelines.integrations.cvat import create
function = create(sys.argv[1], "shipped", instances="pieces", attributes=True)
image = Image.open(sys.argv[2])
found = function.detect(_DetectionFunctionContextImpl(frame_name="a"), image)
print(json.dumps([{"area": int(decode_mask(s.points, image_width=image.width, image_height=image.height).sum()),
                   "label": function.spec.labels[s.label_id].name, "score": s.score,
                   "values": [a.value for a in s.attributes]} for s in found]))
"""


def test_a_calibrated_bundle_fills_the_attributes(python: Path, photos: list[Path], supports: str) -> None:
    """With the bundle that ships; the SDK's own `decode_mask` reads the masks."""
    found = json.loads(run_tool(python, "-c", SCRIPT, supports, photos[0], FSS_SHIPPED="").splitlines()[0])
    assert {one["label"] for one in found} == set(CLASSES)
    for one in found:
        presence, quality, status = one["values"]
        assert one["area"] > 100
        assert 0 <= float(quality) <= float(presence) <= 1
        assert status in ("accepted", "review", "uncalibrated")
        assert 0 <= one["score"] <= 1
    assert np.isfinite([one["score"] for one in found]).all()
