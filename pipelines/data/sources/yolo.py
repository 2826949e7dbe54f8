"""Ultralytics YOLO segmentation: photos below `images` folders, polygons in `labels` folders beside them.

The class names are `names` of data.yaml, or classes.txt with one a line. A line of a label file is
`class x1 y1 x2 y2 x3 y3 ...`, coordinates as shares of width and height (Ultralytics, "Instance Segmentation Datasets
Overview"). A photo without a label file shows nothing, as Ultralytics has it. `train`, `val` and `test` of data.yaml
are not read: `data.split` holds photos out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from fss_models.errors import BadImage, FssError
from pipelines.config.data import SourceConfig
from pipelines.data.sources.annotated import LabelledShape, no_mask, polygon, rasterise_shapes
from pipelines.data.sources.base import (
    FetchedImage,
    ImageMasks,
    Source,
    SourceFailure,
    SourceImage,
    digest_of,
    hashed_id,
    is_image,
    listing,
)

BOX = 5  # numbers of a line that is a box: class, centre, size
PROBED_FILES = 20  # label files that the driver opens to see whether the dataset has boxes only
TOLERANCE = 0.01  # coordinates this far outside the photo are rounding; they are cut off


class YoloSource(Source):
    """Class ids are YOLO's own."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        name = cfg.annotations or _names_file(files, self.store.url)
        self.classes = _names(self.store.read_bytes(name), name, self.store.path(name))
        self._index(files)
        self._refuse_boxes()
        found = [(i.path, files[i.path], i.annotations, files.get(i.annotations)) for i in self.items]
        self.fingerprint = digest_of(self.classes, found)

    def _index(self, files: dict[str, int]) -> None:
        images = {p: f for f in files if is_image(f) and (p := _label_of(f))}
        labels = {f for f in files if f.endswith(".txt") and "labels" in PurePosixPath(f).parts[:-1]}
        if not images or not labels:
            raise FssError("needs images/ with photos and labels/ with .txt files", where=self.store.url,
                           mend="data.source.root is the folder of data.yaml")
        for label, image in sorted(images.items(), key=lambda pair: pair[1]):
            label_file = label if label in labels else ""
            self.items.append(SourceImage(image_id=hashed_id(image), file_name=image, path=image, annotations=label_file,
                                          stamp=digest_of(files[image], files.get(label_file), len(self.classes))))
        for lonely in sorted(labels - images.keys()):
            self.failures.append(SourceFailure(lonely, "index", "no photo belongs to this label file"))

    def _refuse_boxes(self) -> None:
        """Raises `FssError` if the first label files with a line in them hold boxes and no polygon."""
        seen = ""
        for path in [i.annotations for i in self.items if i.annotations][:PROBED_FILES]:
            for numbers in (fields for _, fields in _lines(self.store.read_bytes(path))):
                if len(numbers) != BOX:
                    return
                seen = seen or path
        if seen:
            raise FssError("has boxes (5 numbers a line), no polygons", where=self.store.path(seen),
                           mend="export for segmentation: class x1 y1 x2 y2 x3 y3 ...")

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its label file."""
        store = self.store
        return FetchedImage(store.read_bytes(item.path), store.read_bytes(item.annotations) if item.annotations else b"")

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mark a line. Raises `BadImage` for a file of boxes only: its objects must not become background."""
        lines = list(_lines(fetched.payload))
        if lines and all(len(numbers) == BOX for _, numbers in lines):
            raise BadImage(f"{item.annotations} has boxes only (5 numbers a line), no polygons")
        return rasterise_shapes([self._shape(n, fields) for n, fields in lines], _rasterise, height, width)

    def _shape(self, number: int, fields: list[str]) -> LabelledShape:
        known = fields[0].isdecimal() and int(fields[0]) < len(self.classes)
        label = self.classes[int(fields[0])] if known else f"class {fields[0]}"
        return LabelledShape(f"line {number}", int(fields[0]) if known else -1, label, "polygon", fields[1:])


def _rasterise(shape: LabelledShape, height: int, width: int) -> bytes:
    if len(shape.value) == BOX - 1:
        raise no_mask("a box")
    values = [float(v) for v in shape.value]
    if any(not -TOLERANCE <= v <= 1 + TOLERANCE for v in values):
        raise ValueError("coordinates are not shares of width and height (0 to 1)")
    sides = (width, height)
    return polygon([min(max(v, 0.0), 1.0) * sides[i % 2] for i, v in enumerate(values)], height, width)


def _lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of every line that is not empty."""
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if fields := line.split():
            yield number, fields


def _label_of(image: str) -> str:
    """The label file of a photo: the last folder `images` becomes `labels`; empty if there is no such folder."""
    parts = list(PurePosixPath(image).with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            return "/".join([*parts[:i], "labels", *parts[i + 1 :]])
    return ""


def _names_file(files: dict[str, int], root: str) -> str:
    for name in ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "labels/classes.txt"):
        if name in files:
            return name
    raise FssError("no data.yaml and no classes.txt", where=root, mend="set data.source.annotations to the YAML file")


def _names(raw: bytes, name: str, where: str) -> list[str]:
    """The classes by id. Raises `FssError`."""
    if name.endswith(".txt"):
        found: Any = [line.strip() for line in raw.decode(errors="replace").splitlines() if line.strip()]
    else:
        try:
            document = yaml.safe_load(raw)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise FssError(f"is not valid YAML: {error}", where=where) from error
        found = document.get("names") if isinstance(document, dict) else None
    if isinstance(found, dict):
        if sorted(found, key=str) != sorted(range(len(found)), key=str):
            raise FssError("`names` has gaps", where=where, mend="class numbers go from 0 without a gap")
        found = [found[i] for i in range(len(found))]
    if not isinstance(found, list) or not found:
        raise FssError("has no `names`", where=where, mend="names: {0: cup, 1: bird} or names: [cup, bird]")
    return [str(n) for n in found]
