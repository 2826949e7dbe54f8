"""A mark says where the object is in a support photo. It is a JSON object with exactly one of

    {"mask": {"size": [height, width], "counts": RLE}}    COCO's run lengths, compressed (text) or not (list)
    {"box": [x0, y0, x1, y1]}
    {"points": [[x, y], ...], "labels": [1, 0, ...]}      1 on the object, 0 off it; labels default to all 1
    {"scribble": [[x, y], ...], "labels": [...]}

in pixels of the upright photo. Every mistake in a mark is reported in one line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from rapidfuzz import process

from fss_models.clip import Prompt, PromptKind
from fss_models.errors import BadImage, FssError
from fss_models.mask_files import read_mask_picture

Mark = dict[str, Any]
KINDS = ("mask", "box", "points", "scribble")
MAX_POINTS = 4096
MAX_COORDINATE = 1e9


def check_mark(mark: Mark, height: int, width: int, where: str) -> Mark:
    """The mark of a photo of `height` x `width` pixels in canonical form. Raises `FssError` for an invalid mark."""
    check_keys(mark, (*KINDS, "labels"), where)
    kinds = [k for k in KINDS if mark.get(k) is not None]
    if len(kinds) != 1:
        found = f"it has {' and '.join(kinds)}" if kinds else "it has none of them"
        raise FssError(f"needs exactly one of {', '.join(KINDS)}; {found}", where=where)
    kind = kinds[0]
    if "labels" in mark and kind not in ("points", "scribble"):
        raise FssError(f"labels belong to points or scribble, not to a {kind}", where=where, hint="leave them out")
    if kind == "mask":
        return {"mask": _mask(mark["mask"], height, width, where)}
    if kind == "box":
        return {"box": _box(mark["box"], height, width, where)}
    points = _points(mark[kind], height, width, f"{where}.{kind}")
    return {kind: points, "labels": _labels(mark.get("labels"), len(points), where)}


def check_keys(row: Any, known: tuple[str, ...], where: str) -> None:
    """Raises `FssError` if `row` is not a JSON object or has an unknown key; the message names the nearest one."""
    if not isinstance(row, dict):
        raise FssError(f"is not a JSON object but {type(row).__name__}", where=where)
    for key in row:
        if key not in known:
            near = process.extractOne(str(key), known, score_cutoff=50)
            raise FssError(f"unknown key {str(key)[:60]!r}", where=where,
                           hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")


def mask_from_picture(data: bytes, where: str) -> Mark:
    """The COCO RLE of a picture of a mask, read by the rules of `fss_models.mask_files`.

    Raises `FssError` for a file that is no lossless picture or is too large, and for a mask that has no one meaning.
    """
    try:
        return rle_json(read_mask_picture(data).mask)
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


def mark_kind(mark: Mark) -> PromptKind:
    """The kind of prompt that a canonical mark is."""
    return PromptKind[next(k for k in KINDS if k in mark).upper()]


def mark_prompt(mark: Mark) -> Prompt:
    """A canonical mark as the models' `Prompt`."""
    if "mask" in mark:
        rle = {"size": mark["mask"]["size"], "counts": mark["mask"]["counts"].encode()}
        return Prompt(kind=PromptKind.MASK, mask=torch.from_numpy(coco.decode(rle).astype(bool)))
    if "box" in mark:
        return Prompt(kind=PromptKind.BOX, box=torch.tensor(mark["box"], dtype=torch.float32))
    name = "points" if "points" in mark else "scribble"
    return Prompt(
        kind=PromptKind.POINTS if name == "points" else PromptKind.SCRIBBLE,
        points=torch.tensor(mark[name], dtype=torch.float32),
        labels=torch.tensor(mark["labels"], dtype=torch.int32),
    )


def _mask(rle: Any, height: int, width: int, where: str) -> Mark:
    where = f"{where}.mask"
    check_keys(rle, ("size", "counts"), where)
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise FssError(f"the mask is {_by(size)}, but its photo is {height} x {width} (height x width)", where=where,
                       hint="draw the mask on the photo as it is shown upright")
    mask = _decode(counts, height, width, where)
    if not mask.any():
        raise FssError("the mask is empty", where=where, hint="mark at least one pixel of the object")
    return rle_json(mask)


def _by(size: Any) -> str:
    return " x ".join(str(v) for v in size) if isinstance(size, list | tuple) and len(size) == 2 else repr(size)[:40]


def _decode(counts: Any, height: int, width: int, where: str) -> np.ndarray:
    """[H, W] uint8. Run lengths are checked here, since pycocotools crashes on wrong ones."""
    runs = _runs(counts, where)
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise FssError(f"run lengths sum to {sum(runs)}, not to {height} x {width}", where=where)
    flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
    return flat.reshape(width, height).T


def _runs(counts: Any, where: str) -> list[int]:
    if isinstance(counts, list) and all(isinstance(c, int) and not isinstance(c, bool) for c in counts):
        return counts
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if not isinstance(counts, str):
        raise FssError("counts is neither text nor a list of whole numbers", where=where)
    return _uncompress(counts, where)


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


def _box(box: Any, height: int, width: int, where: str) -> list[float]:
    where = f"{where}.box"
    if not (isinstance(box, list) and len(box) == 4 and all(_number(v) for v in box)):
        raise FssError("a box is [x0, y0, x1, y1]", where=where)
    x0, y0, x1, y1 = (float(v) for v in box)
    if x1 <= x0 or y1 <= y0:
        raise FssError(f"the box {box} is empty", where=where, hint="write [left, top, right, bottom] in pixels")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        raise FssError(f"the box {box} lies outside its photo, {width} wide and {height} high", where=where)
    return [x0, y0, x1, y1]


def _points(points: Any, height: int, width: int, where: str) -> list[list[float]]:
    if not (isinstance(points, list) and points):
        raise FssError("needs at least one [x, y]", where=where)
    if len(points) > MAX_POINTS:
        raise FssError(f"{len(points)} points are too many", where=where, hint=f"a mark has at most {MAX_POINTS}")
    for point in points:
        if not (isinstance(point, list) and len(point) == 2 and all(_number(v) for v in point)):
            raise FssError(f"{str(point)[:40]} is not [x, y]", where=where)
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise FssError(f"the point {point} lies outside its photo, {width} wide and {height} high", where=where)
    return [[float(x), float(y)] for x, y in points]


def _labels(labels: Any, count: int, where: str) -> list[int]:
    where = f"{where}.labels"
    if labels is None:
        return [1] * count
    if not (isinstance(labels, list) and all(v in (0, 1) for v in labels)):
        raise FssError("labels are 1 (on the object) or 0 (off it)", where=where)
    if len(labels) != count:
        raise FssError(f"{len(labels)} labels for {count} points", where=where, hint="give one label for each point")
    if 1 not in labels:
        raise FssError("no point is on the object", where=where, hint="give at least one point with label 1")
    return [int(v) for v in labels]


def _number(value: Any) -> bool:
    """Whether `value` is a number. Huge integers are not: they cannot be converted to float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE
