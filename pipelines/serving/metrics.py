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
    return merge_metrics(answers)


async def _one(client: httpx.AsyncClient, place: str) -> str:
    try:
        answer = await client.get(f"http://{place}/metrics", headers={"accept": "text/plain"})
        return answer.text if answer.is_success else f"# {place} answers {answer.status_code}\n"
    except httpx.HTTPError as error:
        return f"# {place} does not answer: {type(error).__name__}\n"


def merge_metrics(texts: Iterable[str]) -> str:
    """The service's lines of several exports, grouped by family with one HELP and TYPE each, as the format demands."""
    families: dict[str, list[str]] = {}
    notes: list[str] = []
    for text in texts:
        name = ""
        for line in text.splitlines():
            words = line.split(" ", 3)
            if line.startswith(("# HELP ", "# TYPE ")):
                name = words[2]
                rows = families.setdefault(name, [])
                if line not in rows:
                    rows.append(line)
            elif line.startswith("#"):
                notes.append(line)
            elif line:
                families.setdefault(name, []).append(line)
    kept = [line for name, rows in families.items() if name.startswith(FAMILIES) for line in rows]
    return "".join(f"{line}\n" for line in (*notes, *kept))
