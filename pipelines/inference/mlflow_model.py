"""A bundle as a model of MLflow (flavour pyfunc): photos and marked photos in, masks as COCO's run lengths out.

What MLflow keeps is a JSON file that says where the bundle is, and which: the weights stay in the workspace. In a table
with the columns of `INPUTS`, each row is a photo:

    photo      the bytes of a photo; base64 in JSON
    supports   JSON, the body of `POST /v1/supports`, or a list of such bodies for several classes; a row without takes
               those of the row above, so that a table needs them once

The answer has the columns of `OUTPUTS`, a row for each photo: `labels`, one for each class, and `error`, which says why
a photo has none.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from fss_models.errors import FssError
from fss_models.forms import read_form
from fss_models.marks import rle_json
from fss_models.photo_files import decode_image
from fss_models.predictor import MaskSettings, MemorisedSupports, PhotoMask, Predictor
from pipelines.base.storage import Store
from pipelines.bundles.bundle import load_predictor, read_bundle_info
from pipelines.inference.support_files import SupportRequest, support_set_from_request

if TYPE_CHECKING:
    import pandas as pd

KEPT = 32  # classes whose memories are kept
_LABEL = {"class_name": "string", "counts": "string", "score": "double", "presence": "double", "quality": "double",
          "status": "string", "area": "long"}
INPUTS: list[dict[str, Any]] = [{"name": "photo", "type": "binary", "required": True},
                                {"name": "supports", "type": "string", "required": False}]
OUTPUTS: list[dict[str, Any]] = [
    {"name": "labels", "type": "array", "required": True, "items": {"type": "object", "properties": {
        **{name: {"type": kind, "required": name not in ("presence", "quality")} for name, kind in _LABEL.items()},
        "size": {"type": "array", "items": {"type": "long"}, "required": True}}}},
    {"name": "error", "type": "string", "required": True}]
PARAMS = [{"name": "threshold", "type": "double", "default": 0.5, "shape": None},
          {"name": "prevalence", "type": "double", "default": 0.5, "shape": None}]


def mlflow_model(bundle_id: str, places: list[str]) -> dict[str, Any]:
    """What `Tracker.model` wants for the bundle `bundle_id`, which is at one of `places` (URLs), the first first."""
    signature = {"inputs": INPUTS, "outputs": OUTPUTS, "params": PARAMS}
    return {"loader": __name__, "data": {"bundle_id": bundle_id, "places": [Store(p).url for p in places]},
            "signature": {key: json.dumps(value) for key, value in signature.items()}}


class PhotoModel:
    """What `mlflow.pyfunc.load_model` wraps. Several threads may call it; one at a time predicts."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._memories: LRUCache[str, MemorisedSupports] = LRUCache(KEPT)
        self._lock = threading.Lock()

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row of `OUTPUTS` for each row of `INPUTS`; `params` are those of `PARAMS`.

        Raises `FssError` for wrong supports, naming the row, and where the first row has none.
        """
        import pandas as pd

        settings, classes, found = MaskSettings(**(params or {})), [], []
        texts = model_input["supports"] if "supports" in model_input else [None] * len(model_input)
        with self._lock:
            for row, (photo, text) in enumerate(zip(model_input["photo"], texts, strict=True)):
                if isinstance(text, str) and text.strip():
                    classes = _classes(text, f"row {row}, supports")
                if not classes:
                    raise FssError("the first row has no supports", hint="see /v1/supports for their form")
                found.append(self._row(bytes(photo), classes, settings))
        return pd.DataFrame(found, columns=[c["name"] for c in OUTPUTS])

    def _row(self, data: bytes, classes: list[SupportRequest], settings: MaskSettings) -> dict[str, Any]:
        try:
            photo = decode_image(data, exif=True)
        except FssError as error:
            return {"labels": [], "error": str(error)}
        return {"labels": [_label(one.class_name, self.predictor.predict(self._memory(one), photo, settings))
                           for one in classes], "error": ""}

    def _memory(self, one: SupportRequest) -> MemorisedSupports:
        key = one.model_dump_json()
        if key not in self._memories:
            given = support_set_from_request(one)
            rows = [{"image": decode_image(s.image, exif=True), **s.mark} for s in given.supports]
            reads = self.predictor.model.reads_names(self.predictor.model.config)
            self._memories[key] = self.predictor.memorise(rows, one.class_name if reads else "", prompt=one.prompt)
        return self._memories[key]


def _classes(text: str, where: str) -> list[SupportRequest]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise FssError(f"is not JSON: {error}", where=where) from error
    return [read_form(SupportRequest, one, where) for one in (content if isinstance(content, list) else [content])]


def _label(class_name: str, found: PhotoMask) -> dict[str, Any]:
    return {"class_name": class_name, **rle_json(found.mask), "area": int(found.mask.sum()), "score": found.score,
            "presence": found.presence, "quality": found.quality, "status": found.status or "uncalibrated"}


def _load_pyfunc(path: str) -> PhotoModel:
    """MLflow calls this with the path of the JSON file. Raises `FssError` if the bundle is at none of its places."""
    import torch

    about = json.loads(Path(path).read_text())
    reasons = []
    for place in about["places"]:
        try:
            if (there := read_bundle_info(place).bundle_id) == about["bundle_id"]:
                return PhotoModel(load_predictor(place, "cuda" if torch.cuda.is_available() else "cpu"))
            reasons.append(f"{place} has bundle {there}")
        except FssError as error:
            reasons.append(str(error))
    raise FssError(f"bundle {about['bundle_id']} is not where it was: {'; '.join(reasons)}",
                   hint="the model's weights stay in the workspace it was promoted in")
