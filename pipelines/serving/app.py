"""The HTTP service: a small ingress that checks requests, in front of two deployments of the same model class.

`pipelines.console.service` composes the service that runs: it adds the web page and the console's part of the API.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fss_models.bundle import BundleInfo
from fss_models.registry import make_config, method_class
from pipelines.inference.support_files import SupportRequest, support_set_from_request
from pipelines.serving.answers import Health, SegmentAnswer, SupportAnswer
from pipelines.serving.client import results_json
from pipelines.serving.docs_page import docs_html
from pipelines.serving.guards import html_answer
from pipelines.serving.metrics import ServiceMetrics, export_metrics
from pipelines.serving.requests import SegmentRequest
from pipelines.serving.routes import COUNTS, OPEN, WRITES, Route, build_api
from pipelines.serving.spec import ServiceSpec, with_bundle
from pipelines.serving.watch import BundleWatch


class Service:
    """The ingress: it checks requests and passes them to the deployments. It has no model."""

    def __init__(self, spec: ServiceSpec, people: Any, jobs: Any) -> None:
        self.spec, self.people, self.jobs = spec, people, jobs
        self.started, self.waiting, self.metrics = time.time(), 0, ServiceMetrics()
        self.about = describe(spec.bundle, spec)
        if spec.model.follow:
            self._watch = BundleWatch(spec.model.follow, spec.bundle, self.take, spec.model.follow_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application of this replica; Ray Serve calls this there."""
        for route in self.routes():
            self.metrics.expect(route.path)
        return build_api(self, self.routes())

    def take(self, info: BundleInfo) -> None:
        """A new champion has been promoted: `/v1/health` and new jobs name it from now on.

        The replicas of the model look for it themselves, and every answer names the bundle that made it.
        """
        self.spec = with_bundle(self.spec, info)
        self.about = describe(info, self.spec)

    def routes(self) -> list[Route]:
        """The requests that the service answers."""
        return [
            Route("GET", "/docs", self._docs, OPEN),
            Route("GET", "/openapi.json", self._openapi, OPEN),
            Route("GET", "/v1/health", self.health, OPEN, Health),
            Route("POST", "/v1/supports", self.supports, WRITES, SupportAnswer),
            Route("POST", "/v1/segment", self.segment, WRITES, SegmentAnswer, (404,)),
            Route("GET", "/metrics", _metrics, COUNTS, kind="text/plain"),
        ]

    async def _docs(self, request: Request) -> Response:
        return html_answer(await asyncio.to_thread(docs_html, request.app.openapi()), scripts=False)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(request.app.openapi())

    async def health(self) -> Any:
        """The model that is running, for how long, and how many requests wait."""
        return {**self.about, "uptime_s": round(time.time() - self.started, 1), "waiting": self.waiting}

    async def supports(self, body: SupportRequest) -> Any:
        """Store a support set, unless the method refuses it; its id outlives a restart."""
        sent = await asyncio.to_thread(support_set_from_request, body)
        support_id = await self.people.add_support.remote(sent)
        await asyncio.to_thread(sent.save, self.spec.model.supports_url)
        return {"support_id": support_id, "class_name": sent.class_name, "supports": len(sent.supports)}

    async def segment(self, body: SegmentRequest) -> Response:
        """Masks of photos: a result or an error for each, in order."""
        images, masks, many = await asyncio.to_thread(body.photos), body.masks, body.support_ids is not None
        if body.bulk:
            bundle_id = self.spec.bundle.bundle_id
            bundle_id, results = await self.jobs.chunk.remote(images, masks, bundle_id, strict=False)
        else:
            bundle_id, results = await self.people.segment.remote(images, masks)
        about: dict[str, Any] = {"support_ids": list(body.ids)} if many else {"support_id": body.ids[0]}
        # Thousands of labels are sent as they are: checking them against the model costs a tenth of the request.
        return JSONResponse({**about, "bundle_id": bundle_id, "precision": self.about["precision"],
                             "results": [results_json(r, many=many) for r in results]})


def describe(info: BundleInfo, spec: ServiceSpec) -> dict[str, Any]:
    """The fields of `/v1/health` that do not change while the service runs."""
    method, config = method_class(info.method), make_config(info.method, info.config)
    return {
        "status": "ok", "bundle_id": info.bundle_id, "method": info.method, "preset": info.preset,
        "reads_names": method.reads_names(config), "negatives": method.negatives(config),
        "untrained": info.untrained, "dataset": info.dataset, "classes": info.classes, "metrics": info.metrics,
        "calibrator": info.calibrator,
        "device": spec.model.device, "batch": spec.model.batch, **spec.model.serve.computing(),
        "max_request_bytes": spec.max_request_bytes,
        "token": bool(spec.token), "roots": spec.roots,
    }


async def _metrics() -> Response:
    """Metrics for Prometheus."""
    return PlainTextResponse(await export_metrics(), media_type="text/plain; version=0.0.4")
