"""The console's part of the HTTP API: `/v1/jobs` and what is below it."""

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
from pipelines.labelling.decisions import Word
from pipelines.serving.requests import Route, read_json

MAX_DECISIONS = 256  # of one request
PIECE = 1 << 20
T = TypeVar("T", bound=BaseModel)


class DecisionRequest(BaseModel):
    """As a line of decisions.jsonl; the mask may also be a PNG as base64 or data URL."""

    model_config = ConfigDict(extra="forbid", strict=True)
    image_id: int
    image: str
    class_name: str
    decision: Word
    mask: dict[str, Any] | str | None = None


class DecisionsRequest(BaseModel):
    """The content of `POST /v1/jobs/{job_id}/decisions`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    decisions: list[DecisionRequest] = Field(min_length=1, max_length=MAX_DECISIONS)


class AgainRequest(BaseModel):
    """The content of `POST /v1/jobs/{job_id}/again`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    below: float | None = Field(None, ge=0, le=1, description="labels less sure than this; default: the job's")


class EmptyRequest(BaseModel):
    """`{}`: what is asked is in the path."""

    model_config = ConfigDict(extra="forbid")


class ConsoleApi:
    """Handlers over `Jobs`. What changes something is done one at a time."""

    def __init__(self, jobs: Jobs, max_bytes: int) -> None:
        self.jobs, self.max_bytes = jobs, max_bytes
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Verb, path, handler."""
        job = "/v1/jobs/{job_id}"
        return [("GET", "/v1/jobs", self.list), ("POST", "/v1/jobs", self.start), ("GET", job, self.show),
                ("POST", f"{job}/stop", self.stop), ("POST", f"{job}/resume", self.resume),
                ("POST", f"{job}/again", self.again), ("GET", f"{job}/labels", self.labels),
                ("POST", f"{job}/decisions", self.decide), ("GET", f"{job}/photos/{{image_id}}", self.photo),
                ("GET", f"{job}/labels.json", self.download)]

    async def list(self, _: Request) -> Response:
        """All jobs."""
        return JSONResponse(await asyncio.to_thread(self.jobs.list))

    async def start(self, request: Request) -> Response:
        """Begin, or go on with, the job that is asked."""
        asked = await self._read(request, JobRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.start, asked))

    async def show(self, request: Request) -> Response:
        """How far a job is."""
        return JSONResponse(await asyncio.to_thread(self.jobs.show, _job(request)))

    async def stop(self, request: Request) -> Response:
        """After the chunks in hand."""
        await self._read(request, EmptyRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.stop, _job(request)))

    async def resume(self, request: Request) -> Response:
        """Do what is left."""
        await self._read(request, EmptyRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.go_on, _job(request)))

    async def again(self, request: Request) -> Response:
        """Label doubtful photos again."""
        asked = await self._read(request, AgainRequest)
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.again, _job(request), asked.below))

    async def labels(self, request: Request) -> Response:
        """A page of labels by doubt."""
        page, show = _number(request.query_params.get("page", "0"), "page"), request.query_params.get("show", "all")
        if show not in ("all", "undecided"):
            raise FssError(f"show is {show[:40]!r}", mend="say all or undecided")
        found = await asyncio.to_thread(self.jobs.labels, _job(request), page, undecided=show == "undecided")
        return JSONResponse(found)

    async def decide(self, request: Request) -> Response:
        """Keep decisions."""
        asked = await self._read(request, DecisionsRequest)
        given = [d.model_dump(exclude_none=True) for d in asked.decisions]
        async with self._one_at_a_time:
            return JSONResponse(await asyncio.to_thread(self.jobs.decide, _job(request), given))

    async def photo(self, request: Request) -> Response:
        """A small JPEG."""
        image_id = _number(request.path_params["image_id"], "image_id")
        data = await asyncio.to_thread(self.jobs.photo, _job(request), image_id)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def download(self, request: Request) -> Response:
        """labels.json with the decisions in it."""
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
    """A file of any size, a piece at a time."""
    file = await asyncio.to_thread(Store(place).fs.open, place, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
    finally:
        file.close()
