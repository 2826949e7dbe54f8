"""Engines compute the labels of a chunk: the running service over HTTP, or the job's own deployment."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from fss_models.errors import FssError
from pipelines.base.cluster import cluster
from pipelines.base.progress import say
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.inference.supports import SupportSet
from pipelines.serving.client import Client, ServiceError
from pipelines.serving.spec import ModelSpec, best_device, free_models, settle_spec, waits_for_gpu

GROUP_BYTES = 32_000_000  # bytes of photos that go together; the object store holds several requests
ATTEMPTS = 10  # more than a minute in all; Serve needs half a minute to restart a lost proxy
SUSPICIOUS = 2  # replicas lost with the photos of one request, after which these are looked at
T = TypeVar("T")


class WorkerLostError(Exception):
    """Workers were lost with the photos of a request, which may be why."""


class Engine(Protocol):
    """Labels the photos of one request. Several threads call it at a time.

    request_bytes: photos with more bytes go in several requests; photo_bytes: a photo with more cannot be sent
    """

    request_bytes: int
    photo_bytes: int

    def label(self, images: list[bytes], request: MaskRequest, *, checked: bool = False) -> list[Labels | PhotoFailure]:
        """One result for each photo, in order. Raises when several attempts have failed.

        Raises `WorkerLostError` when workers were lost with these photos, unless a caller has `checked` them since.
        """


class ServiceEngine:
    """The running service over HTTP. It refuses the results of another bundle than `bundle_id`."""

    def __init__(self, client: Client, max_request_bytes: int, bundle_id: str) -> None:
        self._client, self._bundle_id = client, bundle_id
        self.photo_bytes = max_request_bytes * 3 // 4 - 65_536  # less base64 and JSON
        self.request_bytes = min(GROUP_BYTES, self.photo_bytes)

    def label(self, images: list[bytes], request: MaskRequest, *, checked: bool = False) -> list[Labels | PhotoFailure]:
        """One result for each photo, in order. Raises as `Engine.label` does."""
        return _retrying(
            lambda: self._client.segment_classes(images, request, bulk=True, bundle_id=self._bundle_id), checked)


class LocalEngine:
    """A deployment in this command's cluster, called through its handle, with `bundle_id` or (empty) what it has."""

    request_bytes, photo_bytes = GROUP_BYTES, sys.maxsize

    def __init__(self, handle: Any, bundle_id: str = "") -> None:
        self._handle, self._bundle_id = handle, bundle_id

    def label(self, images: list[bytes], request: MaskRequest, *, checked: bool = False) -> list[Labels | PhotoFailure]:
        """One result for each photo, in order. Raises as `Engine.label` does."""
        results: list[Labels | PhotoFailure]
        _, results = _retrying(lambda: self._handle.chunk.remote(images, request, self._bundle_id).result(), checked)
        return results


@contextmanager
def service_engine(url: str, classes: Sequence[SupportSet], max_request_bytes: int,
                   bundle_id: str) -> Iterator[Engine]:
    """The running service as an engine; the support sets are sent to it first."""
    client = Client(url)
    try:
        for supports in classes:
            _retrying(partial(client.add_support, supports))
        yield ServiceEngine(client, max_request_bytes, bundle_id)
    finally:
        client.close()


@contextmanager
def local_engine(spec: ModelSpec) -> Iterator[Engine]:
    """A deployment for this job alone, without a port; it is deleted at the end."""
    with cluster() as ray:
        from ray import serve

        from pipelines.serving.model import bulk
        from pipelines.serving.server import deploy

        name = f"fss-label-{uuid.uuid4().hex[:8]}"
        began = time.monotonic()
        placed = settle_spec(ray, replace(spec, device=best_device(ray)))
        count, share = free_models(ray, placed.device)
        placed = replace(placed, job_replicas=count, gpu_share=share)
        if line := waits_for_gpu(ray, placed.device, share):
            say(line)
        handle = deploy(bulk(placed, on_demand=False), name=name)
        say(f"the model is up after {time.monotonic() - began:.1f} s")
        try:
            yield LocalEngine(handle)
        finally:
            serve.delete(name)


def _retrying(call: Callable[[], T], checked: bool = True) -> T:
    """Call again, with growing pauses, if a replica died, the queue was full or the service did not answer.

    Raises `WorkerLostError` when `SUSPICIOUS` replicas died and the photos are not `checked`, and `FssError` when all
    attempts failed.
    """
    lost = 0

    def before_sleep(state: RetryCallState) -> None:
        nonlocal lost
        error = state.outcome.exception() if state.outcome else None
        say(f"attempt {state.attempt_number} of a request failed ({type(error).__name__}); trying again")
        lost += _is_lost_worker(error)
        if lost == SUSPICIOUS and not checked:
            raise WorkerLostError from error

    again = Retrying(stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential_jitter(initial=0.5, max=15),
                     retry=retry_if_exception(_is_retryable), before_sleep=before_sleep, reraise=True)
    try:
        return again(call)
    except httpx.HTTPError as error:
        raise FssError(f"the service does not answer: {error}",
                       hint="run the same command again to continue") from error
    except Exception as error:
        if isinstance(error, FssError) or not _is_retryable(error):
            raise
        raise FssError(f"the model was lost or busy in all attempts ({type(error).__name__})",
                       hint="run the same command again to continue") from error


def _is_lost_worker(error: BaseException | None) -> bool:
    if isinstance(error, ServiceError):
        return error.status in (500, 502)
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError)


def _is_retryable(error: BaseException) -> bool:
    if isinstance(error, ServiceError):
        return error.status in (429, 500, 502, 503, 504)
    if isinstance(error, httpx.TransportError):
        return True
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    return _is_lost_worker(error) or isinstance(error, BackPressureError | DeploymentUnavailableError)
