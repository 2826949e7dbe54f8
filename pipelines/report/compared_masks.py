"""The masks that `fss compare` scores: of any annotations, results of a detector among them, photo by photo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fss_models.errors import BadImage, FssError
from fss_models.limits import PhotoLimits
from pipelines.base.storage import Store, join
from pipelines.data.annotations import Annotations, PhotoAnnotations
from pipelines.labelling.manifest import MANIFEST
from pipelines.labelling.outputs import LABELS

ONLY_FINDS = ("yolo", "pairs")  # formats without a list of photos: a photo that has no file shows nothing


@dataclass(frozen=True)
class ComparedMasks:
    """One model's masks. finds: whether a photo without a record has no mask, rather than being one it never saw."""

    name: str
    path: str
    annotations: Annotations
    finds: bool

    def covers(self, photo: str) -> bool:
        """Whether the model has seen the photo."""
        return self.finds or photo in self.annotations.items

    def read(self, photo: str, data: bytes, limits: PhotoLimits) -> PhotoAnnotations | None:
        """The masks of a photo, None without a record. Raises `FssError` for masks of another size."""
        item = self.annotations.items.get(photo)
        if item is None:
            return None
        try:
            found = self.annotations.read(item, data, limits)
        except BadImage as error:
            raise FssError(f"{photo}: {error.reason}", where=self.path) from error
        if other := next((p for p in found.problems if ", its image " in p), ""):
            raise FssError(f"{photo}: {other}", where=self.path, hint="give masks of the photos' own size")
        return found


def labels_of(job: str) -> str:
    """The labels.json of a job's folder. Raises `FssError` for an unfinished job, and for another folder."""
    out = Store(job)
    if out.exists(LABELS):
        return join(out.url, LABELS)
    if out.exists(MANIFEST):
        raise FssError("the job is not finished", where=out.url, hint="run `fss label` again to finish it")
    raise FssError("holds no labelling job", where=out.url, hint="give the --out of `fss label`")


def open_predictions(name: str, url: str, photos: Mapping[str, int], truth: str, folder: Path, *, min_score: float,
                     rename: Mapping[str, str]) -> ComparedMasks:
    """Anybody's predictions. Results of a detector become annotations in `folder`, those below `min_score` left out.

    Raises `FssError` for files that cannot be read, and for results without the COCO file that their ids are of.
    """
    place, made = url, False
    if url.lower().endswith(".json"):
        document = _json(url)
        made = isinstance(document, list) and all(isinstance(one, dict) and "category_id" in one for one in document)
        if made:
            document = _annotations_of(document, truth, url)
        noted = _objects(document.get("annotations")) if isinstance(document, dict) else []
        ours = isinstance(document, dict) and "bundle_id" in (document.get("info") or {})
        if not ours and (made or any("score" in one for one in noted)):
            document["annotations"] = [{k: v for k, v in one.items() if k != "score"} for one in noted
                                       if _score(one, url) >= min_score]
            place = str(folder / f"{len(list(folder.iterdir()))}.json")
            Path(place).write_text(json.dumps(document))
    found = Annotations(place, photos)
    found.classes = [rename.get(c, c) for c in found.classes]
    return ComparedMasks(name, url, found, made or found.format in ONLY_FINDS)


def _objects(noted: Any) -> list[dict[str, Any]]:
    """A list of JSON objects; empty for anything else, which the reader of COCO refuses."""
    return noted if isinstance(noted, list) and all(isinstance(one, dict) for one in noted) else []


def _score(one: dict[str, Any], url: str) -> float:
    """The score of a result; 1 without one. Raises `FssError` for one that is no number."""
    try:
        return float(one.get("score", 1.0))
    except (TypeError, ValueError) as error:
        raise FssError(f"a result has the score {str(one['score'])[:40]!r}", where=url) from error


def _json(url: str) -> Any:
    try:
        return json.loads(Store(url).read_bytes())
    except (ValueError, RecursionError) as error:
        raise FssError(f"the file is not valid JSON: {error}", where=url) from error


def _annotations_of(results: Sequence[dict[str, Any]], truth: str, url: str) -> dict[str, Any]:
    """COCO annotations of results ({image_id, category_id, segmentation, score}); photos and classes of the truth."""
    document = _json(truth) if truth.lower().endswith(".json") else None
    if not isinstance(document, dict) or not {"images", "categories"} <= document.keys():
        raise FssError("results name photos and classes by ids", where=url, hint="give the COCO file of these ids as "
                       "--truth")
    images, classes = ({one["id"] for one in document[key]} for key in ("images", "categories"))
    if lost := sum(one.get("image_id") not in images for one in results):
        raise FssError(f"{lost} results name an image id that the truth lacks", where=url)
    if lost := sum(one.get("category_id") not in classes for one in results):
        raise FssError(f"{lost} results name a category id that the truth lacks", where=url)
    if lost := sum("segmentation" not in one for one in results):
        raise FssError(f"{lost} results have no mask (segmentation)", where=url, hint="predict masks, not boxes")
    return {"images": document["images"], "categories": document["categories"],
            "annotations": [{"id": n, "iscrowd": 0, **one} for n, one in enumerate(results, 1)]}
