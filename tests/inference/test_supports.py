"""Support sets: every mistake is reported in one line, and a stored set keeps its id."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from fss_models.errors import FssError
from fss_models.marks import check_mark, mark_prompt, mask_from_picture, rle_json
from pipelines.inference.support_files import (
    SupportRequest,
    read_support_file,
    support_request,
    support_set_from_request,
)
from pipelines.inference.supports import (
    SupportSet,
    UnknownSupportError,
    _mark_line,
    load_support_set,
    support_lines,
)
from tests.serving.helpers import ball, encoded, supports_file

HEIGHT, WIDTH = 40, 60
BLANK = rle_json(np.zeros((HEIGHT, WIDTH), dtype=bool))
SOME = rle_json(np.eye(HEIGHT, WIDTH, dtype=bool))

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, "needs exactly one of mask, box, points, scribble; it has none of them"),
    ({"box": [0, 0, 5, 5], "mask": SOME}, "it has mask and box"),
    ({"bxo": [0, 0, 5, 5]}, "unknown key 'bxo' (did you mean 'box'?)"),
    ({"mask": BLANK}, "the mask is empty"),
    ({"mask": {"size": [60, 40], "counts": "x"}}, "the mask is 60 x 40, but its photo is 40 x 60"),
    ({"mask": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}}, "run lengths sum to 3"),
    ({"mask": {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}}, "run lengths sum to"),
    ({"mask": {"size": [HEIGHT, WIDTH], "counts": "\u00ff\u00ff"}}, "counts is not COCO's run-length text"),
    ({"mask": {"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooooooo"}}, "counts is not COCO's run-length text"),
    ({"box": [0, 0, 61, 5]}, "lies outside its photo, 60 wide and 40 high"),
    ({"box": [5, 5, 5, 9]}, "is empty"),
    ({"box": [0, 0, 5]}, "a box is [x0, y0, x1, y1]"),
    ({"box": [0, 0, 5, float("nan")]}, "a box is [x0, y0, x1, y1]"),
    ({"points": []}, "points: list should have at least 1 item, not 0"),
    ({"points": [[70, 5]]}, "lies outside its photo"),
    ({"points": [[5, 5]], "labels": [1, 0]}, "2 labels for 1 points"),
    ({"points": [[5, 5]], "labels": [0]}, "no point is on the object"),
    ({"points": [[5, 5]], "labels": [2]}, "labels are 1 (on the object) or 0"),
    ({"box": [0, 0, 5, 5], "labels": [1]}, "labels belong to points or scribble"),
]


@pytest.mark.parametrize(("mark", "line"), MISTAKES, ids=[m[1][:30] for m in MISTAKES])
def test_mistake_is_one_clear_line(mark: dict[str, Any], line: str) -> None:
    with pytest.raises(FssError) as caught:
        check_mark(mark, HEIGHT, WIDTH, "s[0]")
    assert line in str(caught.value)
    assert str(caught.value).startswith("s[0]")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    mask = np.random.default_rng(seed).random((37, 53)) < (0.02, 0.5, 0.98, 1.0, 0.2)[seed]
    text = rle_json(mask)
    flat = mask.T.flatten().tolist()
    runs = ([0] if flat[0] else []) + [len(list(same)) for _, same in itertools.groupby(flat)]
    for counts in (text["counts"], runs):
        read = check_mark({"mask": {"size": [37, 53], "counts": counts}}, 37, 53, "")
        assert read["mask"] == text
        assert np.array_equal(coco.decode({"size": [37, 53], "counts": read["mask"]["counts"].encode()}), mask)


def test_mask_pictures_of_all_kinds_mean_the_same() -> None:
    mask = ball(3)[1]
    grey = mask.astype(np.uint8) * 255
    clear = np.dstack([np.full((*mask.shape, 3), 255, dtype=np.uint8), grey])
    pictures = [grey, mask, grey.astype(np.uint16) * 257, np.dstack([grey] * 3), clear]
    wanted = rle_json(mask)
    assert [mask_from_picture(encoded(p, "PNG"), "") for p in pictures] == [wanted] * len(pictures)


def test_prompts_keep_their_pixels() -> None:
    mask = ball(4)[1]
    prompt = mark_prompt(check_mark({"mask": rle_json(mask)}, mask.shape[0], mask.shape[1], ""))
    assert prompt.mask is not None
    assert np.array_equal(prompt.mask.numpy(), mask)
    points = mark_prompt(check_mark({"points": [[3, 4]], "labels": [1]}, HEIGHT, WIDTH, ""))
    assert points.points is not None
    assert points.points.tolist() == [[3, 4]]


def test_file_request_and_storage_agree_on_the_id(tmp_path: Path) -> None:
    given = read_support_file(str(supports_file(tmp_path)))
    assert support_set_from_request(SupportRequest(**support_request(given))).support_id == given.support_id
    assert given.save(str(tmp_path / "kept")) == given.support_id
    assert load_support_set(str(tmp_path / "kept"), given.support_id) == given
    for wrong in ("0" * 16, "../../etc/passwd", ""):
        with pytest.raises(UnknownSupportError):
            load_support_set(str(tmp_path / "kept"), wrong)


def test_negatives_travel_with_their_set(tmp_path: Path) -> None:
    """In a file, a request and in storage; a photo without a mark is negative as a whole."""
    file = supports_file(tmp_path)
    content = json.loads(file.read_text())
    rows = [{"image": "ball.png", "negative": True}, {"image": "ball.png", "mask": "mask.png", "negative": True}]
    plain = read_support_file(str(file))
    file.write_text(json.dumps({**content, "supports": [rows[0], *content["supports"], rows[1]]}))
    given = read_support_file(str(file))
    assert [s.negative for s in given.supports] == [True, False, True]
    assert given.supports[1] == plain.supports[0]
    prompts = given.decoded()[1]
    assert [p.negative for p in prompts] == [True, False, True]
    whole, marked = prompts[0].mask, prompts[2].mask
    assert whole is not None
    assert marked is not None
    assert bool(whole.all())
    assert np.array_equal(marked, ball(1000)[1])
    assert support_set_from_request(SupportRequest(**support_request(given))) == given
    assert load_support_set(str(tmp_path / "kept"), given.save(str(tmp_path / "kept"))) == given
    assert support_lines([given]) == [
        "ball: support 1: negative, the whole photo", f"ball: support 2: {_mark_line(plain.supports[0])}",
        f"ball: support 3: negative {_mark_line(plain.supports[0])}"]
    many = SupportSet("ball", (*given.supports, *[plain.supports[0]] * 7))
    assert "10 supports, 2 of them negative, marks of" in support_lines([many])[0]
    file.write_text(json.dumps({**content, "supports": rows}))
    with pytest.raises(FssError, match=r"supports\.json: all supports are negative"):
        read_support_file(str(file))


def test_id_changes_with_photo_and_prompt_only(tmp_path: Path) -> None:
    file = supports_file(tmp_path)
    first = read_support_file(str(file))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "class_name": "another"}))
    assert read_support_file(str(file)).support_id == first.support_id
    mask = ball(1000)[1]
    mask[0, 0] = True
    (tmp_path / "mask.png").write_bytes(encoded(mask.astype(np.uint8), "PNG"))
    assert read_support_file(str(file)).support_id != first.support_id


@pytest.mark.parametrize(("change", "line"), [
    ({"class_name": " "}, "class_name is missing"),
    ({"supports": []}, "there are no supports"),
    ({"supports": {}}, "supports: is not a list"),
    ({"suports": []}, "unknown key 'suports' (did you mean 'supports'?)"),
    ({"supports": [{"image": "gone.jpg", "box": [0, 0, 9, 9]}]}, "supports[0].image: 'gone.jpg' does not exist"),
    ({"supports": [{"image": "ball.png", "mask": "gone.png"}]}, "supports[0].mask: 'gone.png' does not exist"),
    ({"supports": [{"image": "ball.png", "mask": "mask.png"}, {"image": "no.json", "box": [0, 0, 9, 9]}]},
     "supports[1]: not an image"),
    ({"supports": [{"image": "ball.png", "mask": "no.json"}]}, "unreadable mask: not an image"),
    ({"supports": [{"image": "mask.png", "mask": "ball.png"}]}, "colours: it is a photo, not a mask"),
    ({"supports": [{"box": [0, 0, 9, 9]}]}, "supports[0]: image is missing"),
])
def test_mistakes_in_a_file(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    file = supports_file(tmp_path)
    (tmp_path / "no.json").write_text("{}")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FssError) as caught:
        read_support_file(str(file))
    assert line in str(caught.value)


def test_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FssError, match=r"no\.json: does not exist"):
        read_support_file(str(tmp_path / "no.json"))
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(FssError, match="is not valid JSON"):
        read_support_file(str(tmp_path / "no.json"))


def test_rotated_photo_wants_the_mask_upright(tmp_path: Path) -> None:
    """Would catch a mask on the pixels as stored instead of those of the upright photo."""
    from PIL import Image

    photo, mask = ball(5, 120, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees: 200 high, 120 wide
    rows = {"image": "turned.jpg", "mask": "mask.png"}
    (tmp_path / "turned.jpg").write_bytes(encoded(photo, exif=exif))
    (tmp_path / "mask.png").write_bytes(encoded(mask.astype(np.uint8), "PNG"))
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"class_name": "ball", "supports": [rows]}))
    with pytest.raises(FssError, match="the mask is 120 x 200, but its photo is 200 x 120"):
        read_support_file(str(file))
    (tmp_path / "mask.png").write_bytes(encoded(np.rot90(mask, -1).astype(np.uint8), "PNG"))
    images, prompts = read_support_file(str(file)).decoded()
    assert prompts[0].mask is not None
    red = images[0][prompts[0].mask.numpy()].mean(axis=0)
    assert red[0] > 200
    assert red[1] < 60
