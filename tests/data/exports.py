"""One small labelled dataset, written as each tool would export it."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import rle
from pipelines.data.sources.voc import CLASSES as VOC_CLASSES
from tests.data.conftest import jpeg, png, write

HEIGHT, WIDTH, PHOTOS = 48, 64, 8
CLASSES = ("bottle", "car")  # VOC has both


class Object(NamedTuple):
    """One object: its class, its outline in pixels (x, y) and its mask."""

    label: str
    outline: np.ndarray
    mask: np.ndarray

    @property
    def flat(self) -> list[float]:
        """x0, y0, x1, y1, ..."""
        return [round(float(v), 3) for v in self.outline.ravel()]


def objects(number: int) -> list[Object]:
    """A bottle in the left half and a car in the right half, both irregular."""
    rng, found = np.random.default_rng(number), []
    for label, centre in zip(CLASSES, (WIDTH * 0.27, WIDTH * 0.73), strict=True):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9)) + rng.normal() * 0.01
        radii = rng.uniform(9, 15, 9)
        outline = np.stack([centre + radii * np.cos(angles), HEIGHT / 2 + radii * np.sin(angles)], 1)
        found.append(Object(label, outline, rle.decode(rle.from_polygons([outline.ravel()], HEIGHT, WIDTH),
                                                       HEIGHT, WIDTH)))
    return found


def name(number: int) -> str:
    """A photo's name in every layout."""
    return f"2010_{number:06d}.jpg"  # VOC's own pattern


def photo(number: int) -> bytes:
    """Its bytes."""
    return jpeg(HEIGHT, WIDTH, number)


def truth() -> dict[str, dict[str, np.ndarray]]:
    """Stem -> class -> mask."""
    return {Path(name(i)).stem: {o.label: o.mask for o in objects(i)} for i in range(PHOTOS)}


# ---- the layouts --------------------------------------------------------------------------------------------------

def coco(root: Path) -> None:
    notes: list[dict[str, Any]] = []
    for i in range(PHOTOS):
        write(root, f"images/{name(i)}", photo(i))
        notes += [{"id": 10 * i + k, "image_id": i, "category_id": 1 + CLASSES.index(o.label),
                   "segmentation": [o.flat], "iscrowd": 0} for k, o in enumerate(objects(i))]
    images = [{"id": i, "file_name": name(i), "height": HEIGHT, "width": WIDTH} for i in range(PHOTOS)]
    categories = [{"id": 1 + i, "name": c} for i, c in enumerate(CLASSES)]
    write(root, "annotations/instances.json",
          json.dumps({"images": images, "annotations": notes, "categories": categories}))


def voc(root: Path) -> None:
    for i in range(PHOTOS):
        labels = np.zeros((HEIGHT, WIDTH))
        for o in objects(i):
            labels[o.mask] = 1 + VOC_CLASSES.index(o.label)
        write(root, f"JPEGImages/{name(i)}", photo(i))
        write(root, f"SegmentationClass/{Path(name(i)).stem}.png", png(labels, palette=True))


def pairs(root: Path) -> None:
    for i in range(PHOTOS):
        write(root, f"images/{name(i)}", photo(i))
        for o in objects(i):
            write(root, f"masks/{o.label}/{Path(name(i)).stem}.png", png(o.mask * 255))


def yolo(root: Path) -> None:
    write(root, "data.yaml",
          "path: ../datasets/mini\ntrain: images/train\nval: images/val\nnames:\n" + "".join(f"  {i}: {c}\n" for i,
                                                                                             c in enumerate(CLASSES)))
    for i in range(PHOTOS):
        folder = "val" if i % 4 == 3 else "train"
        lines = [f"{CLASSES.index(o.label)} " + " ".join(f"{v:.6f}" for v in (o.outline / [WIDTH, HEIGHT]).ravel())
                 for o in objects(i)]
        write(root, f"images/{folder}/{name(i)}", photo(i))
        write(root, f"labels/{folder}/{Path(name(i)).stem}.txt", "\n".join(lines) + "\n")


def region(o: Object, number: int, *, brush: bool) -> dict[str, Any]:
    """A result as Label Studio has it."""
    kind = "brushlabels" if brush else "polygonlabels"
    value: dict[str, Any] = {kind: [o.label]}
    if brush:
        value |= {"format": "rle", "rle": brush_rle(o.mask)}
    else:
        value |= {"points": (o.outline * [100 / WIDTH, 100 / HEIGHT]).tolist(), "closed": True}
    return {"id": f"r{number}", "type": kind, "from_name": "label", "to_name": "image", "origin": "manual",
            "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "value": value}


def label_studio_tasks(*, brush: bool = False) -> list[dict[str, Any]]:
    """An export: references of every kind, and what else is in such a file."""
    references = itertools.cycle(["/data/upload/3/1a2b3c4d-{}", "/data/local-files/?d=mini%2Fphotos%2F{}",
                                  "s3://some-bucket/photos/{}", "https://example.org/files/{}?token=x", "photos/{}"])
    other = {"type": "choices", "from_name": "quality", "to_name": "image", "value": {"choices": ["good"]}}
    return [{
        "id": 100 + i, "data": {"image": next(references).format(name(i))}, "meta": {}, "predictions": [],
        "annotations": [
            {"id": i, "was_cancelled": True, "ground_truth": False, "result": []},
            {"id": 50 + i, "was_cancelled": False, "ground_truth": False,
             "result": [region(o, k, brush=brush) for k, o in enumerate(objects(i))] + [other]},
        ],
    } for i in range(PHOTOS)]


def label_studio(root: Path, *, brush: bool = False) -> None:
    for i in range(PHOTOS):
        write(root, f"photos/{name(i)}", photo(i))
    write(root, "project-3.json", json.dumps(label_studio_tasks(brush=brush)))


def brush_rle(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a mask: runs of up to 2^16 equal bytes, none copied."""
    flat = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{flat.size:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    for value, run in itertools.groupby(flat.tolist()):
        left = len(list(run))
        while left:
            count = min(left, 2**16)
            bits += f"111{count - 1:016b}{value:08b}"
            left -= count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def labelme_shape(o: Object, *, mask: bool) -> dict[str, Any]:
    """A shape as LabelMe writes it: an outline, or a PNG of the box of its mask."""
    shape: dict[str, Any] = {"label": o.label, "group_id": None, "flags": {}, "description": ""}
    if not mask:
        return shape | {"shape_type": "polygon", "points": o.outline.tolist()}
    ys, xs = np.nonzero(o.mask)
    box = png(o.mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] * 255)
    corners = [[float(xs.min()), float(ys.min())], [float(xs.max()), float(ys.max())]]
    return shape | {"shape_type": "mask", "points": corners, "mask": base64.b64encode(box).decode()}


def labelme_file(number: int, *, mask: bool = False, path: str | None = None) -> dict[str, Any]:
    """The JSON file of a photo."""
    return {"version": "5.4.1", "flags": {}, "shapes": [labelme_shape(o, mask=mask) for o in objects(number)],
            "imagePath": path or f"../photos/{name(number)}", "imageData": None, "imageHeight": HEIGHT,
            "imageWidth": WIDTH}


def labelme(root: Path, *, mask: bool = False) -> None:
    for i in range(PHOTOS):
        write(root, f"photos/{name(i)}", photo(i))
        write(root, f"labels/{Path(name(i)).stem}.json", json.dumps(labelme_file(i, mask=mask)))


def cvat_mask(o: Object) -> str:
    """The element CVAT writes for a mask."""
    ys, xs = np.nonzero(o.mask)
    box = o.mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    runs = [0] if box.flat[0] else []
    runs += [len(list(run)) for _, run in itertools.groupby(box.ravel().tolist())]
    return (f'<mask label="{o.label}" source="manual" occluded="0" rle="{", ".join(map(str, runs))}" '
            f'left="{xs.min()}" top="{ys.min()}" width="{box.shape[1]}" height="{box.shape[0]}" z_order="0"></mask>')


def cvat_polygon(o: Object) -> str:
    """The element CVAT writes for a polygon."""
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in o.outline)
    return f'<polygon label="{o.label}" source="manual" occluded="0" points="{points}" z_order="0"></polygon>'


def cvat_document(images: list[str]) -> str:
    """annotations.xml."""
    labels = "".join(f"<label><name>{c}</name><color>#fa3253</color><type>any</type><attributes></attributes></label>"
                     for c in CLASSES)
    return ('<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><id>7</id>'
            f"<mode>annotation</mode><labels>{labels}</labels></task></meta>{''.join(images)}</annotations>\n")


def cvat_image(number: int, shapes: str) -> str:
    """An image element."""
    return f'<image id="{number}" name="{name(number)}" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'


def cvat(root: Path, *, mask: bool = False) -> None:
    drawn: Callable[[Object], str] = cvat_mask if mask else cvat_polygon
    for i in range(PHOTOS):
        write(root, f"images/{name(i)}", photo(i))
    write(root, "annotations.xml",
          cvat_document([cvat_image(i, "".join(map(drawn, objects(i)))) for i in range(PHOTOS)]))


MASK_TYPES = {
    "png": (pa.binary(), lambda o: png(o.mask * 255)),
    "rle": (pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())]),
            lambda o: {"size": [HEIGHT, WIDTH], "counts": rle.encode(o.mask).decode()}),
    "polygon": (pa.list_(pa.list_(pa.float64())), lambda o: [o.flat]),
}


def table(root: Path, *, kind: str = "rle", embedded: bool = True) -> None:
    """Two files, small row groups: an object a row; photos in the table, or beside it."""
    type_, value = MASK_TYPES[kind]
    schema = pa.schema([("file_name", pa.string()), ("class", pa.string()), ("mask", type_),
                        *([("image", pa.binary())] if embedded else []), ("note", pa.string())])
    root.mkdir(parents=True, exist_ok=True)
    for half, numbers in enumerate(np.array_split(range(PHOTOS), 2)):
        rows = [{"file_name": name(i), "class": o.label, "mask": value(o), "image": None if k else photo(int(i))}
                for i in numbers for k, o in enumerate(objects(int(i)))]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / f"part-{half}.parquet", row_group_size=3)
    for i in range(0 if embedded else PHOTOS):
        write(root, f"photos/{name(i)}", photo(i))


LAYOUTS: dict[str, tuple[str, Callable[[Path], None], bool]] = {  # name -> format, writer, whether masks are exact
    "coco": ("coco", coco, False),
    "voc": ("voc", voc, True),
    "pairs": ("pairs", pairs, True),
    "yolo": ("yolo", yolo, False),
    "label_studio polygons": ("label_studio", label_studio, False),
    "label_studio brush": ("label_studio", lambda root: label_studio(root, brush=True), True),
    "labelme polygons": ("labelme", labelme, False),
    "labelme masks": ("labelme", lambda root: labelme(root, mask=True), True),
    "cvat polygons": ("cvat", cvat, False),
    "cvat masks": ("cvat", lambda root: cvat(root, mask=True), True),
    "table of RLE": ("table", table, True),
    "table of PNG": ("table", lambda root: table(root, kind="png"), True),
    "table of polygons": ("table", lambda root: table(root, kind="polygon", embedded=False), False),
}

