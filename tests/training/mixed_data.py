"""A VOC directory and a COCO directory that show the same things under other names, generated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipelines.config.data import DataConfig, MixtureConfig
from tests.data.conftest import jpeg, png, square, write

SIDE = 64
VOC = {1: "aeroplane", 6: "bus", 12: "dog", 18: "sofa", 20: "tvmonitor"}  # folds 0, 1, 2, 3, 3
COCO = {5: "airplane", 6: "bus", 18: "dog", 24: "zebra", 63: "couch", 72: "tv"}


def voc_directory(root: Path, photos: int = 6) -> None:
    """Each class alone in `photos` photos, a void rim; every third one also shows the next class."""
    values = list(VOC)
    for k, value in enumerate(values):
        for i in range(photos):
            name = f"2007_{value:03d}{i:03d}"
            labels = np.zeros((SIDE, SIDE))
            labels[4:60, 4:60], labels[:2] = value, 255
            if i % 3 == 2:
                labels[4:60, 42:60] = values[(k + 1) % len(values)]
            write(root, f"JPEGImages/{name}.jpg", jpeg(SIDE, SIDE, 100 * value + i))
            write(root, f"SegmentationClass/{name}.png", png(labels, palette=True))


def coco_directory(root: Path, photos: int = 6) -> None:
    """Each class but tv in `photos` photos; every third one also shows the next class; tv only in one zebra's."""
    images, notes, ids = [], [], list(COCO)[:-1]
    for k, category in enumerate(ids):
        for i in range(photos):
            number = 1000 * category + i
            images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": SIDE, "width": SIDE})
            write(root, f"images/{number:012d}.jpg", jpeg(SIDE, SIDE, number))
            shown = [category] + ([ids[(k + 1) % len(ids)]] if i % 3 == 2 else []) + ([72] if number == 24000 else [])
            notes += [{"id": len(notes) + j, "image_id": number, "category_id": c, "iscrowd": 0,
                       "segmentation": [square(2 + 20 * j, 2, 18)]} for j, c in enumerate(shown)]
    categories = [{"id": c, "name": n} for c, n in COCO.items()]
    write(root, "annotations/instances.json",
          json.dumps({"images": images, "annotations": notes, "categories": categories}))


def split_file(root: Path) -> str:
    """The last two photos of every class are tested; returns the path."""
    def halves(folder: Path) -> dict[str, list[str]]:
        names = sorted(p.name for p in folder.iterdir())
        test = [n for n in names if int(Path(n).stem[-3:]) >= 4]
        return {"train": [n for n in names if n not in test], "test": test}

    document = {"voc": halves(root / "voc" / "JPEGImages"), "coco": halves(root / "coco" / "images")}
    write(root, "splits.json", json.dumps(document))
    return str(root / "splits.json")


def mixed_data(root: Path) -> tuple[DataConfig, MixtureConfig]:
    """The VOC directory with PASCAL's folds, and the COCO directory at weight 0.6."""
    voc_directory(root / "voc")
    coco_directory(root / "coco")
    split = {"file": split_file(root)}
    main = DataConfig.model_validate({
        "name": "voc", "source": {"format": "voc", "root": str(root / "voc")}, "split": split, "folds": 4,
        "fold_rule": "contiguous", "min_images": 1, "block_size": 4})
    other = DataConfig.model_validate({
        "name": "coco", "source": {"format": "coco", "root": str(root / "coco")}, "split": split, "block_size": 4})
    return main, MixtureConfig(data=other, weight=0.6)
