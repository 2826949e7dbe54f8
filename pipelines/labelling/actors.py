"""`fss label --engine actors`: the job as a stage of Ray Data. Its actors read, label and write chunks on any machine.

No photo passes through the command, so that it limits nothing; with one machine and one model it is the same work as
a deployment's. Parts are equal byte by byte to those of the other engines on the same hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fss_models.errors import FssError
from pipelines.base.cluster import cluster
from pipelines.base.progress import Bar
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler, PhotoLimits
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.labelling.images import PhotoReader
from pipelines.labelling.job import READERS, LabellingJob
from pipelines.serving.spec import ModelSpec, best_device

REQUEST_BYTES = 256_000_000  # of photos held at a time
BLOCKS = 2000  # tasks of the stage at most: of a lost actor's task all chunks are done again


def run_with_actors(job: LabellingJob, left: Sequence[int], spec: ModelSpec, actors: int = 0) -> int:
    """Label the chunks `left`; how many photos that were. `actors` 0: one a GPU, else one a machine."""
    with cluster() as ray:
        found = replace(spec, device=best_device(ray))
        count = min(actors or _places(ray, found), len(left))
        todo = sum(len(job.manifest.rows(c)) for c in left)
        chunks = ray.data.from_items([{"chunk": c} for c in left], override_num_blocks=min(len(left), BLOCKS))
        stage = chunks.map_batches(
            ChunkLabeler, fn_constructor_args=(ray.put(job), found), batch_size=1, zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=count), **_resources(found))
        with Bar("label", len(job.images), unit="images", done=len(job.images) - todo) as bar:
            for block in stage.iter_batches(batch_size=None, prefetch_batches=0):
                if line := "".join(block["error"]):
                    raise FssError(line)
                bar.step(int(block["photos"].sum()))
    return todo


def _places(ray: Any, spec: ModelSpec) -> int:
    """How many models there is room for."""
    if spec.device != "cpu":
        return max(1, int(ray.cluster_resources().get("GPU", 1)))
    return max(1, sum(1 for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1))


def _resources(spec: ModelSpec) -> dict[str, float]:
    return {"num_gpus": 1.0} if spec.device != "cpu" else {"num_cpus": 1.0}


class ChunkLabeler:
    """An actor of the stage. It is an engine to its own chunks."""

    request_bytes = REQUEST_BYTES

    def __init__(self, job: Any, spec: ModelSpec) -> None:
        import ray
        import torch

        torch.set_num_threads(spec.torch_threads)
        self.job: LabellingJob = ray.get(job)
        limits = PhotoLimits(max_pixels=spec.max_pixels, max_bytes=spec.max_bytes)
        self.labeler = Labeler(spec.bundle_url, spec.device, decoders=spec.torch_threads,
                               supports_url=spec.supports_url, bundle_id=spec.bundle_id, limits=limits)
        self.reader = PhotoReader(self.job.images, max_bytes=self.job.manifest.max_bytes, threads=READERS)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Label each chunk and write its part. A repeated chunk gives the same part.

        What a person can mend travels as a line: Ray Data makes a trace of many lines of an exception.
        """
        try:
            counts = [self.job.label_chunk(int(c), self, self.reader)[0] for c in batch["chunk"]]
        except FssError as error:
            return {"photos": np.array([0]), "error": np.array([str(error)])}
        return {"photos": np.array([sum(counts)]), "error": np.array([""])}

    def label(self, images: list[bytes], wanted: MaskRequest) -> list[Labels | PhotoFailure]:
        """See `Engine`."""
        return self.labeler.label_classes(images, wanted, self.job.manifest.batch)
