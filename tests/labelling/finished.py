"""A finished labelling job whose masks are known, in all formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pycocotools import mask as coco
from scipy import ndimage

from pipelines.base.storage import Store
from pipelines.inference.masks import Label, PhotoFailure, make_label
from pipelines.labelling.images import list_images
from pipelines.labelling.manifest import JobManifest, claim_folder
from pipelines.labelling.outputs import FORMATS, write_outputs
from pipelines.labelling.parts import write_part
from tests.serving.helpers import encoded

NAMES = ["a <cup> & \"saucer\"", "fork"]
COUNT = 8
Masks = dict[str, dict[str, np.ndarray]]  # photo -> class -> mask


def draw_mask(rng: np.random.Generator, height: int, width: int, kind: int) -> np.ndarray:
    """A random mask, by `kind`: 0 blobs with holes, 1 empty, 2 single pixels, some of which touch in a corner."""
    if kind == 0:
        found: np.ndarray = ndimage.gaussian_filter(rng.random((height, width)), 3) > 0.5
        return found
    return np.zeros((height, width), dtype=bool) if kind == 1 else rng.random((height, width)) < 0.02


def known_masks() -> Masks:
    """Eight photos, some of them in a sub-folder; the last one shows neither class."""
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(40, 90, (COUNT, 2))]
    return {f"{'more/' if i % 3 == 0 else ''}{i}.jpg":
            {c: draw_mask(rng, *sizes[i], (i + n) % 3 if i < COUNT - 1 else 1) for n, c in enumerate(NAMES)}
            for i in range(COUNT)}


def finished_job(root: Path, truth: Masks) -> Path:
    """Write root/photos, one of them unreadable, and the job root/out. Returns the job."""
    photos, out = root / "photos", root / "out"
    for name, masks in truth.items():
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(encoded(np.zeros((*masks["fork"].shape, 3), dtype=np.uint8)))
    (photos / "bad.jpg").write_bytes(b"no photo")
    images = list_images(str(photos))
    manifest = JobManifest(
        images_url=str(photos), images_count=len(images), images_hash=images.hash, class_names=NAMES,
        support_ids=["0" * 16, "1" * 16], bundle_id="b", method="prior", preset="nano", chunk=3, batch=1, threshold=0.5,
        limit=0, max_pixels=10**8, max_bytes=10**8, code_version="0")
    claim_folder(Store(str(out)), manifest)
    for chunk in range(manifest.chunks):
        rows = manifest.rows(chunk)
        results = [PhotoFailure(reason="no photo") if (name := images.names[r]) == "bad.jpg" else
                   tuple(_labels(truth[name])) for r in rows]
        write_part(Store(str(out)), chunk, images, rows, manifest, results)
    write_outputs(Store(str(out)), manifest, list(FORMATS))
    return out


def _labels(masks: dict[str, np.ndarray]) -> list[Label]:
    coded = [coco.encode(np.asfortranarray(m, dtype=np.uint8)) for m in masks.values()]
    return [make_label(rle, 0.5 + 0.1 * n) for n, rle in enumerate(coded)]
