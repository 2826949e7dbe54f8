"""A Parquet table (one file or several) with one row per object.

    image      binary        the photo's file, or
    file_name  string        the path of the photo below the root, or the end of that path; or, for a photo that is not
                             there, its URL in a bucket (s3://, gs://, az://)
    class      string        null together with `mask`: the photo shows no object
    mask       one of        binary: the bytes of a PNG (`fss_models.mask_files`)
                             struct<size: list<int>, counts: string | binary | list<int>>: COCO's RLE, size [h, w]
                             list<list<float>>: polygons of one object, x0, y0, x1, y1, ... in pixels

With `file_name`, rows of the same name are one photo, whose file is the first `image` that is not null. Without it
every row is a photo of its own. Blanks around a class name are dropped. Polygons refer to the upright photo (EXIF);
masks may have the size of the photo as stored. Other columns are ignored. The driver reads names, classes and masks (to
notice changes), but no photos. A worker reads one row group at a time, so write row groups of a few hundred rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
from cachetools import LRUCache

from fss_models.errors import BadImage, FssError
from fss_models.mask_files import mask_size, read_mask_picture
from fss_models.photo_files import image_size, turned_size
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.annotated import LabelledShape, polygon, rasterise_shapes
from pipelines.data.sources.base import UNKNOWN, FetchedImage, ImageMasks, Source, SourceImage, digest_of, in_bucket
from pipelines.data.sources.text import class_name

CACHED_GROUPS = 2  # row groups that a worker has in memory
_SCHEMA = "columns: image (binary) or file_name (string), class (string), mask (PNG bytes, COCO RLE or polygons)"


class TableEntry(NamedTuple):
    """One row: its file, its row group, its place in the group, its number in the file, and its class id (-1: none)."""

    file: str
    group: int
    place: int
    number: int
    class_id: int


class TableSource(Source):
    """Reads Parquet tables. Class ids follow the sorted class names."""

    upright = True

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        tables = [f for f in self.files if f.endswith(".parquet") and f.startswith(cfg.annotations)]
        if not tables:
            raise FssError("there is no .parquet file", where=self.store.path(cfg.annotations), hint=_SCHEMA)
        self._columns: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        read = [row for name in tables for row in self._read(name)]
        self.classes = sorted({label for _, _, label, _ in read if label is not None})
        self._groups: LRUCache[tuple[str, int], pa.Table] = LRUCache(CACHED_GROUPS)
        self._index(read)
        self.fingerprint = digest_of(self.classes, [(i.file_name, i.stamp) for i in self.items])

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**{k: v for k, v in state.items() if k != "_lock"}, "_groups": LRUCache(CACHED_GROUPS)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _read(self, name: str) -> Iterator[tuple[str, TableEntry, str | None, str]]:
        """(photo, row without class id, class name, digest of its mask) of every row. Raises `FssError`."""
        try:
            yield from self._rows(name)
        except UnicodeDecodeError as error:  # Arrow checks text only when it is read
            raise FssError(f"the table is damaged: {error}", where=self.store.path(name),
                           hint="write it again") from error
        except FssError as error:
            hint = "write it again" if "build it again" in error.hint else error.hint  # it is a person's table
            raise FssError(error.what, where=error.where, hint=hint) from error

    def _rows(self, name: str) -> Iterator[tuple[str, TableEntry, str | None, str]]:
        with self.store.open_parquet(name) as table:
            self._columns[name] = _columns(table.schema_arrow, self.store.path(name))
            known, number = [c for c in self._columns[name] if c != "image"], 0
            for group in range(table.num_row_groups):
                rows = table.read_row_group(group, known)
                for place, row in enumerate(rows.to_pylist()):
                    photo = row.get("file_name") if "file_name" in known else f"{name}#{number}"
                    at = TableEntry(name, group, place, number, -1)
                    label = row["class"]
                    yield str(photo or ""), at, label if label is None else class_name(label), digest_of(row["mask"])
                    number += 1

    def _index(self, read: list[tuple[str, TableEntry, str | None, str]]) -> None:
        ids = {name: i for i, name in enumerate(self.classes)}
        photos: dict[str, list[TableEntry]] = {}
        masks: dict[str, list[str]] = {}
        for photo, row, label, mask in read:
            if not photo:
                self.fail(f"{row.file} row {row.number}", "its file_name is empty")
                continue
            photos.setdefault(photo, []).append(row._replace(class_id=ids[label] if label is not None else -1))
            masks.setdefault(photo, []).append(mask)
        beside: dict[str, str] = {}
        for photo, rows in photos.items():
            path = rows[0].file
            if "image" not in self._columns[path]:
                try:
                    found = self.photos.find(photo)
                except FssError as error:
                    self.fail(photo, error.what)
                    continue
                if found is None and in_bucket(photo):
                    found = photo
                    self.files[found] = UNKNOWN
                if found is None:
                    self.fail(photo, "the table names this photo but it is missing")
                    continue
                path = found
                if beside.setdefault(path, photo) != photo:
                    self.fail(photo, f"rows of {beside[path]} have this photo already")
                    continue
            self.add(path, rows, [r.class_id for r in rows], masks[photo], name=photo)

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its masks as they are in the table. Raises `BadImage` if the photo has no bytes there."""
        found = [(row, self._row(row)) for row in item.annotations]
        if "image" in self._columns[item.annotations[0].file]:
            data = next((values["image"] for _, values in found if values["image"]), None)
            if data is None:
                raise BadImage(f"{item.annotations[0].file} row {item.annotations[0].number}: its image is empty")
        else:
            data = self.read_photo(item.path)
        return FetchedImage(data, [(row, values["mask"]) for row, values in found])

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """(height, width) of a mask that fits the photo, turned by EXIF or as stored; None if no mask has a size.

        Raises `BadImage` for an unreadable photo.
        """
        upright, stored = turned_size(fetched.data), image_size(fetched.data)
        if upright == stored:
            return None
        sizes = [_mask_size(mask) for _, mask in fetched.payload]
        return next((size for size in (upright, stored) if size in sizes), None)

    def _row(self, row: TableEntry) -> dict[str, Any]:
        """The image and mask of a row. The threads of a part share the cached row groups."""
        key = (row.file, row.group)
        with self._lock:
            if key not in self._groups:
                wanted = [c for c in self._columns[row.file] if c in ("image", "mask")]
                with self.store.open_parquet(row.file) as table:
                    self._groups[key] = table.read_row_group(row.group, wanted)
            values: dict[str, Any] = self._groups[key].slice(row.place, 1).to_pylist()[0]
        return values

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per row. A row with null class and null mask has none."""
        shapes, problems = [], []
        for row, mask in fetched.payload:
            where = f"row {row.number}"
            if (row.class_id < 0) != (mask is None):
                problems.append(f"{where}: has a {'class' if mask is None else 'mask'} but no "
                                f"{'mask' if mask is None else 'class'}")
            elif mask is not None:
                shapes.append(LabelledShape(where, row.class_id, self.classes[row.class_id], "mask", mask))
        voids: list[bytes] = []
        masks = rasterise_shapes(shapes, partial(_rasterise, voids), height, width)
        masks.problems.extend(problems)
        return replace(masks, void=rle.encode(rle.union(voids, height, width))) if voids else masks


def _rasterise(voids: list[bytes], shape: LabelledShape, height: int, width: int) -> bytes:
    """The counts of a mask. Void pixels of a picture are appended to `voids`. Raises ValueError."""
    if isinstance(shape.value, bytes):
        try:
            picture = read_mask_picture(shape.value)
        except BadImage as error:
            raise ValueError(error.reason) from error
        mask = picture.mask
        if mask.shape != (height, width):
            raise ValueError(f"mask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}")
        voids += [] if picture.void is None else [rle.encode(picture.void)]
        return rle.encode(mask)
    if isinstance(shape.value, dict):
        return rle.from_coco(shape.value, height, width)
    for points in shape.value:
        polygon(points, height, width)
    return rle.from_polygons(shape.value, height, width)


def _mask_size(mask: Any) -> tuple[int, int] | None:
    """(height, width) that a mask has, None for polygons and unreadable masks."""
    if isinstance(mask, dict):
        size = mask["size"]
        known = isinstance(size, list) and len(size) == 2 and all(isinstance(v, int) for v in size)
        return (size[0], size[1]) if known else None
    return mask_size(mask) if isinstance(mask, bytes) else None


def _columns(schema: pa.Schema, where: str) -> list[str]:
    """The columns that are read. Raises `FssError` for a table of another schema."""
    types = {f.name: f.type for f in schema}
    if "image" not in types and "file_name" not in types:
        raise FssError("the table has neither a column image nor file_name", where=where, hint=_SCHEMA)
    for name in ("image", "file_name", "class", "mask"):
        fits = {"image": _is_bytes, "mask": _is_mask}.get(name, _is_text)
        if name not in types and name in ("class", "mask"):
            raise FssError(f"the table has no column {name}", where=where, hint=_SCHEMA)
        if name in types and not fits(types[name]):
            raise FssError(f"column {name} has the wrong type {types[name]}", where=where, hint=_SCHEMA)
    return [c for c in ("image", "file_name", "class", "mask") if c in types]


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain))


def _is_mask(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {"size", "counts"} <= {kind.field(i).name for i in range(kind.num_fields)}
    return _is_bytes(kind) or (_is_list(kind) and _is_list(kind.value_type))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
