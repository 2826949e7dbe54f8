"""Ultralytics YOLO segmentation: photos below `images` folders, polygons in `labels` folders beside them.

The class names are `names` of data.yaml, or the lines of classes.txt. A line of a label file is `class x1 y1 x2 y2 x3
y3 ...`, with coordinates as shares of width and height of the upright photo (Ultralytics, "Instance Segmentation
Datasets Overview"). A photo without a label file shows no object, as in Ultralytics. Photos that differ only in their
suffix and share a label file are failures (`finder.ambiguous`). `train`, `val` and `test` of data.yaml are ignored;
`data.split` splits the photos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from fss_models.errors import BadImage, FssError
from fss_models.photo_files import is_photo
from pipelines.config.data import SourceConfig
from pipelines.data.sources.annotated import LabelledShape, no_mask, polygon, rasterise_shapes
from pipelines.data.sources.base import FetchedImage, ImageMasks, MissingPhoto, Source, SourceImage, digest_of
from pipelines.data.sources.finder import ambiguous
from pipelines.data.sources.text import merge_names, plain_text, whole_number

BOX = 5  # numbers in the line of a box: class, centre, size
PROBED_FILES = 20  # label files that the driver reads to check whether the dataset has boxes only
TOLERANCE = 0.01  # coordinates may be this far outside the photo, by rounding; they are clipped


class YoloSource(Source):
    """Reads YOLO label files. Class ids are YOLO's own."""

    upright = True

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        name = cfg.annotations or _names_file(self.files, self.store.url)
        names = _names(self.store.read_bytes(name), name, self.store.path(name))
        self.classes, self._class_of, merged = merge_names(names)
        for words in merged:
            self.fail(name, words)
        self._index()
        self._refuse_boxes()
        found = [(i.path, self.files[i.path], i.annotations, self.files.get(i.annotations)) for i in self.items]
        self.fingerprint = digest_of(self.classes, found, *self._merging())

    def _merging(self) -> tuple[list[int], ...]:
        """The class of each number where names were merged; it is part of what a photo's annotations mean."""
        return (self._class_of,) if len(self._class_of) > len(self.classes) else ()

    def _index(self) -> None:
        files, images = self.files, defaultdict[str, list[str]](list)
        for file in files:
            if is_photo(file) and (label := _label_of(file)):
                images[label].append(file)
        labels = {f for f in files if f.endswith(".txt") and "labels" in PurePosixPath(f).parts[:-1]}
        if not images or not labels:
            raise FssError("there are no photos in images/ or no .txt files in labels/", where=self.store.url,
                           hint="set data.source.root to the folder of data.yaml")
        known = (len(self.classes), *self._merging())
        for image, label in sorted((f, label) for label, found in images.items() for f in found):
            label_file = label if label in labels else ""
            if label_file and len(images[label]) > 1:
                self.fail(image, ambiguous(images[label], f"the label file {label}"))
            else:
                self.add(image, label_file, files.get(label_file), *known)
        for lonely in sorted(labels - images.keys()):
            self.fail(lonely, "no photo belongs to this label file", MissingPhoto)

    def _refuse_boxes(self) -> None:
        """Raise `FssError` if the first `PROBED_FILES` label files have boxes and no polygon."""
        seen: dict[int, str] = {}
        for path in [i.annotations for i in self.items if i.annotations][:PROBED_FILES]:
            try:
                counts = {len(fields) for _, fields in _lines(self.store.read_bytes(path))}
            except BadImage:  # a worker reports the file
                return
            if not counts <= {BOX, BOX + 1}:
                return
            seen.update({count: seen.get(count, path) for count in sorted(counts)})
        if seen:
            count, path = next(iter(seen.items()))
            what = f"boxes ({count} numbers a line)" if count == BOX else "predicted boxes with a confidence"
            raise FssError(f"the file has {what}, no polygons", where=self.store.path(path),
                           hint="export for segmentation, with lines: class x1 y1 x2 y2 x3 y3 ...")

    def payload(self, item: SourceImage) -> bytes:
        """The photo's label file; empty without one."""
        return self.store.read_bytes(item.annotations) if item.annotations else b""

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per line. Raises `BadImage` for a file with boxes only: its objects must not become background."""
        try:
            lines = list(_lines(fetched.payload))
        except BadImage as error:
            raise BadImage(f"{item.annotations}: {error.reason}") from error
        if lines and all(len(numbers) == BOX for _, numbers in lines):
            raise BadImage(f"{item.annotations} has boxes only (5 numbers a line), no polygons")
        return rasterise_shapes([self._shape(n, fields) for n, fields in lines], _rasterise, height, width)

    def _shape(self, number: int, fields: list[str]) -> LabelledShape:
        place = whole_number(fields[0])
        if place is None or place >= len(self._class_of):
            return LabelledShape(f"line {number}", -1, f"class {fields[0]}", "polygon", fields[1:])
        class_id = self._class_of[place]
        return LabelledShape(f"line {number}", class_id, self.classes[class_id], "polygon", fields[1:])


def _rasterise(shape: LabelledShape, height: int, width: int) -> bytes:
    if len(shape.value) == BOX - 1:
        raise no_mask("a box")
    if len(shape.value) == BOX:
        raise no_mask("a box with a confidence (a prediction)")
    values = [float(v) for v in shape.value]
    if any(not -TOLERANCE <= v <= 1 + TOLERANCE for v in values):
        raise ValueError("coordinates are not shares of width and height (0 to 1)")
    if len(values) > BOX and len(values) % 2:
        raise ValueError(f"{len(values)} numbers after the class are no pairs of x and y "
                         "(predictions have a confidence at the end)")
    sides = (width, height)
    return polygon([min(max(v, 0.0), 1.0) * sides[i % 2] for i, v in enumerate(values)], height, width)


def _lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, fields) of every line that is not empty. Raises `BadImage` for another encoding."""
    for number, line in enumerate(plain_text(data).splitlines(), 1):
        if fields := line.split():
            yield number, fields


def _label_of(image: str) -> str:
    """The label file of a photo: its last folder `images` becomes `labels`. "" if there is no such folder."""
    parts = list(PurePosixPath(image).with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            return "/".join([*parts[:i], "labels", *parts[i + 1 :]])
    return ""


def _names_file(files: dict[str, int], root: str) -> str:
    for name in ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "labels/classes.txt"):
        if name in files:
            return name
    raise FssError("there is neither data.yaml nor classes.txt", where=root,
                   hint="set data.source.annotations to the YAML file")


def _names(raw: bytes, name: str, where: str) -> list[str]:
    """The class names in the order of ids, as written. Raises `FssError` if the file does not list them."""
    try:
        text = plain_text(raw)
    except BadImage as error:
        raise FssError(error.reason, where=where) from error
    if name.endswith(".txt"):
        found: Any = [line for line in text.splitlines() if line.strip()]
    else:
        try:
            document = yaml.load(text, Loader=yaml.BaseLoader)  # all values as text: a class may be called `no` or `1`
        except yaml.YAMLError as error:
            raise FssError(f"the file is not valid YAML: {error}", where=where) from error
        found = document.get("names") if isinstance(document, dict) else None
    if isinstance(found, dict):
        numbered = {whole_number(str(key)): value for key, value in found.items()}
        if len(numbered) < len(found) or set(numbered) != set(range(len(found))):
            raise FssError("the numbers in `names` have gaps", where=where,
                           hint="number the classes from 0 without a gap")
        found = [numbered[i] for i in range(len(found))]
    if not isinstance(found, list) or not found:
        raise FssError("the file has no `names`", where=where,
                       hint="write names: {0: cup, 1: bird} or names: [cup, bird]")
    nameless = [i for i, n in enumerate(found) if not isinstance(n, str) or not n.strip()]
    if nameless:
        raise FssError(f"class {nameless[0]} in `names` has no name", where=where)
    return found
