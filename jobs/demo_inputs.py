"""Inputs of the demo's labelling job, taken from shards: a supports file with a few marked photos, photos to label."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from fss_models.errors import FssError
from fss_models.marks import rle_json
from fss_models.photo_files import decode_image
from pipelines.base.progress import Bar
from pipelines.base.storage import Store
from pipelines.data.schema import ClassInfo
from pipelines.data.shardset import Shards

SUPPORTS = 3


def choose_class(shards: Shards, name: str = "") -> ClassInfo:
    """The class called `name`. For "" it is the class with the most held-out photos, the first by name among equals.

    Raises `FssError` for an unknown name.
    """
    classes = shards.manifest.classes
    if not name:
        return min(classes, key=lambda c: (-c.test_images, c.name))
    found = next((c for c in classes if c.name == name), None)
    if found is None:
        raise FssError(f"there is no class {name!r}", where=shards.url,
                       hint=f"known: {', '.join(sorted(c.name for c in classes))}")
    return found


def write_supports(shards: Shards, chosen: ClassInfo, out: str, *, seed: int = 0) -> str:
    """Write a supports file and its photos, drawn from the train photos of the class; returns the file's URL.

    Photos with an EXIF rotation are skipped, since their masks are for the stored orientation. Raises `FssError` if
    no train photo is left.
    """
    store, names = Store(out), _names(shards, "train")
    photos = list(shards.photos_of(chosen.class_id, "train"))
    np.random.default_rng([seed, chosen.class_id]).shuffle(photos)
    rows: list[dict[str, Any]] = []
    for image_id in photos:
        photo, sample = shards.photo(image_id), shards.sample(image_id, chosen.class_id)
        if not sample.mask.any() or not np.array_equal(decode_image(photo["image"], exif=True), sample.image):
            continue
        store.write_bytes(names[image_id], photo["image"])
        rows.append({"image": names[image_id], "mask": rle_json(sample.mask)})
        if len(rows) == SUPPORTS:
            break
    if not rows:
        raise FssError(f"no train photo of class {chosen.name!r} can be a support", where=shards.url)
    store.write_bytes("supports.json", json.dumps({"class_name": chosen.name, "supports": rows}, indent=1).encode())
    return store.path("supports.json")


def write_photos(shards: Shards, out: str) -> int:
    """Write the bytes of all held-out photos below `out`, skipping files that exist. Returns the number of photos."""
    store, names = Store(out), _names(shards, "test")
    existing = set(store.list())
    left = [image_id for image_id, name in names.items() if name not in existing]
    if left:
        with Bar("held-out photos", len(names), unit="photos", done=len(names) - len(left)) as bar:
            for image_id in left:
                store.write_bytes(names[image_id], shards.photo(image_id)["image"])
                bar.step()
    return len(names)


def _names(shards: Shards, split: str) -> dict[int, str]:
    """Image id -> file name without folders. Photos that share a name get a folder each: `IMAGE_ID/NAME`."""
    names = {row["image_id"]: str(row["file_name"]).rsplit("/", 1)[-1] for row in shards.images(split)}
    times = Counter(names.values())
    return {image_id: name if times[name] == 1 else f"{image_id}/{name}" for image_id, name in names.items()}
