"""Decoded photos and masks, each made once for as long as there is room: episodes of a window share them.

With a side photos and masks are kept as squares, which saves the resize too: `published` preprocessing gives the same
values for the square as for the photo, mirrored or not (Pillow's bilinear and nearest resize, which every published
loader uses). Where a mask's square does not do, the mask is given too (`Sample.whole`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.data import rle
from pipelines.data.decode import decode_sized, decode_square
from pipelines.data.plan import Place
from pipelines.data.schema import Sample
from pipelines.data.shardset import NO_LIMIT, cropped, masks_of

STRIP = 128  # columns


class AnnotationMasks(NamedTuple):
    """An annotation without its photo. `key` names the photo or the crop of it, `size` is its (H, W).

    mask, ignore: [H, W] bool, or squares, then with `whole` as `Sample` has it
    """

    key: Hashable
    image_id: int
    mask: np.ndarray
    ignore: np.ndarray
    size: tuple[int, int]
    whole: tuple[np.ndarray, np.ndarray] | None


class SampleReader:
    """Decodes rows of blocks. Safe to use from several threads; what two ask for at once is made once.

    limit: bytes of pixels and masks kept, the least recently used are let go; 0: none.
    side: photos and masks come as squares of that side; 0: as they are.
    """

    def __init__(self, limit: int, side: int = 0) -> None:
        self.side, self._kept = side, _PixelCache(limit)

    @property
    def held(self) -> int:
        """Bytes kept now."""
        return self._kept.held

    def __call__(self, tables: Mapping[int, pa.Table], places: Sequence[Place]) -> list[Sample]:
        """The annotations at some places. Their arrays are shared and cannot be written to.

        All masks come before the first photo: by turns, each would find nothing of its own left in the CPU's caches.
        """
        return [self._sample(tables, place, marks)
                for place, marks in [(place, self.marks(tables, place)) for place in places]]

    def _sample(self, tables: Mapping[int, pa.Table], place: Place, marks: AnnotationMasks) -> Sample:
        image = self._kept.get(("photo", marks.key), lambda: self._photo(tables, place))
        return Sample(image_id=marks.image_id, image=image, mask=marks.mask, ignore=marks.ignore,
                      size=marks.size if self.side else None, whole=marks.whole)

    def marks(self, tables: Mapping[int, pa.Table], place: Place) -> AnnotationMasks:
        """The same without the photo, whose bytes are not read."""
        found: AnnotationMasks = self._kept.get(("marks", *place), lambda: _marks(tables, place, self.side))
        return found

    def _photo(self, tables: Mapping[int, pa.Table], place: Place) -> tuple[np.ndarray, int]:
        row = _row(tables, place, ("image", "height", "width", "crop"))
        size = (row["height"], row["width"])
        if self.side:
            image = decode_square(row["image"], *size, self.side, crop=row["crop"], max_pixels=NO_LIMIT,
                                  max_bytes=NO_LIMIT)
        else:
            whole = decode_sized(row["image"], *size, max_pixels=NO_LIMIT, max_bytes=NO_LIMIT)
            (image,) = cropped(row["crop"], whole)
        image.flags.writeable = False
        return image, image.nbytes


def square_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """[H, W] bool -> [side, side] bool, as `preprocess.resize_mask` resizes.

    Masks come from run lengths column by column. Nearest is of columns and rows: both are copied whole, around the one
    transposition that such a mask needs anyway, which takes a quarter of the time that Pillow takes after it.
    """
    if not mask.flags.f_contiguous:
        picture = Image.fromarray(mask.view(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
        return np.asarray(picture).view(bool)
    columns = mask.T.take(_nearest(mask.shape[1], side), axis=0)
    square: np.ndarray = _turned(columns).take(_nearest(mask.shape[0], side), axis=0)
    return square


def _turned(columns: np.ndarray) -> np.ndarray:
    """[W, H] -> [H, W], copied in strips that stay in the CPU's first cache."""
    rows = np.empty(columns.shape[::-1], columns.dtype)
    for at in range(0, len(columns), STRIP):
        rows[:, at : at + STRIP] = columns[at : at + STRIP].T
    return rows


@lru_cache(maxsize=4096)
def mirror_choices(width: int, side: int) -> bool:
    """Whether a mirrored mask's square is its mirrored square: not where nearest is a tie, as at half the width."""
    columns = _nearest(width, side)
    return bool(np.array_equal(columns[::-1], width - 1 - columns))


@lru_cache(maxsize=4096)
def _nearest(size: int, side: int) -> np.ndarray:
    """[side] the row or column of `size` that Pillow's nearest resize takes."""
    row = Image.fromarray(np.arange(size, dtype=np.int32)[None]).resize((side, 1), Image.Resampling.NEAREST)
    picked: np.ndarray = np.asarray(row)[0].astype(np.intp)
    return picked


def _row(tables: Mapping[int, pa.Table], place: Place, columns: tuple[str, ...]) -> dict[str, Any]:
    table = tables[place[0]]
    there = set(table.column_names)  # shards of schema 1 have no crop
    return {name: table.column(name)[place[1]].as_py() if name in there else None for name in columns}


def _marks(tables: Mapping[int, pa.Table], place: Place, side: int) -> tuple[AnnotationMasks, int]:
    row = _row(tables, place, ("image_id", "void_rle", "height", "width", "crop"))
    found = tables[place[0]].column("instances")[place[1]].values  # boxes and areas are not needed
    instances = [{"rle": r, "iscrowd": c} for r, c in
                 zip(found.field("rle").to_pylist(), found.field("iscrowd").to_pylist(), strict=True)]
    if row["void_rle"] or any(i["iscrowd"] for i in instances):
        both = masks_of(instances, row["void_rle"], row["height"], row["width"])
        mask, ignore = cropped(row["crop"], *both)
    else:
        whole = rle.union([i["rle"] for i in instances], row["height"], row["width"])
        (mask,) = cropped(row["crop"], whole)
        ignore = _nothing(mask.shape)
    key = (row["image_id"], *(row["crop"] or ()))
    return _kept_marks(AnnotationMasks(key, row["image_id"], mask, ignore, (mask.shape[0], mask.shape[1]), None), side)


def _kept_marks(marks: AnnotationMasks, side: int) -> tuple[AnnotationMasks, int]:
    """As squares where there is a side, read-only, and the bytes they take. An `ignore` without strides is nothing."""
    if side:
        small, ignore = (_each(m, partial(square_mask, side=side), (side, side)) for m in (marks.mask, marks.ignore))
        enough = mirror_choices(marks.size[1], side) and bool(small.any())
        marks = marks._replace(mask=small, ignore=ignore, whole=None if enough else _by_rows(marks))
    else:
        mask, ignore = _by_rows(marks)
        marks = marks._replace(mask=mask, ignore=ignore)
    arrays = [a for a in (marks.mask, marks.ignore, *(marks.whole or ())) if a.strides[0]]
    for array in arrays:
        array.flags.writeable = False
    return marks, sum(a.nbytes for a in arrays)


def _by_rows(marks: AnnotationMasks) -> tuple[np.ndarray, np.ndarray]:
    """Mask and ignore in C order."""
    mask, ignore = (_each(m, np.ascontiguousarray, m.shape) for m in (marks.mask, marks.ignore))
    return mask, ignore


def _each(mask: np.ndarray, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """A mask changed; one without strides, which is nothing, stays nothing."""
    return change(mask) if mask.strides[0] else _nothing(shape)


def _nothing(shape: tuple[int, ...]) -> np.ndarray:
    """All false, without taking room."""
    return np.broadcast_to(np.False_, shape)


class _PixelCache:
    """Values by key up to a number of bytes; a value that is being made is waited for."""

    def __init__(self, limit: int) -> None:
        self._limit, self.held = limit, 0
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value; `make` gives it and its bytes."""
        with self._lock:
            made = self._items.get(key)
            if made is not None:
                self._items.move_to_end(key)
                return made[0]
            making = self._making.get(key)
            if making is None:
                future = self._making[key] = Future()
        return making.result() if making is not None else self._make(key, make, future)

    def _make(self, key: Hashable, make: Callable[[], tuple[Any, int]], future: Future[Any]) -> Any:
        try:
            value, size = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._items[key] = (value, size)
            self.held += size
            while self.held > self._limit:
                self.held -= self._items.popitem(last=False)[1][1]
        future.set_result(value)
        return value
