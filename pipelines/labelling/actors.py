"""`fss label --engine actors`: the job as a stage of Ray Data, whose actors read, label and write chunks.

No photo passes through the command, so that its machine is no bottleneck. On one machine with one model the work is
that of a deployment. On the same hardware the parts equal those of the other engines byte for byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from pipelines.base.cluster import cluster
from pipelines.base.progress import Bar, say
from pipelines.base.ray_stage import run_actors
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.labelling.engines import WorkerLostError
from pipelines.labelling.images import PhotoReader
from pipelines.labelling.job import READERS, LabellingJob
from pipelines.labelling.parts import part_name
from pipelines.serving.spec import ModelSpec, best_device, free_models, waits_for_gpu

REQUEST_BYTES = 256_000_000  # bytes of photos in an actor's memory at a time
GROUP = 8  # chunks of an actor's item at most; the stages of a group's chunks overlap
TOGETHER = 2  # chunks of a group at a time: one is read and decoded while the model works on the other
TASKS = 2000  # largest number of tasks; when an actor is lost, all chunks of its task are labelled again


def run_with_actors(job: LabellingJob, left: Sequence[int], spec: ModelSpec, actors: int = 0) -> int:
    """Label the chunks `left`. Returns their number of photos.

    `actors` 0: one a GPU that is free, or one a machine without GPUs; beside a service that holds part of every GPU it
    is one, with half of a GPU.
    """
    with cluster() as ray:
        placed = replace(spec, device=best_device(ray))
        room, share = free_models(ray, placed.device)
        count = min(actors or room, len(left))
        todo = sum(len(job.manifest.rows(c)) for c in left)
        gpus = share if placed.device != "cpu" else 0.0
        if line := waits_for_gpu(ray, placed.device, gpus):
            say(line)
        with Bar("label", len(job.images), unit="images", done=len(job.images) - todo) as bar:
            for photos in run_actors(ray, partial(ChunkLabeler, job, placed), _groups(left, count), actors=count,
                                     gpus=gpus, tasks=TASKS):
                bar.step(photos)
    return todo


def _groups(chunks: Sequence[int], actors: int) -> list[list[int]]:
    """The chunks in groups of at most `GROUP`, but several groups for each actor."""
    size = max(1, min(GROUP, len(chunks) // (4 * actors)))
    return [list(chunks[i:i + size]) for i in range(0, len(chunks), size)]


class ChunkLabeler:
    """Labels chunks in an actor, several at a time."""

    def __init__(self, job: LabellingJob, spec: ModelSpec) -> None:
        import torch

        torch.set_num_threads(spec.torch_threads)
        self.job = job
        self.labeler = Labeler(spec.bundle_url, spec.device, bundle_id=spec.bundle_id, **spec.labeler_options)
        self.reader = PhotoReader(self.job.images, max_bytes=self.job.manifest.max_bytes, threads=READERS)
        self.pool = ThreadPoolExecutor(TOGETHER, thread_name_prefix="chunk")

    def __call__(self, chunks: list[int]) -> int:
        """Label the chunks that have no part yet, and write their parts. Returns the number of photos of all."""
        return sum(self.pool.map(self._label_chunk, chunks))

    def _label_chunk(self, chunk: int) -> int:
        if self.job.out.exists(part_name(chunk)):  # of a group that was begun in an actor that is lost
            return len(self.job.manifest.rows(chunk))
        note = f"attempt-{chunk:06d}.json"  # of a lost actor it stays
        engine = _ActorEngine(self.labeler, self.job.manifest.batch, suspicious=self.job.out.exists(note))
        self.job.out.write_json(note, {})
        photos, _ = self.job.label_chunk(chunk, engine, self.reader)
        self.job.out.delete(note)
        return photos


@dataclass
class _ActorEngine:
    """The `Engine` of one chunk in an actor. suspicious: an actor was lost with this chunk before."""

    labeler: Labeler
    batch: int
    suspicious: bool
    request_bytes: int = REQUEST_BYTES
    photo_bytes: int = sys.maxsize

    def label(self, images: list[bytes], request: MaskRequest, *, checked: bool = False) -> list[Labels | PhotoFailure]:
        """One result for each photo, in order. Raises `WorkerLostError` for a suspicious chunk that is not checked."""
        if self.suspicious and not checked:
            raise WorkerLostError
        return self.labeler.label_classes(images, request, self.batch)
