"""The HTTP service: a small ingress that checks requests, in front of two deployments of the same model class.

`pipelines.console.service` composes the service that runs: it adds the web page and the console's part of the API.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fss_models.bundle import BundleInfo
from pipelines.inference.support_files import support_set_from_request
from pipelines.serving.client import results_json
from pipelines.serving.docs_page import docs_html
from pipelines.serving.guards import bounded, counted, html_answer, http_error, with_token
from pipelines.serving.metrics import ServiceMetrics, export_metrics
from pipelines.serving.openapi import openapi
from pipelines.serving.requests import Handler, Route, SegmentRequest, parse_segment, read_json
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
        for path in (*self.pages(), "/metrics", *(path for _, path, _ in self.routes())):
            self.metrics.expect(path)
        return build_api(self)

    def take(self, info: BundleInfo) -> None:
        """A new champion has been promoted: `/v1/health` and new jobs name it from now on.

        The replicas of the model look for it themselves, and every answer names the bundle that made it.
        """
        self.spec = with_bundle(self.spec, info)
        self.about = describe(info, self.spec)

    def routes(self) -> list[Route]:
        """(verb, path, handler) of the requests that may need a token."""
        return [("POST", "/v1/supports", self.supports), ("POST", "/v1/segment", self.segment)]

    def pages(self) -> dict[str, Handler]:
        """Path -> handler of the pages that need no token."""
        return {"/docs": self._docs, "/openapi.json": self._openapi, "/v1/health": self.health}

    def document(self) -> dict[str, Any]:
        """The OpenAPI document of the routes."""
        return openapi()

    async def _docs(self, _: Request) -> Response:
        return html_answer(await asyncio.to_thread(docs_html, self.document()), scripts=False)

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.document))

    async def health(self, _: Request) -> Response:
        """`GET /v1/health`: the model that is running, for how long, and how many requests wait."""
        return JSONResponse({**self.about, "uptime_s": round(time.time() - self.started, 1), "waiting": self.waiting})

    async def supports(self, request: Request) -> Response:
        """`POST /v1/supports`: check and store a support set, unless the method refuses it."""
        body = await read_json(request, self.spec.max_request_bytes)
        sent = await asyncio.to_thread(support_set_from_request, body)
        support_id = await self.people.add_support.remote(sent)
        await asyncio.to_thread(sent.save, self.spec.model.supports_url)
        return JSONResponse({"support_id": support_id, "class_name": sent.class_name, "supports": len(sent.supports)})

    async def segment(self, request: Request) -> Response:
        """`POST /v1/segment`: a result or an error for every photo, in order."""
        body = await read_json(request, self.spec.max_request_bytes)
        sent: SegmentRequest = await asyncio.to_thread(parse_segment, body)
        if sent.bulk:
            bundle_id = self.spec.bundle.bundle_id
            bundle_id, results = await self.jobs.chunk.remote(sent.images, sent.masks, bundle_id, strict=False)
        else:
            bundle_id, results = await self.people.segment.remote(sent.images, sent.masks)
        ids = sent.masks.support_ids
        about: dict[str, Any] = {"support_ids": list(ids)} if sent.many else {"support_id": ids[0]}
        about["bundle_id"] = bundle_id
        return JSONResponse({**about, "results": [results_json(r, many=sent.many) for r in results]})


def describe(info: BundleInfo, spec: ServiceSpec) -> dict[str, Any]:
    """The fields of `/v1/health` that do not change while the service runs."""
    return {
        "status": "ok", "bundle_id": info.bundle_id, "method": info.method, "preset": info.preset,
        "untrained": info.untrained, "dataset": info.dataset, "classes": info.classes, "metrics": info.metrics,
        "calibrator": info.calibrator,
        "device": spec.model.device, "batch": spec.model.batch, "max_request_bytes": spec.max_request_bytes,
        "token": bool(spec.token), "roots": spec.roots,
    }


def build_api(service: Service) -> FastAPI:
    """The FastAPI application with the service's pages and routes; `openapi` describes each route."""
    api = FastAPI(title="fss", docs_url=None, redoc_url=None, openapi_url=None)  # those need the internet
    for path, handler in service.pages().items():
        api.add_api_route(path, counted(service, path, handler), methods=["GET"], response_model=None)
    api.add_api_route("/metrics", counted(service, "/metrics", with_token(service, _metrics)), methods=["GET"],
                      response_model=None)
    for verb, path, handler in service.routes():
        guarded = counted(service, path, with_token(service, bounded(service, handler)))
        api.add_api_route(path, guarded, methods=[verb], response_model=None)
    api.add_exception_handler(HTTPException, http_error)
    return api


async def _metrics(_: Request) -> Response:
    return Response(await export_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")
