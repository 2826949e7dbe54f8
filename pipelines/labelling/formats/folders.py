"""Formats that are a folder with one file for each photo: YOLO segmentation, semantic PNGs."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.labelling.formats.files import UniqueStems, mask_of
from pipelines.labelling.formats.outline import joined, polygons
from pipelines.labelling.manifest import PLAIN, JobManifest
from pipelines.labelling.parts import PhotoRows, photos

WRITERS, AHEAD = 8, 64  # threads that write small files, and photos in memory
BYTE = 255  # largest number of classes in an 8-bit PNG
LISTED = ["image_id", "file_name", "height", "width", "error"]
MILLIONTH = 1e-6


def write_yolo(out: Store, manifest: JobManifest, name: str) -> None:
    """Write data.yaml, photos.txt and labels/, where each line of a file is the polygon of one piece of a mask.

    In a job with instances each line is one instance, whose pieces are joined by slits of width 0.

    The file of a photo without a mask is empty. images/ is a link to the photos if they are in a local folder.
    data.yaml names the list photos.txt, not images/, because Ultralytics follows a link to a folder and then looks for
    labels beside the photos. Raises `FssError` for two photos whose names differ only in the suffix, and for photos
    whose labels YOLO would not find.
    """
    stems = UniqueStems(ordered=manifest.in_order)

    def one(photo: PhotoRows) -> tuple[str, bytes]:
        _check_name(photo.path, stems, out.path(name))
        lines = [line for number, row in photo.objects for line in _yolo_lines(photo, number, row)]
        return f"{name}/labels/{os.path.splitext(photo.path)[0]}.txt", "".join(lines).encode()

    write_all(out, manifest, one)
    with out.stream(f"{name}/photos.txt") as file:
        for photo in photos(out, manifest, LISTED):
            file.write(f"./images/{photo.path}\n".encode())
    if manifest.inputs in PLAIN and "://" not in manifest.images_url and out.is_local:
        with suppress(FileExistsError):
            Path(out.path(f"{name}/images")).symlink_to(manifest.images_url, target_is_directory=True)
    about = {"train": "photos.txt", "val": "photos.txt", "names": dict(enumerate(manifest.classes))}
    out.write_bytes(f"{name}/data.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True).encode())


def _check_name(photo: str, stems: UniqueStems, where: str) -> None:
    if stems.name(photo) == photo:
        raise FssError(f"{photo} would share its label file with another photo", where=where,
                       hint="YOLO ignores the suffix of a name: rename one of the photos")
    if "images" in PurePosixPath(photo).parts[:-1]:
        raise FssError(f"{photo} is in a sub-folder named `images`", where=where,
                       hint="YOLO looks for labels beside the last folder `images`: rename it, or label it alone")


def _yolo_lines(photo: PhotoRows, number: int, row: dict[str, Any]) -> Iterator[str]:
    """The lines of a mask or an instance: corners as shares of width and height.

    Shares are increased by a millionth, so that readers that round down to pixels get the same corners.
    """
    pieces = polygons(mask_of(photo, row))
    for corners in [joined(pieces)] if "number" in row else pieces:
        shares = np.minimum(corners / np.array([photo.width, photo.height]) + MILLIONTH, 1)
        yield f"{number} " + " ".join(f"{v:.6f}" for v in shares.ravel()) + "\n"


def write_semantic(out: Store, manifest: JobManifest, name: str) -> None:
    """Write NAME.png for each photo: 0 for no class, else the number of the class from 1; and the names in classes.txt.

    Where masks overlap, the pixels belong to the mask with the highest quality, or score if it has no quality. PNGs
    have 8 bits, or 16 for more than 255 classes.
    """
    stems, deep = UniqueStems(ordered=manifest.in_order), len(manifest.classes) > BYTE

    def one(photo: PhotoRows) -> tuple[str, bytes]:
        drawn = np.zeros((photo.height, photo.width), dtype=np.uint16 if deep else np.uint8)
        ordered = sorted(photo.masks, key=lambda f: f[1]["score"] if f[1].get("quality") is None else f[1]["quality"])
        for number, row in ordered:
            drawn[mask_of(photo, row)] = number + 1
        file = io.BytesIO()
        Image.fromarray(drawn).save(file, "PNG")
        return f"{name}/{stems.name(photo.path)}.png", file.getvalue()

    write_all(out, manifest, one)
    out.write_bytes(f"{name}/classes.txt", "".join(f"{c}\n" for c in manifest.classes).encode())


def write_all(out: Store, manifest: JobManifest, one: Callable[[PhotoRows], tuple[str, bytes]]) -> None:
    """Write the file (name, content) that `one` makes of each photo, a few at a time."""
    todo = photos(out, manifest)
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as pool:
        while some := list(islice(todo, AHEAD)):
            for done in [pool.submit(out.write_bytes, *one(photo)) for photo in some]:
                done.result()
