"""From a table of routes to the FastAPI application, whose models are both the checks and `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipelines.serving.answers import Error
from pipelines.serving.guards import Guard, Guarded, bounded, guarded_route, http_error, with_json, with_token

ERRORS = {
    400: "the body is not JSON",
    401: "the token is missing or wrong",
    403: "the service may not read this place, or the Host header is not allowed",
    404: "the support set, job or path does not exist",
    413: "the body is larger than max_request_bytes of /v1/health",
    415: "the body is not application/json",
    422: "the request is well-formed but wrong; the line says what is wrong and how to correct it",
    429: "too many jobs are running",
    503: "the queue is full or the model is restarting: try again after Retry-After seconds",
}
OPEN: tuple[Guard, ...] = ()  # pages and health: no token
COUNTS: tuple[Guard, ...] = (with_token,)
READS: tuple[Guard, ...] = (bounded, with_token)
WRITES: tuple[Guard, ...] = (with_json, bounded, with_token)
STATUSES: dict[Guard, tuple[int, ...]] = {with_token: (401, 403), bounded: (503,), with_json: (400, 413, 415, 422)}


class Route(NamedTuple):
    """A request that the service answers. Its docstring and its types are its description in `/openapi.json`.

    guards  what it passes before FastAPI checks it, the last one first
    answer  the model of its answer; None: the handler returns a response. `kind`: the content type of that
    errors  statuses besides those of the guards
    """

    verb: str
    path: str
    handler: Any
    guards: tuple[Guard, ...]
    answer: Any = None
    errors: tuple[int, ...] = ()
    kind: str = ""


def build_api(service: Guarded, routes: Sequence[Route]) -> FastAPI:
    """The FastAPI application with the routes; pages (without an answer's model or kind) are not in its document."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # those pages need the internet
    for verb, path, handler, guards, answer, errors, kind in routes:
        statuses = sorted({*errors, *(status for guard in guards for status in STATUSES[guard])})
        told: dict[int | str, dict[str, Any]] = {s: {"model": Error, "description": ERRORS[s]} for s in statuses}
        more: dict[str, Any] = {}
        if kind:
            told[200], more = {"content": {kind: {"schema": {}}}}, {"response_class": Response}
        api.router.add_api_route(
            path, handler, methods=[verb], response_model=answer, response_model_exclude_unset=True, responses=told,
            include_in_schema=bool(answer or kind), route_class_override=guarded_route(service, *guards),
            **more)
    api.add_exception_handler(HTTPException, http_error)
    api.openapi = lambda: _document(api)  # type: ignore[method-assign]
    return api


def _document(api: FastAPI) -> dict[str, Any]:
    if not api.openapi_schema:
        found = get_openapi(
            title="fss: few-shot segmentation", version=version("fss"), routes=api.routes, description=(
                "Mark an object in one or a few photos, and get its masks in other photos. Photos are sent as base64. "
                'An error is one line: {"error": "..."}.'))
        found["security"] = [{}, {"token": []}]
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": (
            "The service's FSS_TOKEN. It is needed if token in /v1/health is true.")}}
        api.openapi_schema = found
    return api.openapi_schema
