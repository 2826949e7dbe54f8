"""Predictions of several models on the same photos: figures that are known, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from fss_models.errors import FssError
from fss_models.metrics import resampled_photos
from jobs.cli import make_app
from pipelines.report.comparison import ComparisonRequest, comparison_lines, run_comparison
from pipelines.report.comparison_page import most_different
from tests.labelling.finished import finished_job, known_masks

COUNT, SIDE = 8, 40
NAMES = ["cup", "fork"]
Photos = dict[str, dict[str, np.ndarray]]


def block(top: int, left: int, height: int = 10, width: int = 10) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top:top + height, left:left + width] = True
    return mask


def truth_masks() -> Photos:
    return {f"{i}.png": {"cup": block(2, 2), **({"fork": block(20, 20)} if i % 2 else {})} for i in range(COUNT)}


def coco_document(masks: Photos, names: list[str]) -> dict[str, Any]:
    notes = []
    for number, own in enumerate(masks.values(), 1):
        for label, mask in own.items():
            coded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
            notes.append({"id": len(notes) + 1, "image_id": number, "category_id": names.index(label) + 1,
                          "segmentation": {"size": coded["size"], "counts": coded["counts"].decode()}, "iscrowd": 0})
    return {"images": [{"id": n, "file_name": f, "height": SIDE, "width": SIDE} for n, f in enumerate(masks, 1)],
            "annotations": notes, "categories": [{"id": n, "name": c} for n, c in enumerate(names, 1)]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """photos/, truth.json, half.json: predictions that find the left half of every object."""
    (tmp_path / "photos").mkdir()
    for name in truth_masks():
        Image.fromarray(np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "truth.json").write_text(json.dumps(coco_document(truth_masks(), NAMES)))
    halves = {name: {c: m & (np.arange(SIDE) < (7 if c == "cup" else 25)) for c, m in own.items()}
              for name, own in truth_masks().items()}
    (tmp_path / "half.json").write_text(json.dumps(coco_document(halves, NAMES)))
    return tmp_path


def compared(root: Path, *predictions: str, **more: Any) -> dict[str, Any]:
    return run_comparison(ComparisonRequest(images=str(root / "photos"), truth=str(root / "truth.json"),
                                            predictions=tuple(str(root / p) for p in predictions),
                                            out=str(root / "out"), **more))


def test_figures_that_are_known(root: Path) -> None:
    found = compared(root, "truth.json", "half.json")
    whole, half = found["models"]
    assert (whole["miou"], whole["fb_iou"], half["miou"]) == (1, 1, 0.5)
    assert half["per_class"] == {"cup": 0.5, "fork": 0.5}
    assert half["miou_interval"] == (0.5, 0.5), "every photo is half right"
    (difference,) = found["differences"]
    assert (difference["of"], difference["minus"], difference["miou"]) == ("half", "truth", -0.5)
    assert difference["miou_interval"] == (-0.5, -0.5)
    lines = "\n".join(comparison_lines(found))
    assert "50.0 (50.0 to 50.0)" in lines
    assert "8 photos of 8 in the truth" in lines
    page = Path(found["page"]).read_text()
    assert page.count("data:image/jpeg") == 2 * COUNT
    assert json.loads((root / "out" / "comparison.json").read_text())["photos"] == COUNT


def test_results_of_a_detector(root: Path) -> None:
    """A list of results: those below the score are left out, a photo without results has no mask."""
    notes = coco_document(truth_masks(), NAMES)["annotations"]
    results = [{**{k: one[k] for k in ("image_id", "category_id", "segmentation")},
                "score": 0.9 if one["image_id"] > 1 else 0.3} for one in notes]
    (root / "results.json").write_text(json.dumps(results))
    for least, cup in ((0.5, 7 / 8), (0.2, 1.0)):
        (model,) = compared(root, "results.json", min_score=least)["models"]
        assert model["per_class"] == {"cup": pytest.approx(cup), "fork": 1.0}
    (root / "results.json").write_text(json.dumps([{**results[0], "image_id": 99}]))
    with pytest.raises(FssError, match="1 results name an image id that the truth lacks"):
        compared(root, "results.json")
    (root / "results.json").write_text(json.dumps([{**results[0], "score": "high"}]))
    with pytest.raises(FssError, match="a result has the score 'high'"):
        compared(root, "results.json")
    (root / "results.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]))
    with pytest.raises(FssError, match="1 results have no mask"):
        compared(root, "results.json")


def test_yolo_and_mask_pictures(root: Path) -> None:
    labels = root / "yolo" / "labels"
    labels.mkdir(parents=True)
    (root / "yolo" / "data.yaml").write_text("names: [mug, fork]\n")
    corners = [2, 2, 12, 2, 12, 12, 2, 12]
    for i in range(COUNT - 1):  # none for the last photo
        (labels / f"{i}.txt").write_text("0 " + " ".join(f"{(v + 1e-4) / SIDE:.6f}" for v in corners) + "\n")
        (root / "masks" / "cup").mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth_masks()[f"{i}.png"]["cup"]).save(root / "masks" / "cup" / f"{i}.png")
    with pytest.raises(FssError, match="has none of the classes cup, but mug, fork"):
        compared(root, "yolo", classes=("cup",))
    found = compared(root, "yolo", classes=("cup",), rename={"mug": "cup"})["models"][0]
    assert (found["per_class"]["cup"], found["photos_without_record"]) == (pytest.approx(7 / 8), 1)
    (root / "pictures").mkdir()
    (root / "masks").rename(root / "pictures" / "masks")
    assert compared(root, "pictures")["models"][0]["per_class"] == {"cup": pytest.approx(7 / 8)}


def test_a_labelling_job_beside_annotations_of_other_formats(tmp_path: Path) -> None:
    """Its labels.json is read; the unreadable photo of the job is in no truth."""
    job = finished_job(tmp_path, known_masks())
    found = run_comparison(ComparisonRequest(
        images=str(tmp_path / "photos"), truth=str(job / "labels_polygons.json"), labels=str(job),
        predictions=(str(job / "annotations.xml"), str(job / "yolo")), out=str(tmp_path / "compared")))
    assert [m["name"] for m in found["models"]] == ["fss", "annotations", "yolo"]
    assert [m["miou"] for m in found["models"]] == [1.0, 1.0, 1.0]
    assert (found["photos"], found["left_out"]["unreadable_photos"]) == (8, 0)
    assert [d["miou_interval"] for d in found["differences"]] == [(0.0, 0.0)] * 2


@pytest.mark.parametrize(("words", "wrong"), [
    (["--labels", "a", "--supports", "b"], "both name our side"), (["--bundle", "b"], "no effect without supports"),
    (["--rename", "cup"], "has no '='")])
def test_options_that_do_not_fit(words: list[str], wrong: str) -> None:
    given = ["compare", "--predictions", "p.json", "--images", "photos", "--truth", "t.json"]
    found = CliRunner().invoke(make_app(), [*given, *words])
    assert isinstance(found.exception, FssError)
    assert wrong in str(found.exception)


def test_mistakes_are_one_line(root: Path) -> None:
    with pytest.raises(FssError, match="the truth has no class 'spoon'"):
        compared(root, "half.json", classes=("spoon",))
    with pytest.raises(FssError, match="holds no labelling job"):
        compared(root, "half.json", labels=str(root / "photos"))
    other = coco_document({"elsewhere.png": {"cup": block(1, 1)}}, NAMES)
    (root / "other.json").write_text(json.dumps(other))
    with pytest.raises(FssError, match="no photo is in the truth and in all predictions"):
        compared(root, "other.json")
    large = coco_document({"0.png": {"cup": block(1, 1)}}, NAMES)
    large["images"][0].update(height=99, width=99)
    (root / "large.json").write_text(json.dumps(large))
    with pytest.raises(FssError, match=r"0\.png: recorded as 99x99 but the photo is 40x40"):
        compared(root, "large.json")
    sized = coco_document({"0.png": {"cup": np.ones((9, 9), dtype=bool)}}, NAMES)
    (root / "sized.json").write_text(json.dumps(sized))
    with pytest.raises(FssError, match="mask is 9x9, its image 40x40"):
        compared(root, "sized.json")


def test_resampled_photos_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    union = rng.integers(50, 100, (12, 3, 2))
    inter = (union * rng.random((12, 3, 2))).astype(np.int64)
    present = rng.random((12, 3)) < 0.3
    found = resampled_photos(inter, union, present, resamples=200, seed=5)
    weights = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=200)
    wanted = []
    for drawn in (np.repeat(np.arange(12), w) for w in weights):
        shown = present[drawn].any(axis=0)
        ious = [inter[drawn, c, 1].sum() / union[drawn, c, 1].sum() for c in range(3) if shown[c]]
        if ious:
            wanted.append(np.mean(ious))
    assert found.miou == pytest.approx(np.array(wanted))
    same = resampled_photos(inter, union, present, resamples=200, seed=5)
    assert (same.miou - found.miou == 0).all()


def test_photos_are_ordered_by_their_difference() -> None:
    iou = np.array([[[0.9, 1], [0.5, 0.4], [1, 1]], [[0.8, 1], [0.5, 1.0], [1, 1]]])
    assert most_different(iou) == [(1, 1), (0, 0)]
