"""Labels of the service as Label Studio's predictions: brush masks or polygons, with scores and a model version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.config.wanted import Wanted
from pipelines.data import rle
from pipelines.inference.masks import Label
from pipelines.integrations.label_studio.interface import Interface, Shape
from pipelines.labelling.formats.label_studio import brush_value, region
from pipelines.labelling.formats.outline import polygons, simplified

STEP = 1.0  # pixel: corners of polygons nearer to the line than this are left out, as those of a slanted edge's steps
SPECK = float(Wanted.model_fields["speck"].default)  # share of the photo below which a further piece is left out


@dataclass(frozen=True)
class Drawing:
    """How masks are drawn: the project's interface, the shape that is wanted (None: the interface's first)."""

    interface: Interface
    shape: Shape | None = None

    def prediction(self, classes: Sequence[str], labels: Sequence[Label], version: str) -> dict[str, Any]:
        """A prediction for a task from the labels of its photo, one for each class. Empty masks give no region.

        The score is the lowest of its masks', 0 where there is none, as in the files that jobs write.
        """
        result = [one for name, label in zip(classes, labels, strict=True) if label.area
                  for one in self._regions(name, label)]
        score = min((sure(label) for label in labels if label.area), default=0.0)
        return {"model_version": version, "score": score, "result": result}

    def _regions(self, name: str, label: Label) -> Iterator[dict[str, Any]]:
        control = self.interface.control(name, self.shape)
        if control is None:
            return
        mask = rle.decode(label.counts.encode(), label.height, label.width)
        values = [brush_value(mask, name)] if control.shape == "brush" else _polygon_values(mask, name)
        for number, value in enumerate(values):
            yield region(f"{control.name}-{name}-{number}", f"{control.shape}labels",
                         (control.name, self.interface.image), mask.shape, sure(label), value)


def sure(label: Label) -> float:
    """The probability that the mask is good, where the bundle has a calibrator, else the method's own score."""
    return float(label.score if label.quality is None else label.quality)


def _polygon_values(mask: np.ndarray, name: str) -> list[dict[str, Any]]:
    """The value of a polygon for each piece of a mask [H, W] bool, the largest first; a hole is joined to the border.
    """
    found = sorted(polygons(mask), key=_area, reverse=True)
    large = [loop for place, loop in enumerate(found) if place == 0 or _area(loop) >= SPECK * mask.size]
    scale = 100 / np.array(mask.shape[::-1])
    return [{"points": (simplified(loop, STEP) * scale).tolist(), "polygonlabels": [name], "closed": True}
            for loop in large]


def _area(loop: np.ndarray) -> float:
    x, y = loop[:, 0], loop[:, 1]
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2
