"""Decoded photos and masks, each made once for as long as there is room: episodes of a window share them.

With a side the photos are kept as squares, which saves the resize too: `published` preprocessing gives the very same
pixels for the square as for the photo, mirrored or not (Pillow's bilinear resize, which every published loader uses).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.data import rle
from pipelines.data.decode import decode_sized
from pipelines.data.plan import Place
from pipelines.data.schema import Sample
from pipelines.data.shardset import NO_LIMIT, cropped, masks_of


class Marks(NamedTuple):
    """An annotation without its photo. mask, ignore: [H, W] bool; `key` names the photo or the crop of it."""

    key: Hashable
    image_id: int
    mask: np.ndarray
    ignore: np.ndarray


class SampleReader:
    """Decodes rows of blocks. Safe to use from several threads; what two ask for at once is made once.

    limit: bytes of pixels and masks kept, the least recently used are let go; 0: none.
    side: photos come as squares of that side, masks always at the photo's size; 0: photos as they are.
    """

    def __init__(self, limit: int, side: int = 0) -> None:
        self._side, self._kept = side, _Kept(limit)

    @property
    def held(self) -> int:
        """Bytes kept now."""
        return self._kept.held

    def __call__(self, tables: Mapping[int, pa.Table], place: Place) -> Sample:
        """The annotation at a place. Its arrays are shared and cannot be written to."""
        marks = self.marks(tables, place)
        image = self._kept.get(("photo", marks.key), lambda: self._photo(tables, place))
        return Sample(image_id=marks.image_id, image=image, mask=marks.mask, ignore=marks.ignore)

    def marks(self, tables: Mapping[int, pa.Table], place: Place) -> Marks:
        """The same without the photo, whose bytes are not read."""
        found: Marks = self._kept.get(("marks", *place), lambda: _marks(tables, place))
        return found

    def _photo(self, tables: Mapping[int, pa.Table], place: Place) -> tuple[np.ndarray, int]:
        row = _row(tables, place, ("image", "height", "width", "crop"))
        image = decode_sized(row["image"], row["height"], row["width"], max_pixels=NO_LIMIT, max_bytes=NO_LIMIT)
        (image,) = cropped(row["crop"], image)
        if self._side:
            image = square(image, self._side)
        image.flags.writeable = False
        return image, image.nbytes


def square(image: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3] uint8, as `published` preprocessing resizes."""
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _row(tables: Mapping[int, pa.Table], place: Place, columns: tuple[str, ...]) -> dict[str, Any]:
    table = tables[place[0]]
    there = set(table.column_names)  # shards of schema 1 have no crop
    return {name: table.column(name)[place[1]].as_py() if name in there else None for name in columns}


def _marks(tables: Mapping[int, pa.Table], place: Place) -> tuple[Marks, int]:
    row = _row(tables, place, ("image_id", "void_rle", "height", "width", "crop"))
    found = tables[place[0]].column("instances")[place[1]].values  # boxes and areas are not needed
    instances = [{"rle": r, "iscrowd": c} for r, c in
                 zip(found.field("rle").to_pylist(), found.field("iscrowd").to_pylist(), strict=True)]
    ignored = bool(row["void_rle"]) or any(i["iscrowd"] for i in instances)
    if ignored:
        mask, ignore = masks_of(instances, row["void_rle"], row["height"], row["width"])
        mask, ignore = (np.ascontiguousarray(m) for m in cropped(row["crop"], mask, ignore))
    else:
        whole = rle.union([i["rle"] for i in instances], row["height"], row["width"])
        (mask,) = (np.ascontiguousarray(m) for m in cropped(row["crop"], whole))
        ignore = np.broadcast_to(np.False_, mask.shape)  # takes no room
    mask.flags.writeable = ignore.flags.writeable = False
    key = (row["image_id"], *(row["crop"] or ()))
    return Marks(key, row["image_id"], mask, ignore), mask.nbytes * (1 + ignored)


class _Kept:
    """Values by key up to a number of bytes; a value that is being made is waited for."""

    def __init__(self, limit: int) -> None:
        self._limit, self.held = limit, 0
        self._items: OrderedDict[Hashable, tuple[Future[Any], int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value; `make` gives it and its bytes."""
        future: Future[Any] = Future()
        with self._lock:
            made = self._items[key][0] if key in self._items else None
            if made is None:
                self._items[key] = (future, 0)
            else:
                self._items.move_to_end(key)
        if made is not None:
            return made.result()
        try:
            value, size = make()
        except BaseException as error:
            with self._lock:
                self._items.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:
            if key in self._items:
                self._items[key] = (future, size)
                self.held += size
            while self.held > self._limit:
                self.held -= self._items.popitem(last=False)[1][1]
        future.set_result(value)
        return value
