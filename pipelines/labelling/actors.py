"""`fss label --engine actors`: the job as a stage of Ray Data, whose actors read, label and write chunks.

No photo passes through the command, so that its machine is no bottleneck. On one machine with one model the work is
that of a deployment. On the same hardware the parts equal those of the other engines byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipelines.base.cluster import cluster
from pipelines.base.progress import Bar
from pipelines.base.ray_stage import run_actors
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.labelling.engines import WorkerLostError
from pipelines.labelling.images import PhotoReader
from pipelines.labelling.job import READERS, LabellingJob
from pipelines.serving.spec import ModelSpec, best_device

REQUEST_BYTES = 256_000_000  # bytes of photos in an actor's memory at a time
TASKS = 2000  # largest number of tasks; when an actor is lost, all chunks of its task are labelled again


def run_with_actors(job: LabellingJob, left: Sequence[int], spec: ModelSpec, actors: int = 0) -> int:
    """Label the chunks `left`. Returns their number of photos. `actors` 0: one a GPU, or one a machine without GPUs."""
    with cluster() as ray:
        placed = replace(spec, device=best_device(ray))
        count = min(actors or _count_models(ray, placed), len(left))
        todo = sum(len(job.manifest.rows(c)) for c in left)
        gpus = 1.0 if placed.device != "cpu" else 0.0
        with Bar("label", len(job.images), unit="images", done=len(job.images) - todo) as bar:
            for photos in run_actors(ray, partial(ChunkLabeler, job, placed), left, actors=count, gpus=gpus,
                                     tasks=TASKS):
                bar.step(photos)
    return todo


def _count_models(ray: Any, spec: ModelSpec) -> int:
    """The number of models that fit into the cluster: one a GPU, or one a machine without GPUs."""
    if spec.device != "cpu":
        return max(1, int(ray.cluster_resources().get("GPU", 1)))
    return max(1, sum(1 for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1))


class ChunkLabeler:
    """Labels chunks in an actor; it is the `Engine` of its own chunks."""

    request_bytes = REQUEST_BYTES

    def __init__(self, job: LabellingJob, spec: ModelSpec) -> None:
        import torch

        torch.set_num_threads(spec.torch_threads)
        self.job, self.suspicious = job, False
        self.labeler = Labeler(spec.bundle_url, spec.device, decoders=spec.torch_threads,
                               supports_url=spec.supports_url, bundle_id=spec.bundle_id, limits=spec.limits,
                               max_seconds=spec.max_seconds)
        self.reader = PhotoReader(self.job.images, max_bytes=self.job.manifest.max_bytes, threads=READERS)

    def __call__(self, chunk: int) -> int:
        """Label a chunk and write its part. A repeated chunk gives the same part. Returns its number of photos."""
        note = f"attempt-{chunk:06d}.json"  # of a lost actor it stays
        self.suspicious = self.job.out.exists(note)
        self.job.out.write_json(note, {})
        photos, _ = self.job.label_chunk(chunk, self, self.reader)
        self.job.out.delete(note)
        return photos

    def label(self, images: list[bytes], request: MaskRequest, *, checked: bool = False) -> list[Labels | PhotoFailure]:
        """One result for each photo, in order. Raises `WorkerLostError` if an actor was lost with this chunk before."""
        if self.suspicious and not checked:
            raise WorkerLostError
        return self.labeler.label_classes(images, request, self.job.manifest.batch)
