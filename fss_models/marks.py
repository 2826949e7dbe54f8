"""A mark says where the object is in a support photo. It is a JSON object with exactly one of

    {"mask": {"size": [height, width], "counts": RLE}}    COCO's run lengths, compressed (text) or not (list)
    {"box": [x0, y0, x1, y1]}
    {"points": [[x, y], ...], "labels": [1, 0, ...]}      1 on the object, 0 off it; labels default to all 1
    {"scribble": [[x, y], ...], "labels": [...]}

in pixels of the upright photo. With "negative": true it shows what the class is not; {"negative": true} alone says that
nothing in the photo is of the class. The forms say what people may write, `check_mark` that it fits the photo and its
canonical form. Every mistake in a mark is reported in one line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, model_validator

from fss_models.clip import Prompt, PromptKind
from fss_models.errors import BadImage, FssError
from fss_models.forms import Form, check_known, in_words, read_form
from fss_models.mask_files import read_mask_image, read_mask_picture

Mark = dict[str, Any]  # in canonical form
KINDS = ("mask", "box", "points", "scribble")
WHOLE = "negative photo"  # the tag of a row without a mark
MAX_POINTS = 4096
MAX_COORDINATE = 1e9

# A huge integer is no coordinate: it cannot be converted to float.
Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4, description=(
    "[left, top, right, bottom] in pixels of the upright photo")), in_words("a box is [x0, y0, x1, y1]")]
Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2, description=(
    "[x, y] in pixels of the upright photo")), in_words("a point is [x, y]")]
Points = Annotated[list[Point], Field(min_length=1, max_length=MAX_POINTS)]
PointLabels = Annotated[list[Literal[0, 1]], Field(description="1: on the object, 0: off it; default: all 1"),
                        in_words("labels are 1 (on the object) or 0 (off it)")]


class Rle(Form):
    """COCO's run lengths of a mask."""

    size: list[int] = Field(min_length=2, max_length=2, description="[height, width]")
    counts: Annotated[str | list[int], in_words("counts is neither text nor a list of whole numbers")]


class _MarkForm(Form):
    negative: bool = Field(False, description="the mark shows what the class is not")


class MaskMark(_MarkForm):
    """The object's pixels: run lengths, or a picture of the mask (a file's name; in a request its base64)."""

    mask: Rle | Annotated[str, Field(description="a PNG: base64 or data URL in a request, a path in a file")]


class BoxMark(_MarkForm):
    """A box around the object."""

    box: Box


class NegativePhoto(Form):
    """Nothing in the photo is of the class."""

    negative: Literal[True]


class _PointsMark(_MarkForm):
    labels: PointLabels | None = None

    @model_validator(mode="after")
    def _one_label_each(self) -> _PointsMark:
        points = getattr(self, "points", None) or self.scribble  # type: ignore[attr-defined]
        if self.labels is not None and len(self.labels) != len(points):
            raise ValueError(f"{len(self.labels)} labels for {len(points)} points (give one label for each point)")
        if self.negative and 1 in (self.labels or []):
            raise ValueError("a point of a negative mark has label 1 (leave the labels out)")
        if self.labels is not None and 1 not in self.labels and not self.negative:
            raise ValueError("no point is on the object (give at least one point with label 1)")
        return self


class PointsMark(_PointsMark):
    """Single points on the object and off it."""

    points: Points


class ScribbleMark(_PointsMark):
    """The points of a line that was drawn on the object, and of lines off it."""

    scribble: Points


def one_kind(*others: str) -> BeforeValidator:
    """A row with exactly one of `KINDS`, and none of its keys null: what the forms of marks are chosen by.

    A negative row may have none of them. `others` are the row's keys that are not of the mark.
    """

    def checked(row: Any) -> Any:
        if not isinstance(row, dict):
            raise ValueError(f"is not a JSON object but {type(row).__name__}")
        check_known(row, (*others, *KINDS, "labels", "negative"))
        kinds = [k for k in KINDS if row.get(k) is not None] or [WHOLE] * (row.get("negative") is True)
        if len(kinds) != 1:
            found = f"it has {' and '.join(kinds)}" if kinds else "it has none of them"
            raise ValueError(f"needs exactly one of {', '.join(KINDS)}; {found}")
        if "labels" in row and kinds[0] in ("mask", "box", WHOLE):
            raise ValueError(f"labels belong to points or scribble, not to a {kinds[0]} (leave them out)")
        return {k: v for k, v in row.items() if v is not None}

    return BeforeValidator(checked)


def kind_tag(row: Any) -> str:
    """The tag of the form of a row that `one_kind` has checked. No key is called so: places in errors stay clear."""
    found = next((k for k in KINDS if (k in row if isinstance(row, dict) else hasattr(row, k))), "")
    return f"{found} mark" if found else WHOLE


MarkForm = Annotated[
    Annotated[MaskMark, Tag("mask mark")] | Annotated[BoxMark, Tag("box mark")]
    | Annotated[PointsMark, Tag("points mark")] | Annotated[ScribbleMark, Tag("scribble mark")]
    | Annotated[NegativePhoto, Tag(WHOLE)], Discriminator(kind_tag), one_kind()]
MARK: TypeAdapter[MaskMark | BoxMark | PointsMark | ScribbleMark | NegativePhoto] = TypeAdapter(MarkForm)


def check_mark(mark: Mark, height: int, width: int, where: str) -> Mark:
    """The mark of a photo of `height` x `width` pixels in canonical form. Raises `FssError` for an invalid mark.

    A negative photo without a mark gets the mask of all its pixels.
    """
    form = read_form(MARK, mark, where, join=".")
    negative = {"negative": True} if form.negative else {}
    return _canonical(form, height, width, where) | negative


def _canonical(form: MaskMark | BoxMark | PointsMark | ScribbleMark | NegativePhoto, height: int, width: int,
               where: str) -> Mark:
    if isinstance(form, NegativePhoto):
        return {"mask": rle_json(np.ones((height, width), dtype=bool))}
    if isinstance(form, MaskMark):
        return {"mask": _mask(form.mask, height, width, f"{where}.mask")}
    if isinstance(form, BoxMark):
        return {"box": _box(form.box, height, width, f"{where}.box")}
    kind, points = ("points", form.points) if isinstance(form, PointsMark) else ("scribble", form.scribble)
    for point in points:
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise FssError(f"the point {point} lies outside its photo, {width} wide and {height} high",
                           where=f"{where}.{kind}")
    return {kind: points, "labels": form.labels or [int(not form.negative)] * len(points)}


def mask_from_picture(picture: bytes | Image.Image, where: str) -> Mark:
    """The COCO RLE of a picture of a mask, a file's bytes or opened, read by the rules of `fss_models.mask_files`.

    Raises `FssError` for a file that is no lossless picture or is too large, and for a mask that has no one meaning.
    """
    try:
        found = read_mask_picture(picture) if isinstance(picture, bytes) else read_mask_image(picture)
        return rle_json(found.mask)
    except BadImage as error:
        raise FssError(error.reason, where=where) from error


def rle_json(mask: np.ndarray) -> Mark:
    """[H, W] bool -> COCO RLE {"size", "counts"} with the counts as text."""
    found = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(v) for v in found["size"]], "counts": found["counts"].decode()}


def mark_pixels(mark: Mark) -> int | None:
    """How many pixels a canonical mask or box covers; None for points and scribbles."""
    if "mask" in mark:
        return int(coco.area({"size": mark["mask"]["size"], "counts": mark["mask"]["counts"].encode()}))
    if "box" in mark:
        x0, y0, x1, y1 = mark["box"]
        return int((x1 - x0) * (y1 - y0) + 0.5)
    return None


def marks_all(mark: Mark) -> bool:
    """Whether a canonical mark is a mask of all pixels of its photo."""
    return "mask" in mark and mark_pixels(mark) == mark["mask"]["size"][0] * mark["mask"]["size"][1]


def mark_kind(mark: Mark) -> PromptKind:
    """The kind of prompt that a canonical mark is."""
    return PromptKind[next(k for k in KINDS if k in mark).upper()]


def mark_prompt(mark: Mark) -> Prompt:
    """A canonical mark as the models' `Prompt`."""
    negative = bool(mark.get("negative"))
    if "mask" in mark:
        rle = {"size": mark["mask"]["size"], "counts": mark["mask"]["counts"].encode()}
        mask = torch.from_numpy(coco.decode(rle).astype(bool))
        return Prompt(kind=PromptKind.MASK, mask=mask, negative=negative)
    if "box" in mark:
        return Prompt(kind=PromptKind.BOX, box=torch.tensor(mark["box"], dtype=torch.float32), negative=negative)
    name = "points" if "points" in mark else "scribble"
    return Prompt(
        kind=PromptKind.POINTS if name == "points" else PromptKind.SCRIBBLE, negative=negative,
        points=torch.tensor(mark[name], dtype=torch.float32),
        labels=torch.tensor(mark["labels"], dtype=torch.int32),
    )


def _mask(rle: Rle | str, height: int, width: int, where: str) -> Mark:
    if isinstance(rle, str):
        raise FssError("the mask is a text, not run lengths", where=where, hint='write {"size": ..., "counts": ...}')
    size = " x ".join(map(str, rle.size))
    if rle.size != [height, width]:
        raise FssError(f"the mask is {size}, but its photo is {height} x {width} (height x width)", where=where,
                       hint="draw the mask on the photo as it is shown upright")
    mask = _decode(rle.counts, height, width, where)
    if not mask.any():
        raise FssError("the mask is empty", where=where, hint="mark at least one pixel of the object")
    return rle_json(mask)


def _decode(counts: str | list[int], height: int, width: int, where: str) -> np.ndarray:
    """[H, W] uint8. Run lengths are checked here, since pycocotools crashes on wrong ones."""
    runs = counts if isinstance(counts, list) else _uncompress(counts, where)
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise FssError(f"run lengths sum to {sum(runs)}, not to {height} x {width}", where=where)
    flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
    return flat.reshape(width, height).T


def _uncompress(text: str, where: str) -> list[int]:
    """The run lengths of COCO's text form: 5 bits a character, each run as its difference to the run before last."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise FssError("counts is not COCO's run-length text", where=where)
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise FssError("counts ends in the middle of a number", where=where)
    return runs


def _box(box: list[float], height: int, width: int, where: str) -> list[float]:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise FssError(f"the box {box} is empty", where=where, hint="write [left, top, right, bottom] in pixels")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise FssError(f"the box {box} lies outside its photo, {width} wide and {height} high", where=where)
    return box
