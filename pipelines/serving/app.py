"""The HTTP service: a small ingress that checks requests, in front of two deployments of the same model class."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from fss_models.errors import FssError
from pipelines.bundle import BundleInfo, read_bundle_info
from pipelines.serving.client import results_json
from pipelines.serving.model import bulk, interactive
from pipelines.serving.requests import RefusedError, SegmentRequest, check_token, parse_segment, read_json
from pipelines.serving.spec import ModelSpec
from pipelines.serving.support_files import support_set_from_request
from pipelines.serving.supports import UnknownSupportError

MAX_WAITING = 32  # requests in the ingress at a time: each may hold max_request_bytes


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """The model and what clients may send it. `token` is a hash; empty lets everybody in (loopback only)."""

    model: ModelSpec
    max_request_bytes: int
    token: str = ""


class Service:
    """The ingress. It holds no model and no pixels for long."""

    def __init__(self, spec: ServiceSpec, people: Any, jobs: Any) -> None:
        self.spec, self.people, self.jobs = spec, people, jobs
        self.started, self.waiting = time.time(), 0
        self.about = describe(read_bundle_info(spec.model.bundle_url), spec)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this on the replica."""
        return build_api(self)

    async def health(self) -> Response:
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
        about = {"support_ids": list(ids)} if wanted.many else {"support_id": ids[0]}
        return JSONResponse({**about, "results": [results_json(r, many=wanted.many) for r in results]})


def describe(info: BundleInfo, spec: ServiceSpec) -> dict[str, Any]:
    """The part of `/v1/health` that does not change."""
    return {
        "status": "ok", "bundle_id": info.bundle_id, "method": info.method, "preset": info.preset,
        "untrained": info.untrained, "dataset": info.dataset, "classes": info.classes, "metrics": info.metrics,
        "calibrator": info.calibrator,
        "device": spec.model.device, "batch": spec.model.batch, "max_request_bytes": spec.max_request_bytes,
        "token": bool(spec.token),
    }


def build_api(service: Service) -> FastAPI:
    """The routes."""
    api = FastAPI(title="fss", docs_url=None, redoc_url=None, openapi_url=None)  # their pages need the internet
    api.add_api_route("/", _page, methods=["GET"], response_model=None)
    api.add_api_route("/v1/health", service.health, methods=["GET"], response_model=None)
    for path, handler in (("/v1/supports", service.supports), ("/v1/segment", service.segment)):
        api.add_api_route(path, _guarded(service, handler), methods=["POST"], response_model=None)
    api.add_exception_handler(HTTPException, _http_error)
    return api


async def _page() -> Response:
    page = await asyncio.to_thread(page_html)
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' blob: data:; "
    return HTMLResponse(page, headers={
        "Content-Security-Policy": policy + "connect-src 'self'; base-uri 'none'; form-action 'none'",
        "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"})


def page_html() -> str:
    """The web page with its style and script inside: it loads nothing from anywhere."""
    folder = files("pipelines.serving")
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    for name in ("page.css", "page.js"):
        page = page.replace(f"/* {name} */", folder.joinpath(name).read_text(encoding="utf-8"))
    return page


Handler = Callable[[Request], Awaitable[Response]]


def _guarded(service: Service, handler: Handler) -> Handler:
    """Token, back-pressure, and one line of JSON for everything that goes wrong."""

    async def guarded(request: Request) -> Response:
        try:
            check_token(request, service.spec.token)
            if service.waiting >= MAX_WAITING:
                raise RefusedError(503, "the queue is full", mend="try again in a moment")
            service.waiting += 1
            try:
                return await handler(request)
            finally:
                service.waiting -= 1
        except Exception as error:
            return _answer(getattr(error, "cause", None) or error)

    return guarded


def _answer(error: BaseException) -> Response:
    """The status and the line of an error; anything unforeseen is logged by Serve and shown without detail."""
    if isinstance(error, RefusedError):
        return _line(error.status, str(error))
    if isinstance(error, UnknownSupportError):
        return _line(404, str(error))
    if isinstance(error, FssError):
        return _line(422, str(error))
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
    wait = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": text}, status_code=status, headers=wait)


def application(spec: ServiceSpec) -> Application:
    """The whole service, to be run by Ray Serve."""
    ingress = serve.deployment(name="service", ray_actor_options={"num_cpus": 0.1},
                               max_ongoing_requests=4 * MAX_WAITING)
    made: Any = ingress(serve.ingress()(Service))
    app: Application = made.bind(spec, interactive(spec.model), bulk(spec.model, on_demand=True))
    return app
