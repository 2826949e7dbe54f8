"""A project's labelling interface: its image, and the tags whose regions are masks of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fss_models.errors import FssError

Shape = Literal["brush", "polygon"]
SHAPES: dict[str, Shape] = {"brushlabels": "brush", "polygonlabels": "polygon"}


@dataclass(frozen=True)
class Control:
    """A tag with labels, such as `BrushLabels`: its name, what it draws, and its labels."""

    name: str
    shape: Shape
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Interface:
    """The image that is labelled and how: `image` is the tag's name, `key` that of the photo in a task's data."""

    image: str
    key: str
    controls: tuple[Control, ...]

    def control(self, label: str, shape: Shape | None) -> Control | None:
        """The first tag for masks of a class, of the shape that is wanted where there is one; None if it has none."""
        fits = [c for c in self.controls if label in c.labels]
        return next((c for c in fits if c.shape == shape), next(iter(fits), None))

    @property
    def labels(self) -> list[str]:
        """The classes that masks can be given for, in the order of the interface."""
        return list(dict.fromkeys(label for control in self.controls for label in control.labels))

    def photo(self, task: dict[str, Any]) -> str:
        """What a task's data names as its photo. Raises `FssError` for a task without one, or with several."""
        found = task.get("data", {}).get(self.key)
        if isinstance(found, str) and found:
            return found
        what = "several photos" if isinstance(found, list) else "no photo"
        raise FssError(f"its data has {what} in {self.key!r}", where=f"task {task.get('id', '?')}",
                       hint="one task is one photo")


def read_interface(project: dict[str, Any], where: str) -> Interface:
    """The labelling interface of a project as the API describes it.

    Raises `FssError` for one without an image, and for one in which no tag draws masks.
    """
    tags = project.get("parsed_label_config") or {}
    images = {name: source["value"] for tag in tags.values() if isinstance(tag, dict)
              for name, source in zip(tag.get("to_name", []), tag.get("inputs", []), strict=False)
              if source.get("type") == "Image" and source.get("value")}
    if not images:
        raise FssError("the project has no image to label", where=where,
                       hint='its labelling interface needs <Image name="image" value="$image"/>')
    found = [(tag["to_name"][0], Control(name, shape, tuple(tag.get("labels", [])))) for name, tag in tags.items()
             if (shape := SHAPES.get(str(tag.get("type", "")).lower())) and tag.get("to_name", [""])[0] in images]
    if not found:
        raise FssError("no tag of the project draws masks", where=where,
                       hint='add <BrushLabels name="brush" toName="image"> or PolygonLabels to its labelling interface')
    image = found[0][0]
    return Interface(image, images[image], tuple(control for to, control in found if to == image))
