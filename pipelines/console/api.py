"""The console's part of the HTTP API: `/v1/jobs` and the paths below it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.console.jobs import Jobs
from pipelines.console.records import JobRequest
from pipelines.labelling.decisions import Verdict
from pipelines.serving.requests import Route, read_json

MAX_DECISIONS = 256  # in one request
PIECE = 1 << 20  # bytes of a file sent at a time
T = TypeVar("T", bound=BaseModel)


class DecisionRequest(BaseModel):
    """A decision, as in a line of decisions.jsonl; the mask may also be a PNG as base64 or data URL."""

    model_config = ConfigDict(extra="forbid", strict=True)
    image_id: int
    image: str
    class_name: str
    decision: Verdict
    mask: dict[str, Any] | str | None = None


class DecisionsRequest(BaseModel):
    """The body of `POST /v1/jobs/{job_id}/decisions`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    decisions: list[DecisionRequest] = Field(min_length=1, max_length=MAX_DECISIONS)


class AgainRequest(BaseModel):
    """The body of `POST /v1/jobs/{job_id}/again`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    below: float | None = Field(None, ge=0, le=1, description=(
        "labels less sure than this are made again; default: the job's review_below"))


class EmptyRequest(BaseModel):
    """The body `{}` of a request that is described by its path alone."""

    model_config = ConfigDict(extra="forbid")


class ConsoleApi:
    """The handlers of the API. Requests that change jobs are handled one at a time."""

    def __init__(self, jobs: Jobs, max_bytes: int) -> None:
        self.jobs, self.max_bytes = jobs, max_bytes
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> list[Route]:
        """The (verb, path, handler) of each request."""
        job = "/v1/jobs/{job_id}"
        return [("GET", "/v1/jobs", self.list), ("POST", "/v1/jobs", self.start), ("GET", job, self.show),
                ("POST", f"{job}/stop", self.stop), ("POST", f"{job}/resume", self.resume),
                ("POST", f"{job}/again", self.redo), ("GET", f"{job}/labels", self.labels),
                ("POST", f"{job}/decisions", self.decide), ("GET", f"{job}/photos/{{image_id}}", self.photo),
                ("GET", f"{job}/labels.json", self.download)]

    async def list(self, _: Request) -> Response:
        """`GET /v1/jobs`: all jobs, the newest first."""
        return JSONResponse(await asyncio.to_thread(self.jobs.list))

    async def start(self, request: Request) -> Response:
        """`POST /v1/jobs`: start the job of the request, or continue it."""
        body = await self._read(request, JobRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.start, body))

    async def show(self, request: Request) -> Response:
        """`GET /v1/jobs/ID`: a job and its progress."""
        return JSONResponse(await asyncio.to_thread(self.jobs.show, _job(request)))

    async def stop(self, request: Request) -> Response:
        """`POST .../stop`: stop a job after the chunks that are being labelled."""
        await self._read(request, EmptyRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.stop, _job(request)))

    async def resume(self, request: Request) -> Response:
        """`POST .../resume`: label the remaining chunks of a job."""
        await self._read(request, EmptyRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.resume, _job(request)))

    async def redo(self, request: Request) -> Response:
        """`POST .../again`: start a job that labels doubtful labels again."""
        body = await self._read(request, AgainRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.redo, _job(request), body.below))

    async def labels(self, request: Request) -> Response:
        """`GET .../labels`: a page of labels, the most doubtful first."""
        page, show = _number(request.query_params.get("page", "0"), "page"), request.query_params.get("show", "all")
        if show not in ("all", "undecided"):
            raise FssError(f"show is {show[:40]!r}", hint="write all or undecided")
        found = await asyncio.to_thread(self.jobs.labels, _job(request), page, undecided=show == "undecided")
        return JSONResponse(found)

    async def decide(self, request: Request) -> Response:
        """`POST .../decisions`: save decisions."""
        body = await self._read(request, DecisionsRequest)
        decisions = [d.model_dump(exclude_none=True) for d in body.decisions]
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.decide, _job(request), decisions))

    async def photo(self, request: Request) -> Response:
        """`GET .../photos/ID`: a photo as a small JPEG."""
        image_id = _number(request.path_params["image_id"], "image_id")
        data = await asyncio.to_thread(self.jobs.photo, _job(request), image_id)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def download(self, request: Request) -> Response:
        """`GET .../labels.json`: the COCO labels with the decisions applied."""
        job_id = _job(request)
        async with self._one_at_a_time:
            place = await asyncio.to_thread(self.jobs.outputs, job_id)
        headers = {"Content-Disposition": f'attachment; filename="{job_id}.json"'}
        return StreamingResponse(_pieces(place), media_type="application/json", headers=headers)

    async def _read(self, request: Request, model: type[T]) -> T:
        return model.model_validate(await read_json(request, self.max_bytes))


def _job(request: Request) -> str:
    return str(request.path_params["job_id"])


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise FssError(f"{name} is {text[:40]!r}, not a whole number")
    return int(text)


async def _pieces(place: str) -> AsyncIterator[bytes]:
    """The content of a file of any size, in pieces."""
    file = await asyncio.to_thread(Store(place).fs.open, place, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
    finally:
        file.close()
