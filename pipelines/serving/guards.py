"""The checks before FastAPI takes a request: token, host name, back-pressure, size; metrics; errors in one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from fss_models.errors import FssError
from fss_models.forms import mistake
from pipelines.base.outcome import unwrapped
from pipelines.inference.supports import UnknownSupportError
from pipelines.serving.metrics import ServiceMetrics
from pipelines.serving.requests import Handler, ReadRequest, RefusedError, check_host_header, check_token, read_json
from pipelines.serving.server import LOOPBACK
from pipelines.serving.spec import ServiceSpec

MAX_WAITING = 32  # requests in the ingress at a time; each may have max_request_bytes in memory


class Guarded(Protocol):
    """The attributes of a service that the guards use."""

    spec: ServiceSpec
    waiting: int
    metrics: ServiceMetrics


def html_answer(page: str, *, scripts: bool) -> Response:
    """A page that contains its style and, with `scripts`, its scripts. The browser loads nothing else for it."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    policy += "script-src 'unsafe-inline'; connect-src 'self'; " if scripts else ""
    return HTMLResponse(page, headers={
        "Content-Security-Policy": policy + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"})


Guard = Callable[[Guarded, Handler], Handler]


def guarded_route(service: Guarded, *guards: Guard) -> type[APIRoute]:
    """FastAPI routes whose requests pass `guards`, the last one first, before FastAPI checks them."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Any:
            handler: Handler = super().get_route_handler()
            for guard in guards:
                handler = guard(service, handler)
            return counted(service, self.path, handler)

    return GuardedRoute


def counted(service: Guarded, path: str, handler: Handler) -> Handler:
    """A handler that counts each answer in the metrics and turns every error into one line of JSON."""
    async def counted_call(request: Request) -> Response:
        began = time.monotonic()
        try:
            answer = await handler(request)
        except Exception as error:
            answer = _answer(unwrapped(error))
        service.metrics.count_answer(path, answer.status_code, time.monotonic() - began)
        return answer

    return counted_call


def with_token(service: Guarded, handler: Handler) -> Handler:
    """A handler that checks the token, and the host name where the service is for this machine only."""
    async def checked(request: Request) -> Response:
        check_token(request, service.spec.token)
        if _for_this_machine(service.spec):
            check_host_header(request)
        return await handler(request)

    return checked


def _for_this_machine(spec: ServiceSpec) -> bool:
    """Whether only its address protects the service, so that requests by another host name must be refused.

    A web page from elsewhere could otherwise reach the user's files or the model through the browser.
    """
    return spec.roots is None or (not spec.token and spec.recipe.serve.host in LOOPBACK)


def bounded(service: Guarded, handler: Handler) -> Handler:
    """A handler that refuses requests with 503 while `MAX_WAITING` are in the service (back-pressure)."""

    async def bounded_call(request: Request) -> Response:
        if service.waiting >= MAX_WAITING:
            raise RefusedError(503, "the queue is full", hint="try again in a moment")
        service.waiting += 1
        service.metrics.set_waiting(service.waiting)
        try:
            return await handler(request)
        finally:
            service.waiting -= 1
            service.metrics.set_waiting(service.waiting)

    return bounded_call


def with_json(service: Guarded, handler: Handler) -> Handler:
    """A handler of requests with a JSON body, which is read within the service's limits."""

    async def read(request: Request) -> Response:
        return await handler(ReadRequest(request, await read_json(request, service.spec.max_request_bytes)))

    return read


def _answer(error: BaseException) -> Response:
    """The status and the line for an error. An unforeseen error goes to Serve's log; the client sees no details."""
    if isinstance(error, RefusedError):
        return _line(error.status, str(error))
    if isinstance(error, UnknownSupportError):
        return _line(404, str(error))
    if isinstance(error, FssError):
        return _line(422, str(error))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        part, *loc = first["loc"]  # body, query or path
        place, what = mistake({**first, "loc": loc}, error.body if part == "body" else {loc[0]: None})
        return _line(422, f"{place or 'request'}: {what}")
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return _line(422, f"{'.'.join(str(p) for p in first['loc'])[:100]}: {first['msg']}")
    if isinstance(error, RecursionError):
        return _line(422, "the request is nested too deeply")
    if isinstance(error, BackPressureError | DeploymentUnavailableError | RayActorError):
        return _line(503, "the queue is full or the model is restarting (try again in a moment)")
    serve_log().error("request failed", exc_info=error)
    return _line(500, f"internal error ({type(error).__name__}); see the service's log")


def serve_log() -> Any:
    """The logger of the replica."""
    import logging

    return logging.getLogger("ray.serve")


async def http_error(request: Request, error: Exception) -> Response:
    """The answer to a request that FastAPI itself refuses, such as an unknown path."""
    status = getattr(error, "status_code", 500)
    return _line(status, {404: f"there is no {request.url.path[:80]!r}"}.get(status, str(getattr(error, "detail", ""))))


def _line(status: int, text: str) -> Response:
    wait = {"Retry-After": "1"} if status in (429, 503) else {}
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": text[:1000]}, status_code=status, headers=wait)
