"""The HTTP service: a small ingress that checks requests, in front of two deployments of the same model class."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from fss_models.errors import FssError
from pipelines.bundles.bundle import BundleInfo, about_bundle
from pipelines.console.api import ConsoleApi
from pipelines.console.jobs import Jobs
from pipelines.console.page import page_html
from pipelines.inference.support_files import support_set_from_request
from pipelines.inference.supports import UnknownSupportError
from pipelines.serving.client import results_json
from pipelines.serving.docs_page import docs_html
from pipelines.serving.metrics import ServiceMetrics, exported
from pipelines.serving.model import AGAIN, bulk, interactive
from pipelines.serving.openapi import openapi
from pipelines.serving.requests import (
    RefusedError,
    SegmentRequest,
    check_host_header,
    check_token,
    parse_segment,
    read_json,
)
from pipelines.serving.server import LOOPBACK
from pipelines.serving.spec import ServiceSpec

MAX_WAITING = 32  # requests in the ingress at a time: each may hold max_request_bytes
Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """The ingress. It holds no model and no pixels for long."""

    def __init__(self, spec: ServiceSpec, people: Any, jobs: Any) -> None:
        self.spec, self.people, self.jobs = spec, people, jobs
        self.started, self.waiting, self.metrics = time.time(), 0, ServiceMetrics()
        self.about = describe(spec.bundle, spec)
        self.console = ConsoleApi(Jobs(spec, about_bundle(spec.bundle), jobs), spec.max_request_bytes)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this on the replica."""
        return build_api(self)

    async def health(self, _: Request) -> Response:
        """What is running."""
        return JSONResponse({**self.about, "uptime_s": round(time.time() - self.started, 1), "waiting": self.waiting})

    async def supports(self, request: Request) -> Response:
        """Check, memorise, store. A support set the method refuses is not stored."""
        body = await read_json(request, self.spec.max_request_bytes)
        given = await asyncio.to_thread(support_set_from_request, body)
        support_id = await self.people.add_support.remote(given)
        await asyncio.to_thread(given.save, self.spec.model.supports_url)
        return JSONResponse({"support_id": support_id, "class_name": given.class_name, "supports": len(given.supports)})

    async def segment(self, request: Request) -> Response:
        """A result or an error for every photo, in order."""
        wanted: SegmentRequest = await asyncio.to_thread(
            parse_segment, await read_json(request, self.spec.max_request_bytes))
        call = self.jobs.chunk if wanted.bulk else self.people.segment
        results = await call.remote(wanted.images, wanted.wanted)
        ids = wanted.wanted.support_ids
        about: dict[str, Any] = {"support_ids": list(ids)} if wanted.many else {"support_id": ids[0]}
        about["bundle_id"] = self.spec.bundle.bundle_id
        return JSONResponse({**about, "results": [results_json(r, many=wanted.many) for r in results]})


def describe(info: BundleInfo, spec: ServiceSpec) -> dict[str, Any]:
    """The part of `/v1/health` that does not change."""
    return {
        "status": "ok", "bundle_id": info.bundle_id, "method": info.method, "preset": info.preset,
        "untrained": info.untrained, "dataset": info.dataset, "classes": info.classes, "metrics": info.metrics,
        "calibrator": info.calibrator,
        "device": spec.model.device, "batch": spec.model.batch, "max_request_bytes": spec.max_request_bytes,
        "token": bool(spec.token), "roots": spec.roots,
    }


def build_api(service: Service) -> FastAPI:
    """The routes; each is described in `openapi`."""
    api = FastAPI(title="fss", docs_url=None, redoc_url=None, openapi_url=None)  # their pages need the internet
    open_to_all: dict[str, Handler] = {"/": _page, "/docs": _docs, "/openapi.json": _openapi,
                                       "/v1/health": service.health}
    for path, handler in open_to_all.items():
        api.add_api_route(path, _counted(service, path, handler), methods=["GET"], response_model=None)
    api.add_api_route("/metrics", _counted(service, "/metrics", _with_token(service, _metrics)), methods=["GET"],
                      response_model=None)
    routes = [("POST", "/v1/supports", service.supports), ("POST", "/v1/segment", service.segment),
              *service.console.routes()]
    for verb, path, handler in routes:
        guarded = _counted(service, path, _with_token(service, _bounded(service, handler)))
        api.add_api_route(path, guarded, methods=[verb], response_model=None)
    api.add_exception_handler(HTTPException, _http_error)
    return api


async def _page(_: Request) -> Response:
    return _html(await asyncio.to_thread(page_html), scripts=True)


async def _docs(_: Request) -> Response:
    return _html(await asyncio.to_thread(docs_html), scripts=False)


async def _openapi(_: Request) -> Response:
    return JSONResponse(await asyncio.to_thread(openapi))


async def _metrics(_: Request) -> Response:
    return Response(await exported(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _html(page: str, *, scripts: bool) -> Response:
    """A page with its style, and perhaps scripts, inside: it loads nothing from anywhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    policy += "script-src 'unsafe-inline'; connect-src 'self'; " if scripts else ""
    return HTMLResponse(page, headers={
        "Content-Security-Policy": policy + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"})


def _counted(service: Service, path: str, handler: Handler) -> Handler:
    """One line of JSON for everything that goes wrong, and a place in the metrics."""

    async def counted(request: Request) -> Response:
        began = time.monotonic()
        try:
            answer = await handler(request)
        except Exception as error:
            answer = _answer(getattr(error, "cause", None) or error)
        service.metrics.answered(path, answer.status_code, time.monotonic() - began)
        return answer

    return counted


def _with_token(service: Service, handler: Handler) -> Handler:
    async def checked(request: Request) -> Response:
        check_token(request, service.spec.token)
        if _for_this_machine(service.spec):
            check_host_header(request)
        return await handler(request)

    return checked


def _for_this_machine(spec: ServiceSpec) -> bool:
    """Whether only its address keeps others out of the person's own files or of the model: no page may lead here."""
    return spec.roots is None or (not spec.token and spec.recipe.serve.host in LOOPBACK)


def _bounded(service: Service, handler: Handler) -> Handler:
    """Back-pressure: more requests than `MAX_WAITING` are refused."""

    async def bounded(request: Request) -> Response:
        if service.waiting >= MAX_WAITING:
            raise RefusedError(503, "the queue is full", mend="try again in a moment")
        service.waiting += 1
        service.metrics.waiting(service.waiting)
        try:
            return await handler(request)
        finally:
            service.waiting -= 1
            service.metrics.waiting(service.waiting)

    return bounded


def _answer(error: BaseException) -> Response:
    """The status and the line of an error; anything unforeseen is logged by Serve and shown without detail."""
    if isinstance(error, RefusedError):
        return _line(error.status, str(error))
    if isinstance(error, UnknownSupportError):
        return _line(404, str(error))
    if isinstance(error, FssError):
        return _line(422, str(error))
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return _line(422, f"{'.'.join(str(p) for p in first['loc'])[:100]}: {first['msg']}")
    if isinstance(error, RecursionError):
        return _line(422, "the request is nested too deeply")
    if isinstance(error, BackPressureError | DeploymentUnavailableError | RayActorError):
        return _line(503, "the queue is full or the model restarts (try again in a moment)")
    serve_log().error("request failed", exc_info=error)
    return _line(500, f"internal error ({type(error).__name__}); the service's log has more")


def serve_log() -> Any:
    """The replica's log."""
    import logging

    return logging.getLogger("ray.serve")


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    return _line(status, {404: f"there is no {request.url.path[:80]!r}"}.get(status, str(getattr(error, "detail", ""))))


def _line(status: int, text: str) -> Response:
    wait = {"Retry-After": "1"} if status in (429, 503) else {}
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": text[:1000]}, status_code=status, headers=wait)


def application(spec: ServiceSpec) -> Application:
    """The whole service, to be run by Ray Serve."""
    ingress = serve.deployment(
        name="service", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=4 * MAX_WAITING,
        # Where more come than the ingress can refuse, the proxy refuses them, in a line of Serve's own.
        max_queued_requests=2 * MAX_WAITING, backpressure_config=BackpressureConfig(retry_after_s=1),
        request_router_config=AGAIN)
    made: Any = ingress(serve.ingress()(Service))
    app: Application = made.bind(spec, interactive(spec.model), bulk(spec.model, on_demand=True))
    return app
