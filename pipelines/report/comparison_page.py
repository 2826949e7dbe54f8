"""The page of `fss compare`: the table, and the photos on which the models differ most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fss_models.errors import BadImage
from fss_models.limits import LIMITS
from fss_models.metrics import Floats
from fss_models.photo_files import decode_image
from pipelines.base.storage import Store
from pipelines.data import rle
from pipelines.data.annotations import PhotoAnnotations
from pipelines.inference.masks import PhotoFailure
from pipelines.pages.pictures import PREDICTION, photo_url
from pipelines.pages.template import page_template
from pipelines.report.compared_masks import ComparedMasks

SHOWN = 24  # photos
SIDE = 320  # pixels of a picture's longer side


def most_different(iou: Floats, most: int = SHOWN) -> list[tuple[int, int]]:
    """(photo, class) of each of the photos on which models differ most, its most different class; iou [S, P, C].

    With one model, the photos of its lowest IoU.
    """
    gap = iou.max(axis=0) - iou.min(axis=0) if len(iou) > 1 else 1 - iou[0]
    order = np.argsort(-gap.max(axis=1), kind="stable")[:most]
    return [(int(p), int(gap[p].argmax())) for p in order if gap[p].max() > 0]


def write_page(store: Store, document: dict[str, Any], photos: Sequence[str], classes: Sequence[str], iou: Floats,
               truth: ComparedMasks, models: Sequence[ComparedMasks],
               read: Callable[[str], bytes | PhotoFailure]) -> str:
    """Write index.html, which loads nothing from elsewhere. Returns its path or URL."""
    cards = []
    for photo, number in most_different(iou):
        name, label = photos[photo], classes[number]
        data = read(name)
        if not isinstance(data, PhotoFailure):
            panels = _panels(data, name, label, truth, models)
            cards.append({"name": name, "label": label, "panels": [
                {"url": url, "name": m.name, "iou": float(iou[s, photo, number])}
                for s, (m, url) in enumerate(zip(models, panels, strict=True))]})
    page = page_template("pipelines.report", "comparison.html").render(a=document, cards=cards)
    store.write_bytes("index.html", page.encode())
    return store.path("index.html")


def _panels(data: bytes, name: str, label: str, truth: ComparedMasks, models: Sequence[ComparedMasks]) -> list[str]:
    wanted = truth.read(name, data, LIMITS)
    try:
        pixels = decode_image(data, exif=True)
    except BadImage:
        return ["" for _ in models]
    outline = _mask(wanted, label, pixels.shape)
    return [photo_url(pixels, _mask(model.read(name, data, LIMITS), label, pixels.shape), PREDICTION, SIDE,
                      outline=outline) for model in models]


def _mask(found: PhotoAnnotations | None, label: str, shape: tuple[int, ...]) -> np.ndarray:
    return rle.union(found.masks.get(label, []) if found else [], shape[0], shape[1])
