"""What the service tells Prometheus, through Ray: each replica counts its own, Prometheus adds them up.

A page of one ingress replica would show a part of the requests, another one at every scrape; Ray's exporters know the
replicas apart. `/metrics` gathers what the exporters of all nodes say of the service (Ray renews it every few seconds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import httpx

from pipelines.inference.masks import PhotoFailure

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
FAMILIES = ("ray_fss_", "ray_serve_")
EXPORTER_S = 5  # how long an exporter may take


class ServiceMetrics:
    """Of one ingress replica: `ray_fss_requests_total`, `ray_fss_request_seconds`, `ray_fss_requests_waiting`."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._requests = Counter("fss_requests", "Requests answered.", tag_keys=("path", "status"))
        self._seconds = Histogram("fss_request_seconds", "How long answers took.", boundaries=SECONDS,
                                  tag_keys=("path",))
        self._waiting = Gauge("fss_requests_waiting", "Requests in the service now.")

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request is over. `path` is a route, so that what people type makes no new series."""
        self._requests.inc(tags={"path": path, "status": str(status)})
        self._seconds.observe(seconds, tags={"path": path})

    def waiting(self, count: int) -> None:
        """How many requests are in the service."""
        self._waiting.set(float(count))


class PhotoMetrics:
    """Of one replica of the model: `ray_fss_photos_total`, whose rate is the photos a second."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._photos = Counter("fss_photos", "Photos looked at; failed: they could not be read.",
                               tag_keys=("kind", "result"))

    def count(self, results: Sequence[Any], *, bulk: bool) -> None:
        """What a request got."""
        failed = sum(isinstance(r, PhotoFailure) for r in results)
        for result, count in (("label", len(results) - failed), ("failed", failed)):
            if count:
                self._photos.inc(count, tags={"kind": "job" if bulk else "person", "result": result})


async def export_metrics() -> str:
    """The service's metrics of all nodes, in Prometheus' text format; a node that does not answer is a comment."""
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
    """The lines about the service; those of one family together, its HELP and TYPE once, as the format wants it."""
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
