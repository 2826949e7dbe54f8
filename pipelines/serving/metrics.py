"""The service's metrics for Prometheus, through Ray: each replica counts for itself, Prometheus adds up.

One ingress replica knows a part of the requests only, and each scrape may reach another replica. Ray's exporters keep
the replicas apart: `/metrics` collects the service's metrics from the exporters of all nodes, which Ray updates every
few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pipelines.base.run_metrics import start_at_zero
from pipelines.inference.masks import PhotoFailure

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
FAMILIES = ("ray_fss_", "ray_serve_")
STATUSES = ("200", "500", "503")  # of answers; their counters begin at 0
EXPORTER_S = 5  # seconds that an exporter may take


class ServiceMetrics:
    """An ingress replica's `ray_fss_requests_total`, `ray_fss_request_seconds` and `ray_fss_requests_waiting`."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._requests = Counter("fss_requests", "Requests answered.", tag_keys=("path", "status"))
        self._seconds = Histogram("fss_request_seconds", "Time to answer a request, in seconds.", boundaries=SECONDS,
                                  tag_keys=("path",))
        self._waiting = Gauge("fss_requests_waiting", "Requests that are in the service now.")

    def expect(self, path: str) -> None:
        """Export the counters of a path before the first request."""
        for status in STATUSES:
            start_at_zero(self._requests, path=path, status=status)

    def count_answer(self, path: str, status: int, seconds: float) -> None:
        """Count an answer. `path` is a route, not the requested URL: every value makes a new time series."""
        self._requests.inc(tags={"path": path, "status": str(status)})
        self._seconds.observe(seconds, tags={"path": path})

    def set_waiting(self, count: int) -> None:
        """Set the number of requests that are in the service."""
        self._waiting.set(float(count))


class PhotoMetrics:
    """The metric of one model replica: `ray_fss_photos_total`, whose rate is the photos per second."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._photos = Counter("fss_photos", "Photos processed; failed: could not be read.",
                               tag_keys=("kind", "result"))
        for kind in ("job", "person"):
            for result in ("label", "failed"):
                start_at_zero(self._photos, kind=kind, result=result)

    def count(self, results: Sequence[Any], *, bulk: bool) -> None:
        """Count the photos of one request: `bulk` for a job's, else a person's."""
        failed = sum(isinstance(r, PhotoFailure) for r in results)
        for result, count in (("label", len(results) - failed), ("failed", failed)):
            if count:
                self._photos.inc(count, tags={"kind": "job" if bulk else "person", "result": result})


async def export_metrics() -> str:
    """The service's metrics from all nodes in Prometheus' text format, with a comment for a node without an answer."""
    import ray

    nodes = await asyncio.to_thread(ray.nodes)
    places = [f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in nodes if n["Alive"]]
    async with httpx.AsyncClient(timeout=EXPORTER_S) as client:
        answers = await asyncio.gather(*(_one(client, place) for place in places))
    notes = "".join(answer for answer in answers if answer.startswith("# node "))
    return notes + await asyncio.to_thread(merge_metrics, answers)


async def _one(client: httpx.AsyncClient, place: str) -> str:
    try:
        answer = await client.get(f"http://{place}/metrics", headers={"accept": "text/plain"})
        return answer.text if answer.is_success else f"# node {place} answers {answer.status_code}\n"
    except httpx.HTTPError as error:
        return f"# node {place} does not answer: {type(error).__name__}\n"


class _Merged(Collector):
    """The metrics of several exports, for prometheus_client's writer."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge_metrics(texts: Iterable[str]) -> str:
    """The service's metrics of several exports, by family with one HELP and TYPE each, as the format demands."""
    families: dict[str, Metric] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if family.name.startswith(FAMILIES):
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type)
                                    ).samples.extend(family.samples)
    return generate_latest(_Merged(families.values())).decode()
