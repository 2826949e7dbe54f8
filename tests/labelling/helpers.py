"""An engine without a cluster: the labeler in this process, the same code that runs in a replica."""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.base.storage import Store
from pipelines.base.version import package_version
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.labelling.images import list_images
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import JobManifest, claim_folder, describe_images


class DirectEngine:
    """An engine that labels in this process and records the number of photos of each request."""

    photo_bytes = sys.maxsize

    def __init__(self, labeler: Labeler, *, request_bytes: int = 32_000_000, batch: int = 4) -> None:
        self.labeler, self.request_bytes, self.batch = labeler, request_bytes, batch
        self.requests: list[int] = []

    def label(self, images: list[bytes], request: MaskRequest, *, checked: bool = False) -> list[Labels | PhotoFailure]:
        self.requests.append(len(images))
        return self.labeler.label_classes(images, request, self.batch)


def make_job(photos: Path | str, out: Path | str, support_id: str, labeler: Labeler, **changes: object) -> LabellingJob:
    """A claimed job with chunks of 8 photos in batches of 4. `changes` may name several classes instead of one."""
    limit = int(str(changes.get("limit", 0)))
    images = list_images(str(photos), limit)
    one = {} if "class_names" in changes else {"class_name": "ball", "support_id": support_id}
    fields = {**describe_images(images), **one,
              "bundle_id": labeler.info.bundle_id, "method": "prior", "preset": "nano", "chunk": 8, "batch": 4,
              "threshold": 0.5, "limit": 0, "max_pixels": 50_000_000, "max_bytes": 64_000_000,
              "code_version": package_version(), **changes}
    manifest = JobManifest.model_validate(fields)
    store = Store(str(out))
    claim_folder(store, manifest)
    return LabellingJob(store, images, manifest)
