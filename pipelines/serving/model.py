"""The model behind the service: one class, deployed once for people (`interactive`) and once for jobs (`bulk`)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray import serve
from ray.serve import Application

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.bundles.bundle import about_bundle
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.inference.supports import SupportSet
from pipelines.serving.metrics import PhotoMetrics
from pipelines.serving.spec import ModelSpec
from pipelines.serving.watch import BundleWatch

Item = tuple[Labeler, bytes, MaskRequest]
Results = list[Labels | PhotoFailure]
CONCURRENT_BATCHES = 2  # one is decoded while the model works on the other
BULK_CHUNKS = 2  # chunks in a bulk replica: one is decoded while the model works on the other
# How soon a router looks again for a free replica. Serve's default of 0.5 s leaves replicas idle while requests wait.
ROUTER_RETRY: dict[str, Any] = {"initial_backoff_s": 0.005, "max_backoff_s": 0.02}
KEEP_S = 600.0  # seconds for which jobs that began with the former bundle keep it in memory
STARTS = 10  # attempts to load a bundle that may be being replaced, a second apart


class Model:
    """A `Labeler` in a replica. Photos of concurrent requests share batches, also with different support sets.

    With `spec.follow` a newly promoted bundle is loaded beside the old one, the memories of the support sets in use
    are computed with it, and then requests that begin use it; those that have begun end with the old one. Jobs that
    began with the old one go on with it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        import torch

        torch.set_num_threads(spec.torch_threads)
        self.spec, self.metrics, self._one = spec, PhotoMetrics(), _batched(spec)
        self.labeler, self._job_at = self._first(), 0.0
        self._former: Labeler | None = None
        self._watch: BundleWatch | None = None
        if spec.follow:
            self._watch = BundleWatch(spec.follow, self.labeler.info, self._take, spec.follow_s)

    async def add_support(self, supports: SupportSet) -> str:
        """Compute the memory of a support set. Returns its id. Raises `FssError` if the method refuses the prompts."""
        return await asyncio.to_thread(self.labeler.add_support, supports)

    async def segment(self, images: list[bytes], request: MaskRequest) -> tuple[str, Results]:
        """Label a person's photos in batches shared with other requests: (bundle id, results).

        Raises `UnknownSupportError`, and `FssError` if the method cannot give what the request asks for.
        """
        labeler = self.labeler  # one bundle for the whole request
        labeler.check(request)
        # a wrong request fails here, before its photos share a batch with other requests
        for key in (await asyncio.to_thread(labeler.with_tile, request)).support_ids:
            await asyncio.to_thread(labeler.memory, key)
        found = list(await asyncio.gather(*(self._one((labeler, image, request)) for image in images)))
        self.metrics.count(found, bulk=False)
        return labeler.info.bundle_id, found

    async def chunk(self, images: list[bytes], request: MaskRequest, bundle_id: str = "", *,
                    strict: bool = True) -> tuple[str, Results]:
        """Label a job's photos in batches of their own, so that equal photos give equal bytes: (bundle id, results).

        `bundle_id`: the bundle that the job began with; with `strict` another one is not used in its place. Raises
        `UnknownSupportError`, and `FssError` if that bundle is gone.
        """
        labeler = await asyncio.to_thread(self._labeler_of, bundle_id, strict)
        found = await asyncio.to_thread(labeler.label_classes, images, request, self.spec.batch)
        self.metrics.count(found, bulk=True)
        return labeler.info.bundle_id, found

    def _labeler_of(self, bundle_id: str, strict: bool) -> Labeler:
        self._job_at = time.monotonic()
        for look in (False, True):
            if look and self._watch:
                self._watch.look()  # the job may know of a champion that this replica has not seen
            for labeler in (self.labeler, self._former):
                if labeler and bundle_id in ("", labeler.info.bundle_id):
                    return labeler
        if strict:
            raise FssError(f"the bundle is {self.labeler.info.bundle_id} now, no longer {bundle_id}",
                           where=self.spec.bundle_url, hint="start a new job")
        return self.labeler

    def _first(self) -> Labeler:
        for _ in range(STARTS if self.spec.follow else 0):
            with suppress(FssError):
                return self._load()
            time.sleep(1)
        return self._load()

    def _load(self) -> Labeler:
        spec = self.spec
        url = spec.follow if spec.follow and Store(spec.follow).exists("bundle.json") else spec.bundle_url
        return Labeler(url, spec.device, bundle_id="" if spec.follow else spec.bundle_id, **spec.labeler_options)

    def _take(self, info: BundleInfo) -> None:
        """Load the bundle, compute the memories in use, and replace the labeler."""
        old = self.labeler
        if about_bundle(info) == about_bundle(old.info):
            return
        new = self._load()
        for support_id in old.support_ids:
            with suppress(FssError):  # the new method refuses these marks: the next request says so
                new.memory(support_id)
        self._former, self.labeler = old, new
        self._forget()

    def _forget(self) -> None:
        """Let the former labeler go when no job has used this replica for `KEEP_S` seconds, at once where none has."""
        left = KEEP_S - (time.monotonic() - self._job_at) if self._job_at else 0.0
        if left > 0:
            timer = threading.Timer(left, self._forget)
            timer.daemon = True
            timer.start()
        else:
            self._former = None


def _batched(spec: ModelSpec) -> Any:
    @serve.batch(max_batch_size=spec.batch, batch_wait_timeout_s=spec.serve.wait_s,
                 max_concurrent_batches=CONCURRENT_BATCHES)
    async def one(items: Sequence[Item]) -> Results:
        results: dict[int, Labels | PhotoFailure] = {}
        for labeler in dict.fromkeys(item[0] for item in items):  # two while a new champion is taken, else one
            rows = [i for i, item in enumerate(items) if item[0] is labeler]
            images, requests = [items[i][1] for i in rows], [items[i][2] for i in rows]
            found = await asyncio.to_thread(labeler.label_mixed, images, requests, spec.batch)
            results |= dict(zip(rows, found, strict=True))
        return [results[i] for i in range(len(items))]

    return one


def interactive(spec: ModelSpec) -> Application:
    """The deployment for people: it batches many small requests, and refuses (503) when too many wait."""
    least, most = spec.serve.replicas or 1, spec.serve.max_replicas
    count: dict[str, Any] = {"num_replicas": least}
    if most > least:
        count = {"autoscaling_config": {
            "min_replicas": least, "initial_replicas": least, "max_replicas": most,
            "target_ongoing_requests": spec.batch, "upscale_delay_s": 10, "downscale_delay_s": 300}}
    deployment = serve.deployment(
        name="interactive", ray_actor_options=spec.actor_options,
        # A batch fills only if at least so many requests may be in the replica.
        max_ongoing_requests=spec.batch * CONCURRENT_BATCHES, max_queued_requests=8 * spec.batch,
        request_router_config=ROUTER_RETRY, **count,
    )
    return deployment(Model).bind(spec)


def bulk(spec: ModelSpec, *, on_demand: bool) -> Application:
    """The deployment for labelling jobs: one request is one chunk. With `on_demand` replicas run only during jobs."""
    most = spec.serve.replicas or spec.job_replicas
    count: dict[str, Any] = {"num_replicas": most}
    if on_demand:
        count = {"autoscaling_config": {
            "min_replicas": 0, "initial_replicas": 0, "max_replicas": most, "upscale_delay_s": 0,
            "target_ongoing_requests": BULK_CHUNKS, "downscale_delay_s": 300}}
    else:
        count["graceful_shutdown_wait_loop_s"] = 0.1  # it is deleted when its job has all answers
    deployment = serve.deployment(
        name="bulk", ray_actor_options=spec.actor_options, max_ongoing_requests=BULK_CHUNKS,
        max_queued_requests=64, request_router_config=ROUTER_RETRY, **count,
    )
    return deployment(Model).bind(spec)
