"""What a person would bring to a labelling job, taken from shards: a few marked photos and a folder of others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fss_models.errors import FssError
from pipelines.data import rle
from pipelines.data.decode import decode_image
from pipelines.data.schema import ClassInfo
from pipelines.data.shardset import Shards
from pipelines.progress import Bar
from pipelines.storage import Store

SUPPORTS = 3


def choose_class(shards: Shards, name: str = "") -> ClassInfo:
    """The class `name`, by default the one with the most held-out photos (then by name).

    Raises `FssError` for an unknown name.
    """
    classes = shards.manifest.classes
    if not name:
        return min(classes, key=lambda c: (-c.test_images, c.name))
    found = next((c for c in classes if c.name == name), None)
    if found is None:
        raise FssError(f"there is no class {name!r}", where=shards.url,
                       mend=f"known: {', '.join(sorted(c.name for c in classes))}")
    return found


def write_supports(shards: Shards, chosen: ClassInfo, out: str, *, seed: int = 0) -> str:
    """Write a supports file and its photos, drawn from the train photos of the class; returns the file's URL.

    Photos that are stored turned (EXIF) are passed over: their masks are for the stored orientation.
    """
    store = Store(out)
    photos = list(shards.photos_of(chosen.class_id, "train"))
    np.random.default_rng([seed, chosen.class_id]).shuffle(photos)
    rows: list[dict[str, Any]] = []
    for image_id in photos:
        photo, sample = shards.photo(image_id), shards.sample(image_id, chosen.class_id)
        if not sample.mask.any() or not np.array_equal(decode_image(photo["image"], exif=True), sample.image):
            continue
        name = _name(image_id, photo["file_name"])
        store.write_bytes(name, photo["image"])
        counts = rle.encode(sample.mask).decode()
        rows.append({"image": name, "mask": {"size": list(sample.mask.shape), "counts": counts}})
        if len(rows) == SUPPORTS:
            break
    if not rows:
        raise FssError(f"no train photo of {chosen.name!r} can serve as a support", where=shards.url)
    supports = [{"image": r["image"], "mask": r["mask"]} for r in rows]
    store.write_bytes("supports.json", json.dumps({"class_name": chosen.name, "supports": supports}, indent=1).encode())
    return store.path("supports.json")


def write_photos(shards: Shards, out: str) -> int:
    """Write the held-out photos, bytes as they were; those already there are left alone. Returns their number."""
    store = Store(out)
    rows = shards.images("test")
    have = set(store.list())
    left = [r for r in rows if _name(r["image_id"], r["file_name"]) not in have]
    if left:
        with Bar("held-out photos", len(rows), unit="photos", done=len(rows) - len(left)) as bar:
            for row in left:
                name = _name(row["image_id"], row["file_name"])
                store.write_bytes(name, shards.photo(row["image_id"])["image"])
                bar.step()
    return len(rows)


def _name(image_id: int, file_name: str) -> str:
    """Without folders, in which several photos may have the same name."""
    return f"{image_id}_{file_name.rsplit('/', 1)[-1]}"
