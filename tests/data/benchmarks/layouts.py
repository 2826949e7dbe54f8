"""Small copies of every benchmark's raw layout, generated: photos of 64 x 72 with objects of more than 2048 pixels."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tests.data.conftest import jpeg, png, square, write

HEIGHT, WIDTH = 64, 72


def label_map(*values: int, rim: int = 0) -> np.ndarray:
    """Bands of 2304 pixels and more, one a value; `rim` on the last column."""
    labels = np.zeros((HEIGHT, WIDTH))
    width = WIDTH // max(len(values), 1)
    for i, value in enumerate(values):
        labels[:, i * width : (i + 1) * width] = value
    if rim:
        labels[:, -1] = rim
    return labels


def pascal5i(root: Path) -> None:
    """Three test and three training photos of aeroplanes and buses, one with both; void rims; a small third class."""
    base, val = "VOC2012", []
    for i in range(6):
        name = f"2007_{i + 1:06d}"
        labels = label_map(1, 6, rim=255) if i % 3 == 2 else label_map((1, 6)[i % 3], rim=255)
        if i % 3 == 2:
            labels[:10, :10] = 7  # car: shown, but too small to count
        write(root, f"{base}/JPEGImages/{name}.jpg", jpeg(HEIGHT, WIDTH, i))
        write(root, f"{base}/SegmentationClassAug/{name}.png", png(labels))
        val += [name] if i < 3 else []
    write(root, f"{base}/ImageSets/Segmentation/val.txt", "\n".join([*val, ""]))


def coco20i(root: Path) -> None:
    """Persons and airplanes (fold 0), bicycles (fold 1); three photos of each in both pools."""
    for folder, first in (("train2014", 0), ("val2014", 500)):
        for i in range(9):
            name = f"COCO_{folder}_{first + i + 1:012d}"
            write(root, f"COCO2014/{folder}/{name}.jpg", jpeg(HEIGHT, WIDTH, first + i))
            labels = label_map((1, 5, 2)[i // 3])
            write(root, f"COCO2014/annotations/{folder}/{name}.png", png(labels))


def fss1000(root: Path) -> None:
    """Two classes of ten a split, in Matcher's layout."""
    for s, split in enumerate(("trn", "val", "test")):
        names = [f"{split}_{k}" for k in ("b", "a")]  # the file is not sorted
        write(root, f"FSS-1000/splits/{split}.txt", "".join(f"{n}\n" for n in names))
        for c, name in enumerate(names):
            for i in range(1, 11):
                mask = np.zeros((HEIGHT, WIDTH))
                mask[5 + i : 40, 5:50] = 255
                write(root, f"FSS-1000/data/{name}/{i}.jpg", jpeg(HEIGHT, WIDTH, 100 * s + 10 * c + i))
                write(root, f"FSS-1000/data/{name}/{i}.png", png(np.repeat(mask[:, :, None], 3, 2)))


def lvis92i(root: Path) -> None:
    """Twelve categories of three val photos and one rare one: fold f tests category f, fold 0 to 9; two instances."""
    def photos(split: str, first: int) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for c in range(13):
            rare = c == 12
            for i in range(1 if rare else 3):
                name = f"{split}/{first + 3 * c + i:012d}.jpg"
                write(root, f"LVIS/coco/{name}", jpeg(HEIGHT, WIDTH, first + 3 * c + i))
                notes = [{"segmentation": [square(2 + c, 2, 20)]},
                         {"segmentation": [square(40, 30, 20), square(30, 2, 8)]}]
                found.setdefault(7 * c + 1, {})[name] = {"annotations": notes}
        return found

    write(root, "LVIS/lvis_train.pkl", pickle.dumps(photos("train2017", 1000)))
    write(root, "LVIS/lvis_val.pkl", pickle.dumps(photos("val2017", 2000)))


def _rle(x0: int, x1: int, y0: int, y1: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    found = coco_mask.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode("ascii")}


def paco_part(root: Path) -> None:
    """Four part categories; each photo has two objects, one of them with a part in two pieces."""
    for split, folder, first in (("train", "train2017", 1), ("val", "val2017", 100)):
        cid2img: dict[int, list[dict[int, str]]] = {c: [] for c in (21, 5, 9, 30)}
        img2anno: dict[int, list[dict[str, Any]]] = {}
        for i in range(4):
            number = first + i
            name = f"{folder}/{number:012d}.jpg"
            write(root, f"PACO-Part/coco/{name}", jpeg(HEIGHT, WIDTH, number))
            img2anno[number] = [
                {"category_id": 21, "obj_ann_id": 900 + i, "obj_bbox": [4.6, 6.2, 30.7, 40.9],
                 "segmentation": [square(8, 10, 12)]},
                {"category_id": 21, "obj_ann_id": 900 + i, "obj_bbox": [4.6, 6.2, 30.7, 40.9],
                 "segmentation": _rle(24, 30, 30, 40)},
                {"category_id": 5, "obj_ann_id": 900 + i, "obj_bbox": [4.6, 6.2, 30.7, 40.9],
                 "segmentation": [square(10, 25, 10)]},
                {"category_id": 21, "obj_ann_id": 950 + i, "obj_bbox": [40.0, 5.0, 20.0, 20.0],
                 "segmentation": [square(42, 8, 10)]},
                {"category_id": 9, "obj_ann_id": 950 + i, "obj_bbox": [40.0, 5.0, 20.0, 20.0],
                 "segmentation": [square(52, 8, 6)]},
                {"category_id": 30, "obj_ann_id": 960 + i, "obj_bbox": [40.0, 5.0, 20.0, 0.4],
                 "segmentation": [square(52, 8, 6)]},  # a box of no height
            ]
            for c in cid2img:
                cid2img[c] += [{number: f"coco/{name}"}] * 2  # listed twice, as in the pickles
        write(root, f"PACO-Part/paco/paco_part_{split}.pkl", pickle.dumps({"cid2img": cid2img, "img2anno": img2anno}))


def pascal_part(root: Path) -> None:
    """Two classes a super-category; each image has a whole object, one without the part, and one of another kind."""
    base = "Pascal-Part/VOCdevkit/VOC2010"
    kinds = {"animals": "dog", "indoor": "bottle", "person": "person", "vehicles": "aeroplane"}
    index: dict[str, Any] = {}
    number = 0
    for fold, (name, kind) in enumerate(kinds.items()):
        images: dict[str, list[str]] = {"train": [], "val": []}
        for split in ("train", "val"):
            for _ in range(4):
                number += 1
                image = f"2008_{number:06d}"
                images[split].append(image)
                write(root, f"{base}/JPEGImages/{image}.jpg", jpeg(HEIGHT, WIDTH, number))
                objects = [
                    _object(kind, (5, 6, 45, 50), {"HEAD": [_rle(8, 20, 8, 20), _rle(30, 36, 10, 14)],
                                                   "BODY": [_rle(10, 40, 22, 44)], "TAIL": [_rle(40, 44, 40, 48)]}),
                    _object("cat", (0, 0, 20, 20), {"HEAD": [_rle(2, 6, 2, 6)]}),
                    _object(kind, (46, 10, 70, 60), {"BODY": [_rle(50, 66, 20, 50)]}),
                ]
                write(root, f"{base}/Annotations_Part_json_merged_part_classes/{image}.json",
                      json.dumps({"object": objects}))
        parts: dict[str, Any] = {"HEAD": images, "BODY": images, "EAR": {"train": [], "val": images["val"][:1]}}
        index[name] = {"object": {kind: {"part": parts | ({"TAIL": images} if fold == 3 else {})}}}
    write(root, f"{base}/all_obj_part_to_image.json", json.dumps(index))


def _object(name: str, box: tuple[int, int, int, int], parts: dict[str, list[Any]]) -> dict[str, Any]:
    keys = ("xmin", "ymin", "xmax", "ymax")
    return {"name": name, "bndbox": {k: str(v) for k, v in zip(keys, box, strict=True)},
            "parts": [{"name": p, "mask": m} for p, m in parts.items()]}


def ade20k(root: Path) -> None:
    """Walls and buildings in three photos a split; names in objectInfo150.txt."""
    base = "ADEChallengeData2016"
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.2\t3\t3\t1\twall", "2\t0.1\t3\t3\t1\tbuilding, edifice"]
    write(root, f"{base}/objectInfo150.txt", "\n".join(rows + [f"{i}\t0\t0\t0\t0\tthing {i}" for i in range(3, 151)]))
    for folder, split in (("training", "train"), ("validation", "val")):
        for i in range(3):
            name = f"ADE_{split}_{i + 1:08d}"
            write(root, f"{base}/images/{folder}/{name}.jpg", jpeg(HEIGHT, WIDTH, i))
            write(root, f"{base}/annotations/{folder}/{name}.png", png(label_map(1, 2)))


def isic(root: Path) -> None:
    """Three photos of each kind."""
    number = 0
    for kind in ("1", "2", "3"):
        for _ in range(3):
            number += 1
            name = f"ISIC_{number:07d}"
            write(root, f"ISIC/ISIC2018_Task1-2_Training_Input/{kind}/{name}.jpg", jpeg(HEIGHT, WIDTH, number))
            mask = label_map(255)
            mask[:5] = 127  # below the threshold
            write(root, f"ISIC/ISIC2018_Task1_Training_GroundTruth/{name}_segmentation.png", png(mask))


def lung(root: Path) -> None:
    """Three photos with masks in both ways of naming them, and one without."""
    for i, mask in enumerate(("CHNCXR_0001_1_mask", "CHNCXR_0002_1_mask", "MCUCXR_0003_0", "")):
        name = mask.removesuffix("_mask") or "CHNCXR_0009_0"
        photo = np.full((HEIGHT, WIDTH), 40 + 30 * i)
        photo[10:30, 10:30] = 200
        write(root, f"LungSegmentation/CXR_png/{name}.png", png(photo))
        if mask:
            write(root, f"LungSegmentation/masks/{mask}.png", png(label_map(255)))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "pascal5i": pascal5i, "coco20i": coco20i, "lvis92i": lvis92i, "fss1000": fss1000, "pascal_part": pascal_part,
    "paco_part": paco_part, "ade20k": ade20k, "isic": isic, "lung": lung,
}
