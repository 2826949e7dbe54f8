"""Shared by sources of labelling tools' exports: one annotation file beside the photos, and shapes with labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from fss_models.errors import FssError
from pipelines.data import rle
from pipelines.data.sources.base import ImageMasks, InstanceMask, MissingPhoto, Source, SourceImage


class LabelledShape(NamedTuple):
    """One labelled object as it is in its file.

    where: its line, region or row; class_id: -1 if the label is not in the class list; kind: the kind of shape, or what
    to call a kind that has no mask; value: the shape in the form of the format.
    """

    where: str
    class_id: int
    label: str
    kind: str
    value: Any


def no_mask(what: str) -> ValueError:
    """The error for a shape without a mask, such as a box, a line or a point. `what` is its name with the article."""
    return ValueError(f"{what} cannot be read as a mask")


def rasterise_shapes(shapes: Iterable[LabelledShape], rasterise: Callable[[LabelledShape, int, int], bytes],
                     height: int, width: int) -> ImageMasks:
    """The masks of all shapes; `rasterise` turns (shape, height, width) into counts.

    Shapes that cannot be rasterised are listed as problems, with their place and the reason.
    """
    masks = ImageMasks()
    for shape in shapes:
        name = f"{shape.where}: {shape.label}" if shape.label else shape.where
        if shape.class_id < 0:
            masks.problems.append(f"{name}: the class list has no such label")
            continue
        try:
            counts = rasterise(shape, height, width)
            empty = rle.area(counts, height, width) == 0
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            masks.problems.append(f"{name}: {error}")
            continue
        if empty:
            masks.problems.append(f"{name}: empty mask")
        else:
            masks.instances.append(InstanceMask(shape.class_id, counts))
    return masks


def polygon(points: Sequence[float], height: int, width: int) -> bytes:
    """Rasterise a polygon: x0, y0, x1, y1, ... in pixels -> counts. Raises ValueError as `rle.from_polygons` does."""
    return rle.from_polygons([points], height, width)


def add_item(
    source: Source, name: str, *, size: tuple[int, int] | None, shapes: Sequence[LabelledShape], within: str = "",
    without: Collection[str] = (),
) -> None:
    """Add a record to the index of `source`, or to its failures if its photo is missing or ambiguous.

    name: the photo as the record names it; size: its recorded (height, width); within, without: folders
    (`FileFinder.match`).
    """
    try:
        file = source.photos.match(name, within=within, without=without)
    except FssError as error:
        return source.fail(name, error.what)
    if file is None:
        return source.fail(name, "the annotations name this photo but it is missing", MissingPhoto)
    source.add(file.path, shapes, size=size, whole=file.whole)


def drop_repeated(source: Source) -> None:
    """Keep one record of every photo: the first that names its whole path, else the first.

    The others become failures, as either could be right. One that only ends like the photo is told to be missing.
    """
    best: dict[str, SourceImage] = {}
    for item in source.items:
        if item.path not in best or (item.whole and not best[item.path].whole):
            best[item.path] = item
    for item in source.items:
        other = best[item.path]
        if item is other:
            continue
        reason = f"another record has this photo already ({other.file_name})"
        if other.whole and not item.whole:
            reason = f"this photo is missing; {other.path} only ends like it, and another record names that in full"
        source.fail(item.file_name, reason)
    source.items = [item for item in source.items if best[item.path] is item]


def only_file(files: Iterable[str], suffix: str, root: str) -> str:
    """The only file with a suffix in the root or in annotations/. Raises `FssError` if there is none, or several."""
    found = [f for f in files if f.lower().endswith(suffix) and f.removeprefix("annotations/").count("/") == 0]
    if len(found) == 1:
        return found[0]
    what = f"there are {len(found)} {suffix} files" if found else f"there is no {suffix} file"
    hint = f"set data.source.annotations to one of: {', '.join(found[:5])}" if found else "set data.source.annotations"
    raise FssError(what, where=root, hint=hint)


def check_some_masks(items: Iterable[SourceImage], masks: frozenset[str], where: str, hint: str) -> None:
    """Raise `FssError` if an export has shapes, but none whose kind is in `masks`."""
    kinds = {shape.kind for item in items for shape in item.annotations}
    if kinds and not kinds & masks:
        raise FssError(f"the export has no masks, only {', '.join(sorted(kinds))}", where=where, hint=hint)
