"""Decoded photos and masks in a bounded cache, which the episodes of a window share.

With a side, photos and masks are cached as squares, which saves the resize too. `published` preprocessing gives the
same values for the square as for the photo, mirrored or not (Pillow's bilinear and nearest resize, which every
published loader uses). Where the square of a mask is not enough, the sample has the whole mask too (`Sample.whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from fss_models.photo_files import decode_sized, decode_square
from pipelines.data import rle
from pipelines.data.byte_cache import ByteCache
from pipelines.data.plan import Place
from pipelines.data.schema import Sample
from pipelines.data.shardset import cropped, masks_of

STRIP = 128  # columns that `_transpose` copies at a time


class AnnotationMasks(NamedTuple):
    """An annotation without its photo.

    key: identifies the photo, or its crop where a part benchmark crops; size: the (H, W) of the photo or the crop;
    mask, ignore: [H, W] bool, or squares; whole: as in `Sample`.
    """

    key: Hashable
    image_id: int
    mask: np.ndarray
    ignore: np.ndarray
    size: tuple[int, int]
    whole: tuple[np.ndarray, np.ndarray] | None


class SampleReader:
    """Decodes rows of blocks. Several threads may use it; a value that two of them need at once is computed once.

    limit: bytes of pixels and masks in the cache, which drops the least recently used ones; 0: no cache.
    side: side in pixels of the squares that photos and masks become; 0: their own size.
    """

    def __init__(self, limit: int, side: int = 0) -> None:
        self.side, self._cache = side, ByteCache(limit)

    @property
    def cached_bytes(self) -> int:
        """Bytes of pixels and masks in the cache now."""
        return self._cache.size

    def __call__(self, tables: Mapping[int, pa.Table], places: Sequence[Place]) -> list[Sample]:
        """The samples at some places. Their arrays are shared and read-only.

        All masks are decoded before the first photo: alternating would push each other's data out of the CPU's caches.
        """
        return [self._sample(tables, place, masks)
                for place, masks in [(place, self.masks(tables, place)) for place in places]]

    def _sample(self, tables: Mapping[int, pa.Table], place: Place, masks: AnnotationMasks) -> Sample:
        image = self._cache.get(("photo", masks.key), lambda: self._photo(tables, place))
        return Sample(image_id=masks.image_id, image=image, mask=masks.mask, ignore=masks.ignore,
                      size=masks.size if self.side else None, whole=masks.whole)

    def masks(self, tables: Mapping[int, pa.Table], place: Place) -> AnnotationMasks:
        """The masks of the annotation at a place. The bytes of its photo are not read."""
        found: AnnotationMasks = self._cache.get(("masks", *place), lambda: _read_masks(tables, place, self.side))
        return found

    def _photo(self, tables: Mapping[int, pa.Table], place: Place) -> tuple[np.ndarray, int]:
        row = _row(tables, place, ("image", "height", "width", "crop"))
        size = (row["height"], row["width"])
        if self.side:
            image = decode_square(row["image"], *size, self.side, crop=row["crop"], limits=None)
        else:
            whole = decode_sized(row["image"], *size, limits=None)
            (image,) = cropped(row["crop"], whole)
        image.flags.writeable = False
        return image, image.nbytes


def square_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """[H, W] bool -> [side, side] bool, with the same result as `preprocess.resize_mask`.

    Masks decoded from run lengths are in column-major order. Nearest resizing selects columns and rows, so whole
    columns are copied, then transposed, then whole rows are copied. That takes a quarter of Pillow's time.
    """
    if not mask.flags.f_contiguous:
        picture = Image.fromarray(mask.view(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
        return np.asarray(picture).view(bool)
    columns = mask.T.take(_nearest(mask.shape[1], side), axis=0)
    square: np.ndarray = _transpose(columns).take(_nearest(mask.shape[0], side), axis=0)
    return square


def _transpose(columns: np.ndarray) -> np.ndarray:
    """The transpose [W, H] -> [H, W], copied in strips that fit the CPU's first cache."""
    rows = np.empty(columns.shape[::-1], columns.dtype)
    for at in range(0, len(columns), STRIP):
        rows[:, at : at + STRIP] = columns[at : at + STRIP].T
    return rows


@lru_cache(maxsize=4096)
def mirrors_exactly(width: int, side: int) -> bool:
    """Whether mirroring before and after the resize to a square gives the same mask.

    It does not where the nearest column is a tie, for example at half the width.
    """
    columns = _nearest(width, side)
    return bool(np.array_equal(columns[::-1], width - 1 - columns))


@lru_cache(maxsize=4096)
def _nearest(size: int, side: int) -> np.ndarray:
    """[side] indices of the rows or columns, out of `size`, that Pillow's nearest resize selects."""
    row = Image.fromarray(np.arange(size, dtype=np.int32)[None]).resize((side, 1), Image.Resampling.NEAREST)
    picked: np.ndarray = np.asarray(row)[0].astype(np.intp)
    return picked


def _row(tables: Mapping[int, pa.Table], place: Place, columns: tuple[str, ...]) -> dict[str, Any]:
    table = tables[place[0]]
    there = set(table.column_names)  # shards of schema 1 have no crop
    return {name: table.column(name)[place[1]].as_py() if name in there else None for name in columns}


def _read_masks(tables: Mapping[int, pa.Table], place: Place, side: int) -> tuple[AnnotationMasks, int]:
    row = _row(tables, place, ("image_id", "void_rle", "height", "width", "crop"))
    found = tables[place[0]].column("instances")[place[1]].values  # boxes and areas are not converted
    instances = [{"rle": r, "iscrowd": c} for r, c in
                 zip(found.field("rle").to_pylist(), found.field("iscrowd").to_pylist(), strict=True)]
    if row["void_rle"] or any(i["iscrowd"] for i in instances):
        both = masks_of(instances, row["void_rle"], row["height"], row["width"])
        mask, ignore = cropped(row["crop"], *both)
    else:
        whole = rle.union([i["rle"] for i in instances], row["height"], row["width"])
        (mask,) = cropped(row["crop"], whole)
        ignore = _empty_mask(mask.shape)
    key = (row["image_id"], *(row["crop"] or ()))
    masks = AnnotationMasks(key, row["image_id"], mask, ignore, (mask.shape[0], mask.shape[1]), None)
    return _cacheable_masks(masks, side)


def _cacheable_masks(masks: AnnotationMasks, side: int) -> tuple[AnnotationMasks, int]:
    """The masks, read-only, and the bytes they take. They become squares if `side` is not 0.

    An array without strides is an empty mask of `_empty_mask`, which takes no memory.
    """
    if side:
        small, ignore = (_map_mask(m, partial(square_mask, side=side), (side, side))
                         for m in (masks.mask, masks.ignore))
        enough = mirrors_exactly(masks.size[1], side) and bool(small.any())
        masks = masks._replace(mask=small, ignore=ignore, whole=None if enough else _row_major(masks))
    else:
        mask, ignore = _row_major(masks)
        masks = masks._replace(mask=mask, ignore=ignore)
    arrays = [a for a in (masks.mask, masks.ignore, *(masks.whole or ())) if a.strides[0]]
    for array in arrays:
        array.flags.writeable = False
    return masks, sum(a.nbytes for a in arrays)


def _row_major(masks: AnnotationMasks) -> tuple[np.ndarray, np.ndarray]:
    """Mask and ignore as arrays in C order (row by row)."""
    mask, ignore = (_map_mask(m, np.ascontiguousarray, m.shape) for m in (masks.mask, masks.ignore))
    return mask, ignore


def _map_mask(mask: np.ndarray, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """`change` applied to a mask. An empty mask of `_empty_mask` (no strides) becomes one of the new shape."""
    return change(mask) if mask.strides[0] else _empty_mask(shape)


def _empty_mask(shape: tuple[int, ...]) -> np.ndarray:
    """A mask that is false everywhere and takes no memory: all its strides are 0."""
    return np.broadcast_to(np.False_, shape)
