"""Supports from CVAT: what people drew in a task becomes a supports file, for the detection function and for jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco

from fss_models.errors import FssError
from fss_models.marks import rle_json
from pipelines.base.storage import Store
from pipelines.inference.label_sets import FILE
from pipelines.integrations.photo_labeler import photo_bytes

if TYPE_CHECKING:
    from cvat_sdk import Client
    from cvat_sdk.models import LabeledShape

SHAPES = ("mask", "polygon")


def write_supports(client: Client, task_id: int, out: str, *, most: int = 10) -> dict[str, int]:
    """Write the marked photos of a CVAT task and supports.json to the folder or URL `out`.

    `client` is cvat-sdk's, logged in. Of each class the first `most` photos with masks or polygons are taken, its
    mask being their union; what functions and agents drew (source auto) is not. Returns class -> number of photos.
    Raises `FssError` if `out` has a supports file, or if people drew nothing in the task.
    """
    from cvat_sdk.datasets import MediaDownloadPolicy, TaskDataset

    store = Store(out)
    if store.exists(FILE):
        raise FssError(f"has a {FILE}", where=store.url, hint="give another folder")
    dataset = TaskDataset(client, task_id, media_download_policy=MediaDownloadPolicy.FETCH_FRAMES_ON_DEMAND)
    names = {label.id: label.name for label in dataset.labels}
    classes: dict[str, list[dict[str, Any]]] = {}
    for sample in dataset.samples:
        drawn = _drawn(sample.annotations.shapes if sample.annotations else ())
        wanted = {label: shapes for label, shapes in drawn.items() if len(classes.get(names[label], ())) < most}
        if not wanted:
            continue
        image, file = sample.media.load_image(), f"{sample.frame_index:06d}.png"
        store.write_bytes(file, photo_bytes(image))
        for label, shapes in wanted.items():
            mask = np.any([_pixels(shape, image.height, image.width) for shape in shapes], axis=0)
            classes.setdefault(names[label], []).append({"image": file, "mask": rle_json(mask)})
    if not classes:
        raise FssError(f"in task {task_id} no person has drawn a mask or polygon")
    store.write_json(FILE, {"classes": [{"class_name": name, "supports": rows} for name, rows in classes.items()]})
    return {name: len(rows) for name, rows in classes.items()}


def _drawn(shapes: Any) -> dict[int, list[LabeledShape]]:
    """The masks and polygons that people drew, by label."""
    found: dict[int, list[LabeledShape]] = {}
    for shape in shapes:
        if shape.type.value in SHAPES and getattr(shape, "source", "manual") != "auto":
            found.setdefault(shape.label_id, []).append(shape)
    return found


def _pixels(shape: LabeledShape, height: int, width: int) -> np.ndarray:
    """The pixels [H, W] bool of a mask or a polygon."""
    from cvat_sdk.masks import decode_mask

    if shape.type.value == "mask":
        found: np.ndarray = decode_mask(shape.points, image_width=width, image_height=height)
        return found
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects([list(shape.points)], height, width)))).astype(bool)
