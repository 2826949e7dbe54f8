"""The model behind the service: one class, deployed once for people (`interactive`) and once for jobs (`bulk`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler, PhotoLimits
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.inference.supports import SupportSet
from pipelines.serving.metrics import PhotoMetrics
from pipelines.serving.spec import ModelSpec

Item = tuple[bytes, MaskRequest]
CONCURRENT_BATCHES = 2  # one is decoded while the other is in the model
BULK_CHUNKS = 2  # the same for chunks
# How soon a router looks for a free place again. Serve's half a second leaves a replica idle while requests wait.
AGAIN: dict[str, Any] = {"initial_backoff_s": 0.005, "max_backoff_s": 0.02}


class Model:
    """A `Labeler` in a replica. Photos of concurrent requests share batches, whatever support set each wants."""

    def __init__(self, spec: ModelSpec) -> None:
        import torch

        torch.set_num_threads(spec.torch_threads)
        limits = PhotoLimits(max_pixels=spec.max_pixels, max_bytes=spec.max_bytes)
        self.labeler = Labeler(spec.bundle_url, spec.device, decoders=spec.torch_threads,
                               supports_url=spec.supports_url, bundle_id=spec.bundle_id, limits=limits)
        self.batch, self.metrics = spec.batch, PhotoMetrics()
        self._one = _batched(self.labeler, spec)

    async def add_support(self, supports: SupportSet) -> str:
        """Compute the memory. Raises `FssError` if the method refuses the prompts."""
        return await asyncio.to_thread(self.labeler.add_support, supports)

    async def segment(self, images: list[bytes], wanted: MaskRequest) -> list[Labels | PhotoFailure]:
        """A person's photos, batched with those of other requests. Raises `UnknownSupportError`."""
        for support_id in wanted.support_ids:  # here, so that nobody else's request fails with it
            await asyncio.to_thread(self.labeler.memory, support_id)
        found = list(await asyncio.gather(*(self._one((image, wanted)) for image in images)))
        self.metrics.count(found, bulk=False)
        return found

    async def chunk(self, images: list[bytes], wanted: MaskRequest) -> list[Labels | PhotoFailure]:
        """A job's photos in batches of their own: the same photos give the same bytes. Raises `UnknownSupportError`."""
        found = await asyncio.to_thread(self.labeler.label_classes, images, wanted, self.batch)
        self.metrics.count(found, bulk=True)
        return found


def _batched(labeler: Labeler, spec: ModelSpec) -> Any:
    @serve.batch(max_batch_size=spec.batch, batch_wait_timeout_s=spec.wait_s,
                 max_concurrent_batches=CONCURRENT_BATCHES)
    async def one(items: Sequence[Item]) -> list[Labels | PhotoFailure]:
        images, wanted = [i[0] for i in items], [i[1] for i in items]
        return await asyncio.to_thread(labeler.label_mixed, images, wanted, spec.batch)

    return one


def interactive(spec: ModelSpec) -> Application:
    """For people: many small requests, batched together; refused (503) when too many wait."""
    count: dict[str, Any] = {"num_replicas": spec.replicas}
    if spec.max_replicas > spec.replicas:
        count = {"autoscaling_config": {
            "min_replicas": spec.replicas, "initial_replicas": spec.replicas, "max_replicas": spec.max_replicas,
            "target_ongoing_requests": spec.batch, "upscale_delay_s": 10, "downscale_delay_s": 300}}
    made = serve.deployment(
        name="interactive", ray_actor_options=spec.actor_options,
        # Batches only fill if at least that many requests may be in the replica.
        max_ongoing_requests=spec.batch * CONCURRENT_BATCHES, max_queued_requests=8 * spec.batch,
        request_router_config=AGAIN, **count,
    )
    return _bind(made(Model), spec)


def bulk(spec: ModelSpec, *, on_demand: bool) -> Application:
    """For labelling jobs: a request is a chunk. `on_demand` starts replicas when a job comes, and stops them after."""
    count: dict[str, Any] = {"num_replicas": spec.replicas}
    if on_demand:
        count = {"autoscaling_config": {
            "min_replicas": 0, "initial_replicas": 0, "max_replicas": spec.replicas, "upscale_delay_s": 0,
            "target_ongoing_requests": BULK_CHUNKS, "downscale_delay_s": 300}}
    made = serve.deployment(
        name="bulk", ray_actor_options=spec.actor_options, max_ongoing_requests=BULK_CHUNKS,
        max_queued_requests=64, request_router_config=AGAIN, **count,
    )
    return _bind(made(Model), spec)


def _bind(deployment: Deployment, spec: ModelSpec) -> Application:
    return deployment.bind(spec)
