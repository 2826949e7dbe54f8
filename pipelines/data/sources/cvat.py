"""CVAT's exports "CVAT for images 1.1" and "CVAT for video 1.1": annotations.xml (polygons and masks) and the photos.

Tracks of a video list a shape for every frame, in which it is visible unless it is marked as `outside`; the photo of
frame 7 is frame_000007.png. Frames without a shape show no object. A photo is a failure if a track that is visible
before it has no shape for it, as in files with key frames only. An image of a project belongs to a subset, whose folder
has its photo (images/Train/1.jpg); frames of a video are named without a suffix. Labels are compared without blanks at
their ends.

Polygons are in pixels. A mask is run lengths, row by row within its own box (left, top, width, height), beginning with
a run of pixels outside the object. See CVAT manual, "XML annotation format", version 1.1.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from fss_models.errors import FssError
from fss_models.photo_files import is_photo
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.class_names import clean_name
from pipelines.data.sources.annotated import ExportSource, LabelledShape, no_mask, polygon
from pipelines.data.sources.base import MissingPhoto, digest_of
from pipelines.data.sources.text import whole_number

POLYGON, MASK = "polygon", "mask"
_SHAPES = {POLYGON: POLYGON, MASK: MASK, "box": "a box", "polyline": "a line", "points": "a set of points",
           "ellipse": "an ellipse", "cuboid": "a cuboid", "skeleton": "a skeleton"}
_EXPORT = 'export the task as "CVAT for images 1.1"'
_FRAME = re.compile(r"(?:^|/)frame_(\d{6,9})\.[^/]*$")
_Size = tuple[int, int]


class CvatImage(NamedTuple):
    """One `image` element. subset: "" outside of projects; size: (height, width); shapes: without class ids."""

    name: str
    subset: str
    size: _Size | None
    shapes: list[LabelledShape]


class CvatSource(ExportSource):
    """Reads annotations.xml. Class ids follow the task's own list of labels."""

    masks = frozenset({POLYGON, MASK})

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        name = self.only_file(".xml")
        raw, where = self.store.read_bytes(name), self.store.path(name)
        records, video = [], CvatVideo(where)
        for element in _elements(raw, where):
            if element.tag == "label":
                self.classes.append(clean_name(element.findtext("name", "")))
            elif element.tag == "image":
                records.append(self._record(element, where))
            else:
                video.add(element)
        records += video.frames(f for f in self.files if is_photo(f))
        for photo, reason in video.problems:
            self.fail(photo, reason)
        self.classes = list(dict.fromkeys(self.classes))  # tasks of a project repeat its labels
        if not records:
            raise FssError("the export names no image", where=where, hint=_EXPORT)
        subsets = {r.subset for r in records if r.subset}
        for r in records:
            self._add(r, without=subsets - set(r.name.replace("\\", "/").split("/")) - {r.subset})
        self.drop_repeated()
        self.check_some_masks(where, "draw polygons or masks")
        self.fingerprint = digest_of(hashlib.sha256(raw).hexdigest(), self.photo_sizes())

    def _record(self, element: ElementTree.Element, where: str) -> CvatImage:
        """The content of an `image` element. Raises `FssError`."""
        name, (height, width) = element.get("name", ""), (whole_number(element.get(k, "")) for k in ("height", "width"))
        if not name or height is None or width is None:
            raise FssError(f"image {element.get('id', '?')} lacks its name, width or height", where=where, hint=_EXPORT)
        found = [(s, s.tag) for s in element if s.tag in _SHAPES]
        shapes = [LabelledShape(f"{tag} {number}", -1, clean_name(shape.get("label")), _SHAPES[tag], _value(shape))
                  for number, (shape, tag) in enumerate(found, 1)]
        return CvatImage(name, element.get("subset", ""), (height, width), shapes)

    def _with_class_ids(self, shapes: list[LabelledShape]) -> list[LabelledShape]:
        ids = {name: i for i, name in enumerate(self.classes)}
        return [s._replace(class_id=ids.get(s.label, -1)) for s in shapes]

    def _add(self, record: CvatImage, without: set[str]) -> None:
        """Add a record to the index, or to the failures if its photo is missing or ambiguous."""
        try:
            file = self.photos.match(record.name, within=record.subset, without=without)
        except FssError as error:
            return self.fail(record.name, error.what)
        if file is None:
            return self.fail(record.name, "the annotations name this photo but it is missing", MissingPhoto)
        self.add(file.path, self._with_class_ids(record.shapes), size=record.size, whole=file.whole)

    @staticmethod
    def shape_counts(shape: LabelledShape, height: int, width: int) -> bytes:
        """The counts of a polygon or a mask."""
        if shape.kind == POLYGON:
            points = [float(v) for corner in shape.value.split(";") for v in corner.split(",")]
            return polygon(points, height, width)
        if shape.kind == MASK:
            return rle.encode(box_mask(shape.value, height, width))
        raise no_mask(shape.kind)


class CvatVideo:
    """The tracks of a video task, frame by frame. problems: (photo, reason) of frames that cannot be read."""

    def __init__(self, where: str) -> None:
        self.problems: list[tuple[str, str]] = []
        self._where = where
        self._size: _Size | None = None
        self._tasks: set[str] = set()
        self._shapes: defaultdict[int, list[LabelledShape]] = defaultdict(list)
        self._gaps: list[tuple[int, float, str]] = []  # the frames on both sides of a gap, and its track

    def add(self, element: ElementTree.Element) -> None:
        """Read an `original_size` or `track` element. Raises `FssError` for a shape without a frame."""
        if element.tag == "original_size":
            height, width = (whole_number(element.findtext(k, "")) for k in ("height", "width"))
            self._size = (height, width) if height and width else None
            return
        track, label = f"track {element.get('id', '?')}", clean_name(element.get("label"))
        self._tasks.add(element.get("task_id", ""))
        if len(self._tasks) > 1:
            raise FssError("this is an export of several videos", where=self._where, hint="export one task at a time")
        found = [(whole_number(s.get("frame", "")), s) for s in element if s.tag in _SHAPES]
        if any(frame is None for frame, _ in found):
            raise FssError(f"{track}: a shape lacks its frame", where=self._where, hint=_EXPORT)
        ordered = sorted(((frame or 0, s) for frame, s in found), key=lambda pair: pair[0])
        for place, (frame, shape) in enumerate(ordered, 1):
            after = ordered[place][0] if place < len(ordered) else math.inf
            shapes = self._shapes[frame]
            if shape.get("outside") != "1":
                shapes.append(LabelledShape(f"{track} {shape.tag}", -1, label, _SHAPES[shape.tag], _value(shape)))
                self._gaps += [(frame, after, track)] if after > frame + 1 else []

    def frames(self, photos: Iterable[str]) -> Iterator[CvatImage]:
        """A record for every frame that has shapes or a photo; `photos`: paths of photos."""
        if not self._shapes:
            return
        numbered = {int(found[1]): photo for photo in photos if (found := _FRAME.search(photo))}
        gaps, track, end = sorted(self._gaps, reverse=True), "", 0.0
        for frame in sorted({*self._shapes, *numbered}):
            while gaps and gaps[-1][0] < frame:
                _, last, name = gaps.pop()
                track, end = (name, last) if last > end else (track, end)
            if frame < end:
                self.problems.append((numbered.get(frame, f"frame {frame}"),
                                      f"{track} is visible but has no shape in this frame"))
            else:
                yield CvatImage(f"frame_{frame:06d}", "", self._size, self._shapes.get(frame, []))


def _value(shape: ElementTree.Element) -> Any:
    """The shape as text, whose numbers the workers parse; None for shapes without a mask."""
    if shape.tag == POLYGON:
        return shape.get("points", "")
    return {k: shape.get(k, "") for k in ("rle", "left", "top", "width", "height")} if shape.tag == MASK else None


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
    """Every `label` and `original_size` of the task, every `image` and `track`; each is freed after use.

    Raises `FssError` for other files.
    """
    if b"<!DOCTYPE" in raw[:4096] or b"<!ENTITY" in raw:
        raise FssError("the file declares a DOCTYPE or entities, which CVAT never does", where=where, hint=_EXPORT)
    if b"\0" in raw[:4] or raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FssError("the file is UTF-16, not UTF-8", where=where, hint="save it again as UTF-8")
    above: list[str] = []
    try:
        for event, element in ElementTree.iterparse(io.BytesIO(raw), events=("start", "end")):
            if event == "start":
                above.append(element.tag)
                if above[0] != "annotations":
                    raise FssError("this is not a CVAT export", where=where, hint=_EXPORT)
                continue
            above.pop()
            label = element.tag == "label" and above[-1:] == ["labels"]
            if label or element.tag in ("image", "track", "original_size"):
                yield element
                element.clear()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two for encodings
        raise FssError(f"the file is not valid XML: {error}", where=where) from error
