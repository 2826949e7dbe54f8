"""What Label Studio draws becomes marks, and labels become what Label Studio draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fss_models.errors import FssError
from fss_models.marks import check_mark, mark_prompt, rle_json
from pipelines.data import rle
from pipelines.data.sources.brush_rle import encode_brush
from pipelines.data.sources.label_studio_regions import region_mask, regions
from pipelines.inference.masks import Label
from pipelines.integrations.label_studio.interface import Control, Interface, read_interface
from pipelines.integrations.label_studio.marks import read_marks
from pipelines.integrations.label_studio.results import Drawing
from pipelines.labelling.formats.outline import polygons, simplified
from tests.serving.helpers import ball

SIZE = (60, 80)


def drawn(kind: str, label: str = "ball", size: tuple[int, int] = SIZE, **value: Any) -> dict[str, Any]:
    return {"id": f"{kind}-{label}-{len(value)}", "type": kind, "from_name": "any", "to_name": "photo",
            "original_height": size[0], "original_width": size[1], "image_rotation": 0,
            "value": {**value, kind: [label]}}


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:top + side, left:left + side] = True
    return mask


def interface(*controls: Control) -> Interface:
    return Interface("photo", "picture", controls)


BRUSH, OUTLINE = Control("brush", "brush", ("ball", "cup")), Control("outline", "polygon", ("ball",))


def test_brush_and_polygon_of_a_class_are_one_mask() -> None:
    results = [drawn("brushlabels", format="rle", rle=list(encode_brush(square(5, 5, 10)))),
               drawn("polygonlabels", points=[[50, 50], [75, 50], [75, 100], [50, 100]]),
               drawn("brushlabels", "cup", format="rle", rle=list(encode_brush(square(30, 10, 8))))]
    found = read_marks(results, "photo")
    whole = square(5, 5, 10)
    whole[30:60, 40:60] = True
    assert found == {"ball": [{"mask": rle_json(whole)}], "cup": [{"mask": rle_json(square(30, 10, 8))}]}


def test_boxes_and_key_points() -> None:
    results = [drawn("rectanglelabels", x=25, y=50, width=50, height=100, rotation=0),
               drawn("rectanglelabels", x=50, y=50, width=10, height=20, rotation=90),
               drawn("rectanglelabels", x=10, y=10, width=0, height=0),
               drawn("keypointlabels", x=50, y=50, width=1),
               {**drawn("keypointlabels", x=10, y=100, width=1), "id": "off", "is_positive": 0}]
    first, turned, points = read_marks(results, "photo")["ball"]
    assert first == {"box": [20, 30, 60, 60]}, "cut at the photo's edge"
    assert turned["box"] == pytest.approx([28, 30, 40, 38]), "turned by 90 degrees about its first corner"
    assert points == {"points": [[40, 30], [8, 60]], "labels": [1, 0]}
    for mark in (first, turned, points):
        mark_prompt(check_mark(mark, *SIZE, "here"))


def test_results_of_other_images_and_without_labels_are_no_marks() -> None:
    other = {**drawn("polygonlabels", points=[[0, 0], [50, 0], [50, 50]]), "to_name": "second"}
    bare = drawn("polygonlabels", points=[[0, 0], [50, 0], [50, 50]])
    bare["value"].pop("polygonlabels")
    choice = {"type": "choices", "to_name": "photo", "from_name": "q", "value": {"choices": ["good"]}}
    assert read_marks([other, bare, choice], "photo") == {}
    assert read_marks([], "photo") == {}


@pytest.mark.parametrize(("results", "line"), [
    ([drawn("brushlabels", format="rle", rle=[1, 2, 3])], "ends early"),
    ([drawn("brushlabels", size=(50, 80), format="rle", rle=list(encode_brush(square(5, 5, 10))))], "19,200 values"),
    ([drawn("polygonlabels", points=[[0, 0], [1, 1]])], "three corners"),
    ([drawn("polygonlabels", points=[[0, 0], [9, 0], [9, 9]]),
      drawn("rectanglelabels", size=(9, 9), x=0, y=0, width=5, height=5)], "different sizes"),
    ([drawn("keypointlabels", y=1)], "has no 'x'"),
    ([drawn("polygonlabels", size=(100_000, 100_000), points=[[0, 0], [9, 0], [9, 9]])], "more than 50,000,000 pixels"),
])
def test_damaged_results_are_mistakes(results: list[dict[str, Any]], line: str) -> None:
    with pytest.raises(FssError, match=line):
        read_marks(results, "photo")


def label(mask: np.ndarray, score: float = 0.5, quality: float | None = None) -> Label:
    return Label(height=mask.shape[0], width=mask.shape[1], counts=rle.encode(mask).decode(), bbox=(0, 0, 1, 1),
                 area=int(mask.sum()), score=score, quality=quality, status="accepted" if quality else "")


def test_predictions_are_brush_masks_with_calibrated_scores() -> None:
    masks = [ball(3)[1], square(10, 10, 5), np.zeros(SIZE, dtype=bool)]
    made = Drawing(interface(BRUSH)).prediction(["ball", "cup", "ball"], [
        label(masks[0], 0.9, 0.7), label(masks[1], 0.8), label(masks[2], 0.1)], "v1")
    assert made["model_version"] == "v1"
    assert made["score"] == 0.7
    assert [(r["from_name"], r["to_name"], r["score"]) for r in made["result"]] == [
        ("brush", "photo", 0.7), ("brush", "photo", 0.8)]
    for (_, kind, value, name), mask, wanted in zip(regions(made["result"]), masks, ("ball", "cup"), strict=False):
        assert name == wanted
        assert (rle.decode(region_mask(kind, value, *mask.shape), *mask.shape) == mask).all()
    nothing = Drawing(interface(BRUSH)).prediction(["ball"], [label(masks[2])], "v1")
    assert (nothing["result"], nothing["score"]) == ([], 0.0)


def test_predictions_are_polygons_where_these_are_wanted() -> None:
    mask = ball(5, 400, 500)[1]
    rows, columns = np.nonzero(mask)
    mask[int(rows.mean()), int(columns.mean())] = False  # a hole
    mask[2:90, 2:90] = True  # a second piece
    mask[300, 0] = True  # a speck
    made = Drawing(interface(BRUSH, OUTLINE), "polygon").prediction(["ball", "cup"], [label(mask), label(mask)], "v1")
    own = [r for r in made["result"] if r["from_name"] == "outline"]
    assert [r["type"] for r in own] == ["polygonlabels"] * 2, "one for each large piece"
    assert [r["type"] for r in made["result"] if r not in own] == ["brushlabels"], "no polygons for this class"
    assert max(len(r["value"]["points"]) for r in own) < 80
    drawn_again = rle.decode(rle.from_polygons(
        [(np.array(r["value"]["points"]) * [5, 4]).ravel().tolist() for r in own], 400, 500), 400, 500)
    assert (drawn_again & mask).sum() / (drawn_again | mask).sum() > 0.99


def test_simplified_outlines_stay_within_the_tolerance() -> None:
    (loop,) = polygons(ball(1)[1])
    for tolerance in (0.0, 1.0, 3.0):
        few = simplified(loop, tolerance)
        ends = np.roll(few, -1, axis=0)
        along = (ends - few).astype(float)
        share = (((loop[:, None] - few) * along).sum(2) / (along**2).sum(1)).clip(0, 1)
        gaps = np.linalg.norm(loop[:, None] - (few + share[..., None] * along), axis=2).min(1)
        assert gaps.max() <= tolerance + 1e-9
    assert len(simplified(loop, 1.0)) < len(loop) / 4
    assert len(simplified(np.array([[3, 3], [3, 3]]), 1)) == 1


def project(**tags: dict[str, Any]) -> dict[str, Any]:
    about = {"to_name": ["photo"], "inputs": [{"type": "Image", "value": "picture"}], "labels": ["ball"]}
    return {"parsed_label_config": {name: {**about, **tag} for name, tag in tags.items()}}


def test_an_interface_is_read() -> None:
    found = read_interface(project(point={"type": "KeyPointLabels"}, b={"type": "BrushLabels", "labels": ["cup"]},
                                   o={"type": "PolygonLabels", "labels": ["cup", "ball"]}), "here")
    assert found == Interface("photo", "picture", (Control("b", "brush", ("cup",)),
                                                   Control("o", "polygon", ("cup", "ball"))))
    assert found.labels == ["cup", "ball"]
    assert [found.control(*wanted) for wanted in (("cup", None), ("cup", "polygon"), ("ball", "brush"), ("x", None))
            ] == [found.controls[0], found.controls[1], found.controls[1], None]


@pytest.mark.parametrize(("content", "line"), [
    (project(), "no image to label"), ({}, "no image to label"),
    (project(l={"type": "Labels", "inputs": [{"type": "Text", "value": "text"}]}), "no image to label"),
    (project(box={"type": "RectangleLabels"}), "no tag of the project draws masks"),
])
def test_an_interface_without_images_or_masks_is_a_mistake(content: dict[str, Any], line: str) -> None:
    with pytest.raises(FssError, match=line):
        read_interface(content, "here")


def test_the_photo_of_a_task() -> None:
    tags = interface(BRUSH)
    assert tags.photo({"id": 1, "data": {"picture": "/data/a.jpg"}}) == "/data/a.jpg"
    for data, line in (({}, "no photo"), ({"picture": ["a", "b"]}, "several photos")):
        with pytest.raises(FssError, match=line):
            tags.photo({"id": 1, "data": data})
