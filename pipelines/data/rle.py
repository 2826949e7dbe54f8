"""Masks as COCO's compressed run lengths: the `counts` bytes. Height and width are passed separately.

`from_coco` and `from_polygons` are the only door for masks from outside: they check everything before pycocotools,
which crashes, hangs or reads beyond its memory on wrong numbers. The other functions take counts that came through it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools import mask as coco

REACH = 10  # corners of polygons lie within so many sides of the photo; what is outside the photo is cut off
MAX_OUTLINE = 4_000_000  # pixels along all polygons of an object: its rasterising takes 40 bytes each


def encode(mask: np.ndarray) -> bytes:
    """Encode a mask: [H, W] bool -> counts."""
    return bytes(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])


def decode(counts: bytes, height: int, width: int) -> np.ndarray:
    """Decode a mask: counts -> [H, W] bool."""
    return _bools(coco.decode({"size": [height, width], "counts": counts}))


def union(counts: Iterable[bytes], height: int, width: int) -> np.ndarray:
    """The union of several masks, [H, W] bool. It is false everywhere if there are none."""
    rles = [{"size": [height, width], "counts": c} for c in counts]
    if not rles:
        return np.zeros((height, width), dtype=bool)
    return _bools(coco.decode(coco.merge(rles) if len(rles) > 1 else rles[0]))


def union_area(counts: Iterable[bytes], height: int, width: int) -> int:
    """Number of pixels in the union of several masks, computed without decoding them."""
    rles = [{"size": [height, width], "counts": c} for c in counts]
    return int(coco.area(coco.merge(rles))) if rles else 0


def area(counts: bytes, height: int, width: int) -> int:
    """Number of pixels in one mask."""
    return int(coco.area({"size": [height, width], "counts": counts}))


def iou(one: bytes, other: bytes, height: int, width: int) -> float:
    """Intersection over union of two masks of one photo; 1 if both are empty."""
    both = [{"size": [height, width], "counts": c} for c in (one, other)]
    return float(coco.iou(both[:1], both[1:], [0])[0, 0]) if any(coco.area(both)) else 1.0


def bbox(counts: bytes, height: int, width: int) -> list[float]:
    """The bounding box of one mask, [x, y, width, height] in pixels."""
    return [float(v) for v in coco.toBbox({"size": [height, width], "counts": counts})]


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int,
                  problems: list[str] | None = None) -> bytes:
    """Polygons (x0, y0, x1, y1, ... in pixels) of one object -> counts.

    A piece is readable if it has an even count of at least six numbers, all finite and within `REACH` sides of the
    photo. An unreadable piece raises ValueError, as does an object without pieces; with `problems` its reason is
    appended there instead, and the object is read without it if any piece is left.
    """
    pieces, reasons = [], []
    for number, polygon in enumerate(polygons, 1):
        try:
            pieces.append(_piece(polygon, height, width))
        except ValueError as error:
            reasons.append(f"piece {number}: {error}" if len(polygons) > 1 else str(error))
    if reasons and (problems is None or not pieces):
        raise ValueError(reasons[0])
    if not pieces:
        raise ValueError("it has no polygon")
    if sum(map(_outline, pieces)) > MAX_OUTLINE:
        raise ValueError(f"its outline is longer than {MAX_OUTLINE:,} pixels")
    if problems is not None:
        problems.extend(f"{reason}; its other pieces are read" for reason in reasons)
    return bytes(coco.merge(coco.frPyObjects([p.tolist() for p in pieces], height, width))["counts"])


def _piece(polygon: Sequence[float], height: int, width: int) -> np.ndarray:
    """One polygon as float64. Raises ValueError if it is not readable."""
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("a polygon must be a flat list of numbers: x0, y0, x1, y1, ...") from error
    if points.ndim != 1:
        raise ValueError("a polygon must be a flat list of numbers: x0, y0, x1, y1, ...")
    if not np.isfinite(points).all():
        raise ValueError("a polygon has a corner that is not finite (NaN or infinite)")
    if len(points) < 6 or len(points) % 2:
        raise ValueError(f"no polygon with three corners ({len(points)} numbers instead of an even count of 6 or more)")
    if np.abs(points).max() > REACH * max(height, width):
        raise ValueError(f"a polygon has a corner that is nowhere near the photo of {width}x{height}")
    return points


def _outline(points: np.ndarray) -> float:
    """The number of pixels that rasterising visits, about."""
    corners = points.reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def from_coco(segmentation: object, height: int, width: int, problems: list[str] | None = None) -> bytes:
    """Any `segmentation` in COCO's format (polygons, uncompressed or compressed RLE) -> counts.

    A flat list of numbers is read as one polygon. Compressed counts may also be given as Python prints bytes
    (`b'...'`) or in base64. Nothing that is not valid reaches pycocotools, which crashes on it. Raises ValueError if
    it is malformed or an RLE of another size; `problems` as in `from_polygons`.
    """
    if segmentation is None or segmentation == [] or segmentation == {}:
        raise ValueError("its segmentation is empty (a box only?)")
    if isinstance(segmentation, list):
        flat = all(isinstance(v, int | float) for v in segmentation)
        return from_polygons([segmentation] if flat else segmentation, height, width, problems)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("its segmentation is neither polygons nor RLE")
    if _whole(segmentation["size"]).tolist() != [height, width]:
        h, w = (str(v)[:20] for v in (*segmentation["size"], "?", "?")[:2])
        raise ValueError(f"mask is {w}x{h}, its image {width}x{height}")
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        return _compressed(counts, height * width)
    runs = _whole(counts)
    _check_runs(runs, height * width)
    return bytes(coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)["counts"])


def _whole(values: object) -> np.ndarray:
    """A list of whole numbers as int64. Raises ValueError for anything else."""
    if isinstance(values, list | tuple | np.ndarray):
        try:
            found = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            found = np.array([[]])
        if found.ndim == 1 and np.isfinite(found).all() and (found == np.floor(found)).all() \
                and (np.abs(found) < 2**53).all():
            return found.astype(np.int64)
    raise ValueError("the size or counts of the RLE are not whole numbers")


def _check_runs(runs: np.ndarray, pixels: int) -> None:
    """Raises ValueError unless the run lengths are those of a mask of so many pixels."""
    if (runs < 0).any():
        raise ValueError("the RLE counts have a negative run length")
    if (runs > pixels).any() or runs.sum() != pixels:
        raise ValueError(f"the RLE counts do not add up to the image's size of {pixels} pixels")


def _compressed(counts: str | bytes, pixels: int) -> bytes:
    """Compressed counts in one of their three spellings -> the counts. Raises ValueError if none is valid."""
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except UnicodeEncodeError as error:
        raise ValueError("the RLE counts are not text of compressed run lengths") from error
    if data[:2] in (b"b'", b'b"') and data[-1:] == data[1:2]:
        try:
            data = data[2:-1].decode("unicode_escape").encode("latin-1")
        except ValueError as error:
            raise ValueError("the RLE counts are not text of compressed run lengths") from error
    try:
        _check_runs(_runs(data), pixels)
    except ValueError as error:
        try:
            plain = base64.b64decode(data, validate=True)
            _check_runs(_runs(plain), pixels)
        except ValueError:
            raise error from None
        return plain
    return data


def _runs(counts: bytes) -> np.ndarray:
    """The run lengths (int64) in compressed counts. Raises ValueError for bytes that no encoder writes.

    A number is written in groups of five bits, the lowest first, as characters from "0" on, of which 32 marks that
    more follow and 16 of the last the sign. From the fourth number on it is the difference to the last but one.
    """
    groups = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups & 32 == 0)
    if not len(groups) or (groups < 0).any() or (groups > 63).any() or ends[-1:].tolist() != [len(groups) - 1]:
        raise ValueError("the RLE counts are not text of compressed run lengths")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("the RLE counts have a run length of more than 32 bits")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & 31) << (5 * place), starts)
    values -= np.where(groups[ends] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def _bools(mask: np.ndarray) -> np.ndarray:
    """A [H, W] array of 0 and 1 as bool, without a copy; it stays in column-major order."""
    found: np.ndarray = np.asarray(mask, dtype=np.uint8).view(bool)
    return found
