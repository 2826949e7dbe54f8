"""The protocol of Label Studio's machine-learning backends over HTTP: /health, /setup, /predict, /webhook."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.integrations.label_studio.backend import Backend
from pipelines.serving.requests import RefusedError, check_host_header, read_json

MAX_BYTES = 256_000_000  # of a request's body: tasks come with their annotations
LEARN_AFTER = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED",
                         "TASKS_DELETED", "PROJECT_UPDATED", "START_TRAINING"})


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")


class SetupMessage(_Message):
    """A project was connected, or is about to ask for predictions: `project` is its number, a dot, and a time."""

    project: str


class DrawnContext(_Message):
    """What a person has just drawn in the editor."""

    result: list[dict[str, Any]] = Field([])


class PredictParams(_Message):
    """Parameters of a request for predictions."""

    context: DrawnContext | None = None


class PredictMessage(_Message):
    """Predictions are wanted for tasks."""

    project: str
    tasks: list[dict[str, Any]]
    params: PredictParams = Field(default_factory=PredictParams)


class ProjectRow(_Message):
    """A project in an event."""

    id: int


class EventMessage(_Message):
    """Something happened in a project."""

    action: str
    project: ProjectRow | None = None


def make_app(backend: Backend, token: str) -> FastAPI:
    """The application. With a `token`, requests need it as bearer token or as password of HTTP's basic scheme.

    Without one, the backend answers only as a name of this machine.
    """
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def answered(request: Request, work: Callable[[Any], dict[str, Any]], status: int = 200) -> Response:
        try:
            _check_client(request, token)
            body = await read_json(request, MAX_BYTES) if request.method == "POST" else None
            return JSONResponse(await asyncio.to_thread(work, body), status_code=status)
        except Exception as error:
            return _refusal(request.url.path, error)

    @api.get("/")
    @api.get("/health")
    async def health() -> dict[str, str]:
        """Whether the backend runs."""
        return {"status": "UP", "model_class": "fss"}

    @api.post("/setup")
    async def setup(request: Request) -> Response:
        """Check a project and name the model version that it has now."""
        return await answered(request, lambda body: {
            "model_version": backend.set_up(project_number(SetupMessage.model_validate(body).project))})

    @api.post("/predict")
    async def predict(request: Request) -> Response:
        """Predictions for tasks, or for what was drawn on one."""
        return await answered(request, lambda body: _predict(backend, PredictMessage.model_validate(body)))

    @api.post("/webhook")
    async def webhook(request: Request) -> Response:
        """Learn a project again after its annotations changed. The answer comes before that is done."""
        return await answered(request, lambda body: _event(backend, EventMessage.model_validate(body)), 201)

    return api


def project_number(uid: str) -> int:
    """The number of a project in `12.1796042531`. Raises `FssError` for another text."""
    number = uid.partition(".")[0]
    if not (number.isascii() and number.isdigit()):
        raise FssError(f"{uid[:40]!r} names no project")
    return int(number)


def _predict(backend: Backend, message: PredictMessage) -> dict[str, Any]:
    drawn = message.params.context.result if message.params.context else []
    found, version = backend.predict(project_number(message.project), message.tasks, drawn)
    return {"results": found, "model_version": version}


def _event(backend: Backend, message: EventMessage) -> dict[str, Any]:
    learns = message.action in LEARN_AFTER and message.project is not None
    if learns and message.project is not None:
        backend.learn_soon(message.project.id)
    return {"status": "learning" if learns else "ignored"}


def _check_client(request: Request, token: str) -> None:
    """Raises `RefusedError` 401 for a wrong token, 403 for a foreign host name where there is none."""
    if not token:
        return check_host_header(request)
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            given = ""
    if not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise RefusedError(401, "the token is missing or wrong", hint="give FSS_TOKEN as the backend's password")


def _refusal(path: str, error: Exception) -> Response:
    """The answer to a request that failed, and a line about it on standard error: Label Studio hides the answer's."""
    status, line = 500, f"internal error ({type(error).__name__}: {error})"
    if isinstance(error, RefusedError):
        status, line = error.status, str(error)
    elif isinstance(error, FssError):
        status, line = 422, str(error)
    elif isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        status, line = 422, f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}"
    elif isinstance(error, httpx.HTTPError):
        status, line = 503, f"the service does not answer: {error} (is `fss serve` running?)"
    say(f"{path}: {line}")
    return JSONResponse({"error": line}, status_code=status)
