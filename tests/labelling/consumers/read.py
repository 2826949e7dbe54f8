"""Read a finished job's labels with another tool's own library: python read.py READER JOB RESULT.

JOB holds photos/ and out/. RESULT (.npz) gets a [H, W] bool mask under `PHOTO|CLASS` for every mask found, those of one
photo and class joined, and `photos`, the names that the library has seen. Runs where only these libraries are: imports
nothing of fss.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

import numpy as np

Found = Iterator[tuple[str, str, np.ndarray | None]]  # photo, class, mask; no mask: the photo alone


def supervision_coco(job: Path, file: str) -> Found:
    """pycocotools: masks from run lengths, or from polygons that it fills itself."""
    from supervision import DetectionDataset

    yield from _detections(DetectionDataset.from_coco(
        str(job / "photos"), str(job / "out" / file), force_masks=True), job / "photos")


def supervision_yolo(job: Path) -> Found:
    """A reader of one folder: it does not see photos in sub-folders of images/."""
    from supervision import DetectionDataset

    root = job / "out" / "yolo"
    yield from _detections(DetectionDataset.from_yolo(
        str(root / "images"), str(root / "labels"), str(root / "data.yaml"), force_masks=True), root / "images")


def _detections(dataset: object, photos: Path) -> Found:
    for place, found in dataset.annotations.items():
        name = os.path.relpath(place, photos)
        yield name, "", None
        for number, label in enumerate(found.class_id):
            yield name, dataset.classes[label], found.mask[number]


def ultralytics_yolo(job: Path) -> Found:
    """Ultralytics, as for training: data.yaml from another folder, the checked labels, the filled polygons."""
    config = Path(mkdtemp(dir=job)) / "Ultralytics"
    config.mkdir()
    (config / "Arial.ttf").touch()  # else it would download one
    os.environ.update(YOLO_CONFIG_DIR=str(config.parent), YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygons2masks

    os.chdir("/")
    data = check_det_dataset(str(job / "out" / "yolo" / "data.yaml"), autodownload=False)
    photos = job / "out" / "yolo" / "images"
    for labels in YOLODataset(img_path=data["train"], data=data, task="segment", augment=False).labels:
        name, (height, width) = os.path.relpath(labels["im_file"], photos), labels["shape"]
        yield name, "", None
        for label, shares in zip(labels["cls"].ravel(), labels["segments"], strict=True):
            corners = shares * np.array([width, height], dtype=np.float32)
            yield name, data["names"][int(label)], polygons2masks((height, width), [corners], 1)[0]


def datumaro_cvat(job: Path) -> Found:
    """CVAT: annotations.xml beside images/, as in its own exports."""
    yield from _items(job, "cvat", "annotations.xml", "annotations.xml", "images")


def datumaro_coco(job: Path) -> Found:
    """The official folders: annotations/instances_SUBSET.json and images/SUBSET."""
    yield from _items(job, "coco", "labels.json", "annotations/instances_all.json", "images/all")


def _items(job: Path, format_: str, file: str, place: str, images: str) -> Found:
    from datumaro import AnnotationType, Dataset

    root = Path(mkdtemp(dir=job))
    for path in (place, images):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(job / "out" / file)
    (root / images).symlink_to(job / "photos", target_is_directory=True)
    dataset = Dataset.import_from(str(root), format_)
    classes = dataset.categories()[AnnotationType.label]
    for item in dataset:
        name = os.path.relpath(item.media.path, root / images)
        yield name, "", None
        for note in item.annotations:
            if note.type == AnnotationType.mask:
                yield name, classes[note.label].name, note.image


def label_studio(job: Path) -> Found:
    """Label Studio: the SDK checks the predictions; its converter reads them as if they had been accepted."""
    from label_studio_sdk.converter import brush
    from label_studio_sdk.converter.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    tasks = json.loads((job / "out" / "label_studio.json").read_text())
    names = sorted({name for t in tasks for r in t["predictions"][0]["result"] for name in r["value"]["brushlabels"]})
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in names)
    view = (f"<View><Image name='image' value='$image'/><BrushLabels name='label' toName='image'>{labels}"
            "</BrushLabels></View>")
    interface = LabelInterface(view)
    for task in tasks:
        wrong = [error for p in task["predictions"] for error in interface.validate_prediction(p, return_errors=True)]
        assert not wrong, wrong
        task["annotations"] = [{"id": 1, "result": p["result"]} for p in task.pop("predictions")]
    export = Path(mkdtemp(dir=job)) / "export.json"
    export.write_text(json.dumps(tasks))
    for item in Converter(view, str(job), download_resources=False).iter_from_json_file(str(export)):
        name = unquote(item["input"]["image"].partition("?d=")[2])
        yield name, "", None
        for layer, alpha in brush.decode_from_annotation("label", item["output"].get("label", [])).items():
            yield name, layer.removeprefix("label-").rpartition("-")[0], alpha == 255


def labelme(job: Path) -> Found:
    """LabelMe itself opens every file, with the photo that it names, and draws the shapes."""
    from labelme import LabelFile
    from labelme.utils import img_data_to_arr, shapes_to_label

    root = job / "out" / "labelme"
    for path in sorted(root.rglob("*.json")):
        opened = LabelFile(str(path))
        name, shape = os.path.relpath(path.parent / opened.image_path, root), img_data_to_arr(opened.image_data).shape
        yield name, "", None
        for label in {s["label"] for s in opened.shapes}:
            drawn, _ = shapes_to_label(shape, [s for s in opened.shapes if s["label"] == label], {label: 1})
            yield name, label, drawn == 1


READERS = {
    "labelme": labelme,
    "supervision-coco": lambda job: supervision_coco(job, "labels.json"),
    "supervision-coco-polygons": lambda job: supervision_coco(job, "labels_polygons.json"),
    "supervision-yolo": supervision_yolo,
    "ultralytics-yolo": ultralytics_yolo,
    "datumaro-cvat": datumaro_cvat,
    "datumaro-coco": datumaro_coco,
    "label-studio": label_studio,
}


def main(reader: str, job: str, result: str) -> None:
    """Run the reader and write RESULT."""
    masks: dict[str, np.ndarray] = {}
    seen = set()
    for name, label, mask in READERS[reader](Path(job)):
        seen.add(name)
        if mask is not None:
            key, drawn = f"{name}|{label}", np.asarray(mask).astype(bool)
            masks[key] = masks[key] | drawn if key in masks else drawn
    np.savez(result, photos=np.array(sorted(seen)), **masks)


if __name__ == "__main__":
    main(*sys.argv[1:])
