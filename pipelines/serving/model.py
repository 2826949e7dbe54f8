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
CONCURRENT_BATCHES = 2  # one is decoded while the model works on the other
BULK_CHUNKS = 2  # chunks in a bulk replica: one is decoded while the model works on the other
# How soon a router looks again for a free replica. Serve's default of 0.5 s leaves replicas idle while requests wait.
ROUTER_RETRY: dict[str, Any] = {"initial_backoff_s": 0.005, "max_backoff_s": 0.02}


class Model:
    """A `Labeler` in a replica. Photos of concurrent requests share batches, also with different support sets."""

    def __init__(self, spec: ModelSpec) -> None:
        import torch

        torch.set_num_threads(spec.torch_threads)
        limits = PhotoLimits(max_pixels=spec.max_pixels, max_bytes=spec.max_bytes)
        self.labeler = Labeler(spec.bundle_url, spec.device, decoders=spec.torch_threads,
                               supports_url=spec.supports_url, bundle_id=spec.bundle_id, limits=limits)
        self.batch, self.metrics = spec.batch, PhotoMetrics()
        self._one = _batched(self.labeler, spec)

    async def add_support(self, supports: SupportSet) -> str:
        """Compute the memory of a support set. Returns its id. Raises `FssError` if the method refuses the prompts."""
        return await asyncio.to_thread(self.labeler.add_support, supports)

    async def segment(self, images: list[bytes], request: MaskRequest) -> list[Labels | PhotoFailure]:
        """Label a person's photos in batches shared with other requests. Raises `UnknownSupportError`."""
        for support_id in request.support_ids:  # fails here, before the photos share a batch with other requests
            await asyncio.to_thread(self.labeler.memory, support_id)
        found = list(await asyncio.gather(*(self._one((image, request)) for image in images)))
        self.metrics.count(found, bulk=False)
        return found

    async def chunk(self, images: list[bytes], request: MaskRequest) -> list[Labels | PhotoFailure]:
        """Label a job's photos in batches of their own, so that equal photos give equal bytes.

        Raises `UnknownSupportError`.
        """
        found = await asyncio.to_thread(self.labeler.label_classes, images, request, self.batch)
        self.metrics.count(found, bulk=True)
        return found


def _batched(labeler: Labeler, spec: ModelSpec) -> Any:
    @serve.batch(max_batch_size=spec.batch, batch_wait_timeout_s=spec.wait_s,
                 max_concurrent_batches=CONCURRENT_BATCHES)
    async def one(items: Sequence[Item]) -> list[Labels | PhotoFailure]:
        images, requests = [i[0] for i in items], [i[1] for i in items]
        return await asyncio.to_thread(labeler.label_mixed, images, requests, spec.batch)

    return one


def interactive(spec: ModelSpec) -> Application:
    """The deployment for people: it batches many small requests, and refuses (503) when too many wait."""
    count: dict[str, Any] = {"num_replicas": spec.replicas}
    if spec.max_replicas > spec.replicas:
        count = {"autoscaling_config": {
            "min_replicas": spec.replicas, "initial_replicas": spec.replicas, "max_replicas": spec.max_replicas,
            "target_ongoing_requests": spec.batch, "upscale_delay_s": 10, "downscale_delay_s": 300}}
    deployment = serve.deployment(
        name="interactive", ray_actor_options=spec.actor_options,
        # A batch fills only if at least so many requests may be in the replica.
        max_ongoing_requests=spec.batch * CONCURRENT_BATCHES, max_queued_requests=8 * spec.batch,
        request_router_config=ROUTER_RETRY, **count,
    )
    return _bind(deployment(Model), spec)


def bulk(spec: ModelSpec, *, on_demand: bool) -> Application:
    """The deployment for labelling jobs: one request is one chunk. With `on_demand` replicas run only during jobs."""
    count: dict[str, Any] = {"num_replicas": spec.replicas}
    if on_demand:
        count = {"autoscaling_config": {
            "min_replicas": 0, "initial_replicas": 0, "max_replicas": spec.replicas, "upscale_delay_s": 0,
            "target_ongoing_requests": BULK_CHUNKS, "downscale_delay_s": 300}}
    deployment = serve.deployment(
        name="bulk", ray_actor_options=spec.actor_options, max_ongoing_requests=BULK_CHUNKS,
        max_queued_requests=64, request_router_config=ROUTER_RETRY, **count,
    )
    return _bind(deployment(Model), spec)


def _bind(deployment: Deployment, spec: ModelSpec) -> Application:
    return deployment.bind(spec)
