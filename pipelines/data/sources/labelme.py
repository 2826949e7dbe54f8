"""LabelMe: one JSON file per photo, beside it or in another folder, with polygons or masks in pixels.

The photo is the one that `imagePath` names, relative to the JSON file; else a file below the root whose path ends like
it; else the photo of the JSON file's own name beside it; else the copy in `imageData`. LabelMe shows photos upright
(EXIF). Shapes with the label `__ignore__` are void, `_background_` is no class. Photos without a JSON file in folders
with annotated ones are listed as failures: nobody has looked at them.
"""

from __future__ import annotations

import base64
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fss_models.errors import BadImage, FssError
from fss_models.mask_files import read_mask_picture
from fss_models.photo_files import is_photo
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.annotated import ExportSource, LabelledShape, no_mask, polygon, rasterise_shapes
from pipelines.data.sources.base import (
    BarePhoto,
    FetchedImage,
    ImageMasks,
    MissingPhoto,
    SourceFailure,
    SourceImage,
    digest_of,
)
from pipelines.data.sources.finder import FileFinder, ambiguous
from pipelines.data.sources.text import class_name, whole_number

POLYGON, MASK = "polygon", "mask"
IGNORE, BACKGROUND = "__ignore__", "_background_"  # LabelMe's own words
READERS = 8  # JSON files that the driver reads at a time
_SHAPES = {POLYGON: POLYGON, MASK: MASK, "rectangle": "a rectangle", "circle": "a circle", "line": "a line",
           "linestrip": "a line", "point": "a point", "points": "a set of points"}


class LabelmeFile(NamedTuple):
    """A JSON file: its path, the path it gives the photo, (height, width), (label, kind, value) of every shape, and
    whether it has the photo itself."""

    path: str
    photo: str
    size: tuple[int, int] | None
    shapes: list[tuple[str, str, Any]]
    embedded: bool


class LabelmeSource(ExportSource):
    """Reads LabelMe's JSON files. Class ids follow the sorted labels."""

    masks = frozenset({POLYGON, MASK})

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        names = [f for f in self.files if f.lower().endswith(".json") and f.startswith(cfg.annotations)]
        with ThreadPoolExecutor(READERS) as pool:
            read = list(pool.map(self._read, names))
        found = [record for record in read if isinstance(record, LabelmeFile)]
        self.failures.extend(record for record in read if isinstance(record, SourceFailure))
        if not found:
            reason = f"; the first one: {self.failures[0].reason}" if self.failures else ""
            raise FssError(f"there is no LabelMe file among {len(names)} .json files{reason}", where=self.store.url,
                           hint="set data.source.root to the folder of the photos and their .json files")
        labels = {label for record in found for label, *_ in record.shapes} - {IGNORE, BACKGROUND, ""}
        self.classes = sorted(labels)
        self._index(found)
        self.drop_repeated()
        self.check_some_masks(self.store.url, "draw polygons or masks")
        self.fingerprint = digest_of(self.classes, [(i.path, i.size, i.stamp) for i in self.items])

    def _read(self, name: str) -> LabelmeFile | SourceFailure:
        try:
            return _parse(name, self.store.read_bytes(name))
        except ValueError as error:
            return SourceFailure(name, "index", str(error))

    def _index(self, records: list[LabelmeFile]) -> None:
        ids = {label: number for number, label in enumerate(self.classes)}
        images, by_stem = {f for f in self.files if is_photo(f)}, defaultdict[str, list[str]](list)
        for image in sorted(images):
            by_stem[posixpath.splitext(image)[0]].append(image)
        owners = {record.photo: record.path for record in records if record.photo in images}
        used: set[str] = set()
        for record in records:
            try:
                path = _photo_of(record, by_stem, owners, self.photos)
            except FssError as error:
                self.fail(record.photo, f"{record.path}: {error.what}",
                          MissingPhoto if "missing" in error.what else SourceFailure)
                continue
            used.add(path)
            bare = [number for number, (label, *_) in enumerate(record.shapes, 1) if not label]
            if bare:
                self.fail(path, f"{record.path}: {len(bare)} shapes have no label")
            shapes = [LabelledShape(f"shape {number}", ids.get(label, -1), label, kind, value)
                      for number, (label, kind, value) in enumerate(record.shapes, 1) if label not in ("", BACKGROUND)]
            self.add(path, shapes, name=record.photo if path == record.path else path, size=record.size)
        folders = {posixpath.dirname(path) for path in used}
        for image in sorted(images - used):
            if posixpath.dirname(image) in folders:
                self.fail(image, "no .json file names this photo", BarePhoto)

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its shapes. Raises `BadImage` if the copy of the photo in a JSON file is unreadable."""
        data = self.store.read_bytes(item.path)
        if item.path.lower().endswith(".json"):
            try:
                data = base64.b64decode(json.loads(data)["imageData"])
            except (ValueError, KeyError, TypeError) as error:
                raise BadImage(f"{item.path}: its imageData is unreadable") from error
        return FetchedImage(data, item.annotations)

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per shape; those to be ignored are void."""
        shapes: list[LabelledShape] = fetched.payload
        masks = rasterise_shapes([s for s in shapes if s.label != IGNORE], self.shape_counts, height, width)
        ignored = [s._replace(class_id=0) for s in shapes if s.label == IGNORE]
        void = rasterise_shapes(ignored, self.shape_counts, height, width)
        masks.problems.extend(void.problems)
        if not void.instances:
            return masks
        return replace(masks, void=rle.encode(rle.union([m.rle for m in void.instances], height, width)))

    @staticmethod
    def shape_counts(shape: LabelledShape, height: int, width: int) -> bytes:
        """The counts of a polygon or a mask."""
        if shape.kind == POLYGON:
            return polygon(list(_flat(shape.value)), height, width)
        if shape.kind == MASK:
            return rle.encode(_placed(*shape.value, height=height, width=width))
        raise no_mask(shape.kind)


def _parse(path: str, data: bytes) -> LabelmeFile:
    """A LabelMe file. Raises ValueError if it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file is not valid JSON: {error}") from error
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError("this is not a LabelMe file: it has no list of shapes")
    name = str(document.get("imagePath") or "").replace("\\", "/")
    if not name:
        raise ValueError("it does not name its photo (imagePath)")
    photo = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    height, width = (whole_number(str(document.get(key))) for key in ("imageHeight", "imageWidth"))
    return LabelmeFile(path, photo, (height, width) if height and width else None, list(map(_shape, shapes)),
                       isinstance(document.get("imageData"), str) and bool(document["imageData"]))


def _shape(shape: dict[str, Any]) -> tuple[str, str, Any]:
    kind = str(shape.get("shape_type") or POLYGON)  # LabelMe 3 had only polygons
    known = _SHAPES.get(kind, f"a shape of type {kind[:20]!r}")
    value = (shape.get("points"), shape.get("mask")) if known == MASK else shape.get("points")
    label = shape.get("label")
    return "" if label is None else class_name(label), known, value if known in (POLYGON, MASK) else None


def _photo_of(record: LabelmeFile, by_stem: Mapping[str, list[str]], owners: dict[str, str], finder: FileFinder) -> str:
    """The path of the photo of a JSON file, or of the JSON file itself if it has the photo.

    by_stem: path without suffix -> photos; owners: photo -> the JSON file whose `imagePath` is exactly that. Raises
    `FssError` if the photo is missing, another file's or one of several.
    """
    if record.photo in owners:
        return record.photo
    path = finder.find(record.photo)
    if path is None:
        beside = by_stem.get(posixpath.splitext(record.path)[0], [])
        if len(beside) > 1:
            raise FssError(ambiguous(beside, "the name of this file"))
        path = beside[0] if beside else None
    if path is not None and path not in owners:
        return path
    if record.embedded:
        return record.path
    if path is not None:
        raise FssError(f"its photo is missing; {path} is that of {owners[path]}")
    raise FssError("its photo is missing, and it has no imageData")


def _flat(points: Any) -> Iterator[float]:
    """x0, y0, x1, y1, ... of a list of corners. Raises ValueError or TypeError for anything else."""
    for corner in points:
        x, y = corner
        yield from (float(x), float(y))


def _placed(points: Any, picture: Any, *, height: int, width: int) -> np.ndarray:
    """A mask, a PNG in base64 of the box between two corners, in the photo: [height, width] bool. Raises ValueError."""
    (left, top), *_ = ((int(float(x)), int(float(y))) for x, y in points)
    try:
        part = read_mask_picture(base64.b64decode(picture)).mask
    except BadImage as error:
        raise ValueError(f"mask: {error.reason}") from error
    down, across = part.shape
    if left < 0 or top < 0 or left + across > width or top + down > height:
        raise ValueError(f"mask of {across}x{down} at {left}, {top} does not lie in the photo of {width}x{height}")
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + down, left : left + across] = part
    return mask
