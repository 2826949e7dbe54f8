"""Label Studio's tasks with predictions, as a file to import; and the regions that predictions are made of."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import numpy as np

from pipelines.base.storage import Store
from pipelines.data.sources.brush_rle import encode_brush
from pipelines.labelling.formats.files import by_model, mask_of
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import PhotoRows, photos


def write_label_studio(out: Store, manifest: JobManifest, name: str) -> None:
    """Write tasks to import, with predictions: masks of the `BrushLabels` named `label` on the image named `image`.

    The names of photos in a local folder fit a local storage of Label Studio that has this folder as its root.
    """
    with out.stream(name) as file:
        file.write(b"[")
        for number, photo in enumerate(photos(out, manifest)):
            file.write((b",\n" if number else b"\n") + json.dumps(_task(photo, manifest)).encode())
        file.write(b"\n]\n")


def region(region_id: str, kind: str, names: tuple[str, str], size: tuple[int, int], score: float | None,
           value: dict[str, Any], *, by_hand: bool = False) -> dict[str, Any]:
    """One region of a prediction.

    kind   brushlabels or polygonlabels
    names  the names of the control and the image in the project's labelling interface
    size   (height, width) of the upright photo
    by_hand  whether it is an annotation that a person made
    """
    return {"id": region_id, "type": kind, "from_name": names[0], "to_name": names[1], "original_width": size[1],
            "original_height": size[0], "image_rotation": 0, **({} if score is None else {"score": score}),
            **({"origin": "manual"} if by_hand else {}), "value": value}


def brush_value(mask: np.ndarray, label: str) -> dict[str, Any]:
    """The value of a brush region: a mask [H, W] bool."""
    return {"format": "rle", "brushlabels": [label], "rle": list(encode_brush(mask))}


def _task(photo: PhotoRows, manifest: JobManifest) -> dict[str, Any]:
    found = [region("-".join(str(n) for n in (photo.image_id, number, row.get("number")) if n is not None),
                    "brushlabels", ("label", "image"), (photo.height, photo.width),
                    None if row["score"] is None else _sure(row),
                    brush_value(mask_of(photo, row), manifest.classes[number]), by_hand=not by_model(row))
             for number, row in photo.objects]
    sure = min((_sure(row) for _, row in photo.masks), default=0.0)
    own = {} if photo.source_id is None else {"source_id": photo.source_id}
    return {"id": photo.image_id, "data": {"image": _url(photo, manifest), **own}, "predictions": [
        {"model_version": manifest.bundle_id, "score": sure, "result": found}]}


def _url(photo: PhotoRows, manifest: JobManifest) -> str:
    if "://" in photo.file_name:
        return photo.file_name
    place = Store(manifest.images_url)
    root = place.parent.url if manifest.inputs == "list" else place.url
    return f"{root}/{photo.file_name}" if "://" in root else f"/data/local-files/?d={quote(photo.file_name)}"


def _sure(row: dict[str, Any]) -> float:
    """The quality of a mask, or its score if it has no quality; an instance's own score."""
    return float(row["score"] if row.get("quality") is None or "number" in row else row["quality"])
