"""FiftyOne: a model for `dataset.apply_model`, and the labels of a finished job as a field of a dataset.

    dataset.apply_model(create_model("supports.json"), label_field="cups")
    import_job(dataset, "labels/cups", label_field="cups")
    dataset.sort_by("cups.uncertainty", reverse=True)

A `Detections` or `Segmentation` has, beside what FiftyOne defines, `uncertainty` (1 minus the probability that the
least certain of its masks is right, see `pipelines.review.doubt`) and `presence` (class -> probability that it is in
the photo, with _ for dots in names; only of bundles with a calibrator). A `Detection` has presence, quality and status
of its class as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.inference.masks import Instance, Label, Labels, PhotoFailure
from pipelines.integrations.photo_labeler import PhotoLabeler, photo_bytes
from pipelines.labelling.manifest import PLAIN, JobManifest
from pipelines.labelling.parts import PhotoRows, photos
from pipelines.review.doubt import sureness
from pipelines.review.job import open_job

if TYPE_CHECKING:
    import fiftyone as fo

Kind = Literal["detections", "segmentation"]
GROUP = 256  # photos whose labels are in memory at a time during an import


def _fiftyone() -> Any:
    try:
        import fiftyone
    except ImportError as error:
        raise FssError("fiftyone is not installed", hint="pip install 'fss[fiftyone]'") from error
    return fiftyone


def to_instances(labels: Labels, classes: Sequence[str]) -> fo.Detections:
    """A photo's labels, one for each class, as detections with masks: one for each object, or for each class.

    A detection's confidence is the calibrated quality of its mask, or else the method's own estimate; of an object it
    is that of the object, and None for one that a person drew. Classes that are not in the photo have no detection.
    """
    fo = _fiftyone()
    found = [_detection(name, label, one) for name, label in zip(classes, labels, strict=True)
             for one in ((label,) if label.instances is None else label.instances) if one.area]
    return fo.Detections(detections=found, **_about_photo(labels, classes))


def _detection(name: str, label: Label, one: Label | Instance) -> fo.Detection:
    left, top, width, height = one.bbox
    mask = coco.decode({"size": [label.height, label.width], "counts": one.counts.encode()}).astype(bool)
    cut = mask[int(top):int(top + height), int(left):int(left + width)]
    sure = label.quality if isinstance(one, Label) and label.quality is not None else one.score
    trust = {k: v for k in ("presence", "quality", "status") if (v := getattr(label, k)) not in (None, "")}
    return _fiftyone().Detection(
        label=name, mask=np.ascontiguousarray(cut), confidence=sure, score=one.score, **trust,
        bounding_box=[left / label.width, top / label.height, width / label.width, height / label.height])


def to_segmentation(labels: Labels, classes: Sequence[str]) -> fo.Segmentation:
    """A photo's labels as one map [H, W]: number of the class from 1, 0 for none. Of masks that overlap the last wins.

    The names of the numbers are `mask_targets(classes)`.
    """
    found = np.zeros((labels[0].height, labels[0].width), np.uint8 if len(classes) < 256 else np.uint16)
    for number, label in enumerate(labels, 1):
        found[coco.decode(label.rle).astype(bool)] = number
    return _fiftyone().Segmentation(mask=found, **_about_photo(labels, classes))


def mask_targets(classes: Sequence[str]) -> dict[int, str]:
    """The names of the numbers in segmentations, for `dataset.mask_targets[field]`."""
    return dict(enumerate(classes, 1))


def _about_photo(labels: Labels, classes: Sequence[str]) -> dict[str, Any]:
    known = {name.replace(".", "_").lstrip("$"): label.presence for name, label in zip(classes, labels, strict=True)
             if label.presence is not None}  # MongoDB has no keys with dots
    return {"uncertainty": 1 - min(sureness(vars(label)) for label in labels), **({"presence": known} if known else {})}


def create_model(supports: str, *, bundle: str = "", url: str = "", device: str = "", labels: Kind | None = None,
                 **settings: Any) -> Any:
    """A `fiftyone.core.models.Model` that labels photos with the classes of `supports`, a supports file or folder.

    It predicts `labels`: detections, by default where `instances` is set, or a segmentation, in which each pixel has
    one class at most. The other arguments are those of `PhotoLabeler`. It is applied with `dataset.apply_model`, whose
    workers read the photos' files, or to arrays [H, W, 3] of uint8. A photo that cannot be read gets no label, and a
    line says why. Raises `FssError` as `PhotoLabeler` does, and without fiftyone.
    """
    _fiftyone()
    import fiftyone.core.models as fom

    kind = labels or ("segmentation" if settings.get("instances", "none") == "none" else "detections")
    if kind not in ("detections", "segmentation"):
        raise FssError(f"labels is {labels!r}", hint="known: detections, segmentation")
    if kind == "segmentation" and settings.get("instances", "none") != "none":
        raise FssError("a segmentation has no instances", hint="leave out labels, or leave out instances")
    labeler = PhotoLabeler(supports, bundle=bundle, url=url, device=device, exclusive=kind == "segmentation",
                           **settings)

    class FssModel(_Predicting, fom.Model, fom.SupportsGetItem, fom.TorchModelMixin):  # type: ignore[misc]
        """Few-shot segmentation of the classes of a supports file."""

    return FssModel(labeler, kind)


class _Predicting:
    """What FiftyOne asks of a model, apart from its base classes, which only exist where FiftyOne is installed."""

    media_type = "image"
    ragged_batches = False
    has_collate_fn = True  # TorchModelMixin's: a batch is the list of what the readers gave
    transforms = config = None
    preprocess = _using_gpu = False

    def __init__(self, labeler: PhotoLabeler, kind: Kind) -> None:
        self.labeler, self.kind = labeler, kind

    @property
    def mask_targets(self) -> dict[int, str]:
        """The names of the numbers in its segmentations."""
        return mask_targets(self.labeler.classes)

    def build_get_item(self, field_mapping: dict[str, str] | None = None) -> Any:
        """What reads a photo's file in the workers of `apply_model`."""
        return _file_reader(field_mapping)

    def predict(self, arg: Any) -> Any:
        """The labels of one photo, or None if it cannot be read."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Iterable[Any]) -> list[Any]:
        """The labels of each photo: the bytes or path of its file, or an array [H, W, 3] of uint8."""
        given = [_photo(arg) for arg in args]
        found = iter(self.labeler.label([photo for photo in given if isinstance(photo, bytes)]))
        return [self._converted(next(found) if isinstance(photo, bytes) else photo) for photo in given]

    def _converted(self, result: Labels | PhotoFailure) -> Any:
        if isinstance(result, PhotoFailure):
            say(f"a photo has no label: {result.reason}")
            return None
        convert = to_instances if self.kind == "detections" else to_segmentation
        return convert(result, self.labeler.classes)


def _photo(arg: Any) -> bytes | PhotoFailure:
    if isinstance(arg, bytes | PhotoFailure):
        return arg
    return photo_bytes(arg) if isinstance(arg, np.ndarray | Image.Image) else read_file(arg)


def read_file(path: str) -> bytes | PhotoFailure:
    """The bytes of a photo's file, or why it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return PhotoFailure(reason=f"{path}: {error.strerror or error}", stage="read")


def _file_reader(field_mapping: dict[str, str] | None = None) -> Any:
    from fiftyone.utils.torch import GetItem

    class FileReader(GetItem):  # type: ignore[misc]
        """From a sample's path to the bytes of its file."""

        required_keys = ("filepath",)

        def __call__(self, d: dict[str, str]) -> bytes | PhotoFailure:
            return read_file(d["filepath"])

        def __reduce__(self) -> tuple[Any, ...]:
            return _file_reader, (self.field_mapping,)

    return FileReader(field_mapping=field_mapping)


def import_job(dataset: fo.Dataset, job: str, label_field: str, *, labels: Kind = "detections",
               photos_root: str = "") -> int:
    """Write the labels of a finished job, with people's decisions applied, into a field of a dataset.

    A photo that the dataset has (by its path) gets the field, others are added. Photos that could not be read are left
    out. In a job with instances there is a detection for each. `photos_root` is where the photos are now, if not where
    they were labelled. Returns the number of photos. Raises `FssError` for a job that is not finished, and for photos
    that are not files of this machine.
    """
    opened = open_job(job)
    opened.check_complete()
    manifest = opened.manifest
    if labels == "segmentation" and len(manifest.classes) > 1 and manifest.overlaps != "resolve":
        raise FssError("in a segmentation each pixel has one class at most", where=job,
                       hint="import detections, or label with `--set label.overlaps=resolve`")
    root, done = photos_root or _root(manifest, job), 0
    ids = dict(zip(*dataset.values(["filepath", "id"]), strict=True))
    rows = photos(opened.out, manifest)
    while some := list(islice(rows, GROUP)):
        done += len(some)
        _add(dataset, label_field, {str(Path(root, p.path).absolute()): _converted(p, manifest, labels) for p in some},
             ids)
    if labels == "segmentation":
        dataset.mask_targets = {**dataset.mask_targets, label_field: mask_targets(manifest.classes)}
    dataset.add_dynamic_sample_fields(fields=[label_field])
    return done


def _root(manifest: JobManifest, job: str) -> str:
    place = Store(manifest.images_url).url
    if manifest.inputs not in PLAIN or "://" in place:
        raise FssError("the photos of this job are not files of this machine", where=job,
                       hint="give photos_root, the folder that holds copies of them under the names in the labels")
    return place


def _converted(photo: PhotoRows, manifest: JobManifest, kind: Kind) -> Any:
    convert = to_instances if kind == "detections" else to_segmentation
    return convert(tuple(_label(photo, row) for row in photo.rows), manifest.classes)


def _label(photo: PhotoRows, row: dict[str, Any]) -> Label:
    own = row.get("instances")
    return Label(height=photo.height, width=photo.width, counts=row["rle"], bbox=tuple(row["bbox"]), area=row["area"],
                 score=row["score"], presence=row.get("presence"), quality=row.get("quality"),
                 status=row.get("status") or "", instances=None if own is None else tuple(
                     Instance(counts=o["rle"], bbox=tuple(o["bbox"]), area=o["area"], score=o["score"]) for o in own))


def _add(dataset: fo.Dataset, field: str, found: dict[str, Any], ids: dict[str, str]) -> None:
    fo = _fiftyone()
    new = [fo.Sample(filepath=path, **{field: label}) for path, label in found.items() if path not in ids]
    if new:
        dataset.add_samples(new, progress=False)
    if known := {ids[path]: label for path, label in found.items() if path in ids}:
        dataset.set_values(field, known, key_field="id")
