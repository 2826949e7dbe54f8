"""The formats of labelled photos, one module each."""

from __future__ import annotations

from pipelines.data.sources.base import Source
from pipelines.data.sources.coco import CocoSource
from pipelines.data.sources.cvat import CvatSource
from pipelines.data.sources.label_studio import LabelStudioSource
from pipelines.data.sources.labelme import LabelmeSource
from pipelines.data.sources.pairs import PairsSource
from pipelines.data.sources.shapes import ShapesSource
from pipelines.data.sources.table import TableSource
from pipelines.data.sources.voc import VocSource
from pipelines.data.sources.yolo import YoloSource

FORMATS: dict[str, type[Source]] = {
    "coco": CocoSource,
    "voc": VocSource,
    "pairs": PairsSource,
    "yolo": YoloSource,
    "label_studio": LabelStudioSource,
    "labelme": LabelmeSource,
    "cvat": CvatSource,
    "table": TableSource,
    "shapes": ShapesSource,
}
