"""CVAT's export "CVAT for images 1.1": annotations.xml (polygons and masks) and the photos.

An image of a project belongs to a subset, whose folder has its photo (images/Train/1.jpg); frames of a video are named
without a suffix. Labels are compared without blanks at their ends.

Polygons are in pixels. A mask is run lengths, row by row within its own box (left, top, width, height), beginning with
a run of pixels outside the object. See CVAT manual, "XML annotation format", version 1.1.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.class_names import clean_name
from pipelines.data.sources.annotated import (
    LabelledShape,
    add_item,
    check_some_masks,
    drop_repeated,
    no_mask,
    only_file,
    polygon,
    rasterise_shapes,
)
from pipelines.data.sources.base import FetchedImage, ImageMasks, Source, SourceImage, digest_of, is_image, listing
from pipelines.data.sources.finder import FileFinder

POLYGON, MASK = "polygon", "mask"
_SHAPES = {POLYGON: POLYGON, MASK: MASK, "box": "a box", "polyline": "a line", "points": "a set of points",
           "ellipse": "an ellipse", "cuboid": "a cuboid", "skeleton": "a skeleton"}
_EXPORT = 'export the task as "CVAT for images 1.1"'


class CvatImage(NamedTuple):
    """One `image` element. subset: "" outside of projects; size: (height, width); shapes: without class ids."""

    name: str
    subset: str
    size: tuple[int, int]
    shapes: list[LabelledShape]


class CvatSource(Source):
    """Reads annotations.xml. Class ids follow the task's own list of labels."""

    upright = True

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        name = cfg.annotations or only_file(files, ".xml", self.store.url)
        raw, where = self.store.read_bytes(name), self.store.path(name)
        finder = FileFinder(f for f in files if is_image(f))
        records = []
        for element in _elements(raw, where):
            if element.tag == "label":
                self.classes.append(clean_name(element.findtext("name", "")))
            else:
                records.append(self._record(element, where))
        self.classes = list(dict.fromkeys(self.classes))  # tasks of a project repeat its labels
        if not records:
            raise FssError("the export names no image", where=where, hint=_EXPORT)
        subsets = {r.subset for r in records if r.subset}
        for r in records:
            add_item(self, finder, files, r.name, size=r.size, shapes=self._with_class_ids(r.shapes), within=r.subset,
                     without=subsets - set(r.name.replace("\\", "/").split("/")) - {r.subset})
        drop_repeated(self)
        check_some_masks(self.items, frozenset({POLYGON, MASK}), where,
                         "draw polygons or masks")
        self.fingerprint = digest_of(hashlib.sha256(raw).hexdigest(), [(i.path, files[i.path]) for i in self.items])

    def _record(self, element: ElementTree.Element, where: str) -> CvatImage:
        """The content of an `image` element. Raises `FssError`."""
        name, height, width = (element.get(k, "") for k in ("name", "height", "width"))
        if not name or not height.isdecimal() or not width.isdecimal():
            raise FssError(f"image {element.get('id', '?')} lacks its name, width or height", where=where, hint=_EXPORT)
        found = [(s, s.tag) for s in element if s.tag in _SHAPES]
        shapes = [LabelledShape(f"{tag} {number}", -1, clean_name(shape.get("label")), _SHAPES[tag], _value(shape))
                  for number, (shape, tag) in enumerate(found, 1)]
        return CvatImage(name, element.get("subset", ""), (int(height), int(width)), shapes)

    def _with_class_ids(self, shapes: list[LabelledShape]) -> list[LabelledShape]:
        ids = {name: i for i, name in enumerate(self.classes)}
        return [s._replace(class_id=ids.get(s.label, -1)) for s in shapes]

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per polygon or mask shape."""
        return rasterise_shapes(fetched.payload, _rasterise, height, width)


def _value(shape: ElementTree.Element) -> Any:
    """The shape as text, whose numbers the workers parse; None for shapes without a mask."""
    if shape.tag == POLYGON:
        return shape.get("points", "")
    return {k: shape.get(k, "") for k in ("rle", "left", "top", "width", "height")} if shape.tag == MASK else None


def _rasterise(shape: LabelledShape, height: int, width: int) -> bytes:
    if shape.kind == POLYGON:
        points = [float(v) for corner in shape.value.split(";") for v in corner.split(",")]
        return polygon(points, height, width)
    if shape.kind == MASK:
        return rle.encode(box_mask(shape.value, height, width))
    raise no_mask(shape.kind)


def box_mask(value: dict[str, str], height: int, width: int) -> np.ndarray:
    """Run lengths within a box -> mask [height, width] bool. Raises ValueError if they do not fit box or photo."""
    left, top, across, down = (int(float(value[k])) for k in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(across, down) < 1 or left + across > width or top + down > height:
        raise ValueError(f"mask box {across}x{down} at {left}, {top} does not lie in the photo of {width}x{height}")
    runs = np.array([int(v) for v in value["rle"].split(",")], dtype=np.int64)
    if (runs < 0).any() or (runs > across * down).any() or runs.sum() != across * down:
        raise ValueError(f"run lengths add up to {runs.sum()}, the mask box has {across * down} pixels")
    mask = np.zeros((height, width), dtype=bool)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + down, left : left + across] = inside.reshape(down, across)
    return mask


def _elements(raw: bytes, where: str) -> Iterator[ElementTree.Element]:
    """Every `label` of the task and every `image`; each is freed after use. Raises `FssError` for other files."""
    if b"<!DOCTYPE" in raw[:4096] or b"<!ENTITY" in raw:
        raise FssError("the file declares a DOCTYPE or entities, which CVAT never does", where=where, hint=_EXPORT)
    if b"\0" in raw[:4] or raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FssError("the file is UTF-16, not UTF-8", where=where, hint="save it again as UTF-8")
    above: list[str] = []
    try:
        for event, element in ElementTree.iterparse(io.BytesIO(raw), events=("start", "end")):
            if event == "start":
                above.append(element.tag)
                if above[0] != "annotations" or element.tag == "track":
                    video = element.tag == "track"
                    what = "this is an export for video (tracks)" if video else "this is not a CVAT export"
                    raise FssError(what, where=where, hint=_EXPORT)
                continue
            above.pop()
            if element.tag == "image" or (element.tag == "label" and above[-1:] == ["labels"]):
                yield element
                element.clear()
    except ElementTree.ParseError as error:
        raise FssError(f"the file is not valid XML: {error}", where=where) from error
