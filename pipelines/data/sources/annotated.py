"""Shared by sources of labelling tools' exports: one annotation file beside the photos, and shapes with labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fss_models.errors import FssError
from pipelines.data import rle
from pipelines.data.sources.base import FetchedImage, ImageMasks, InstanceMask, Source, SourceImage


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


class ExportSource(Source):
    """The export of a labelling tool: `SourceImage.annotations` are its shapes, and the tool shows photos upright.

    masks: the kinds of shapes that have a mask; shape_counts: turns (shape, height, width) of such a kind into counts.
    """

    upright = True
    masks: frozenset[str]

    @staticmethod
    @abstractmethod
    def shape_counts(shape: LabelledShape, height: int, width: int) -> bytes:
        """The mask of a shape as counts. Raises ValueError for one that has none."""

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per shape (and label)."""
        return rasterise_shapes(fetched.payload, self.shape_counts, height, width)

    def only_file(self, suffix: str) -> str:
        """The annotation file: the one that is configured, else the only one with a suffix in the root or annotations/.

        Raises `FssError` if there is none, or several.
        """
        if self.cfg.annotations:
            return self.cfg.annotations
        found = [f for f in self.files if f.lower().endswith(suffix) and f.removeprefix("annotations/").count("/") == 0]
        if len(found) == 1:
            return found[0]
        what = f"there are {len(found)} {suffix} files" if found else f"there is no {suffix} file"
        hint = f" to one of: {', '.join(found[:5])}" if found else ""
        raise FssError(what, where=self.store.url, hint=f"set data.source.annotations{hint}")

    def check_some_masks(self, where: str, hint: str) -> None:
        """Raise `FssError` if the export has shapes, but none that has a mask."""
        kinds = {shape.kind for item in self.items for shape in item.annotations}
        if kinds and not kinds & self.masks:
            raise FssError(f"the export has no masks, only {', '.join(sorted(kinds))}", where=where, hint=hint)
