"""What the labelling tools' exports have in common: one annotation file beside the photos, and shapes with labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from fss_models.errors import FssError
from pipelines.data import rle
from pipelines.data.sources.base import (
    ImageMasks,
    InstanceMask,
    Source,
    SourceFailure,
    SourceImage,
    digest_of,
    hashed_id,
)


class LabelledShape(NamedTuple):
    """One labelled object as its file has it. `where`: line, region or row; class -1: the label is not in the list."""

    where: str
    class_id: int
    label: str
    kind: str
    value: Any


def no_mask(what: str) -> ValueError:
    """The reason why a box, a line or a point is refused; `what` with its article."""
    return ValueError(f"{what} cannot be read as a mask")


def rasterise_shapes(shapes: Iterable[LabelledShape], rasterise: Callable[[LabelledShape, int, int], bytes], height: int,
             width: int) -> ImageMasks:
    """Every shape as counts; those that cannot be are listed as problems with where they are and why."""
    masks = ImageMasks()
    for shape in shapes:
        told = f"{shape.where}: {shape.label}" if shape.label else shape.where
        if shape.class_id < 0:
            masks.problems.append(f"{told}: the class list has no such label")
            continue
        try:
            counts = rasterise(shape, height, width)
            empty = rle.area(counts, height, width) == 0
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            masks.problems.append(f"{told}: {error}")
            continue
        if empty:
            masks.problems.append(f"{told}: empty mask")
        else:
            masks.instances.append(InstanceMask(shape.class_id, counts))
    return masks


def polygon(points: Sequence[float], height: int, width: int) -> bytes:
    """x0, y0, x1, y1, ... in pixels -> counts. Raises ValueError for fewer than three corners and for NaN."""
    if len(points) < 6 or len(points) % 2:
        raise ValueError("no polygon with three corners")
    if not all(-1e6 < v < 1e6 for v in points):
        raise ValueError("polygon with a corner that is nowhere near the photo")
    return rle.from_polygons([points], height, width)


class FileFinder:
    """Finds the file that a record means among those below the root: the longest tail of its path that is one's."""

    def __init__(self, files: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for file in files:
            self._by_name[PurePosixPath(file).name].append(file)

    def has(self, name: str) -> bool:
        """Whether at least one file below the root has the name at the end of that path."""
        return PurePosixPath(name).name in self._by_name

    def find(self, name: str) -> str | None:
        """The path below the root, None if there is none. Raises `FssError` where several files fit equally well."""
        parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".", "..")]
        files = self._by_name.get(parts[-1], []) if parts else []
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            found = [f for f in files if f == tail or f.endswith(f"/{tail}")]
            exact = [f for f in found if f == tail]
            if exact or found:
                if not exact and len(found) > 1:
                    raise FssError(f"{len(found)} photos have this name, the first {found[0]} and {found[1]}")
                return (exact or found)[0]
        return None


def add_item(
    source: Source, finder: FileFinder, files: dict[str, int], name: str, *, size: tuple[int, int] | None,
    shapes: Sequence[LabelledShape], missing_reason: str = "the annotations name this photo but it is missing",
) -> None:
    """Put a record into the index, or into the failures: its photo is missing, not the only one, or taken already."""
    try:
        path = finder.find(name)
    except FssError as error:
        source.failures.append(SourceFailure(name, "index", error.what))
        return
    if path is None:
        source.failures.append(SourceFailure(name, "index", missing_reason))
        return
    item = SourceImage(image_id=hashed_id(path), file_name=path, path=path, size=size, annotations=shapes,
                       stamp=digest_of(files[path], shapes))
    source.items.append(item)


def drop_repeated(source: Source) -> None:
    """Keep the first record of a photo; the others are failures, as nobody can say which one is right."""
    seen: dict[int, str] = {}
    kept = []
    for item in source.items:
        if item.image_id in seen:
            reason = f"another record has this photo already ({seen[item.image_id]})"
            source.failures.append(SourceFailure(item.file_name, "index", reason))
        else:
            seen[item.image_id] = item.file_name
            kept.append(item)
    source.items = kept


def only_file(files: Iterable[str], suffix: str, root: str) -> str:
    """The annotation file: the only one with that suffix in the root or in annotations/. Raises `FssError`."""
    found = [f for f in files if f.lower().endswith(suffix) and f.removeprefix("annotations/").count("/") == 0]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} {suffix} files" if found else f"no {suffix} file in it"
    mend = f"set data.source.annotations to one of: {', '.join(found[:5])}" if found else "set data.source.annotations"
    raise FssError(what, where=root, mend=mend)


def check_some_masks(items: Iterable[SourceImage], masks: frozenset[str], where: str, mend: str) -> None:
    """Raises `FssError` for an export that has shapes, but not one that marks pixels."""
    kinds = {shape.kind for item in items for shape in item.annotations}
    if kinds and not kinds & masks:
        raise FssError(f"holds no masks, only {', '.join(sorted(kinds))}", where=where, mend=mend)
