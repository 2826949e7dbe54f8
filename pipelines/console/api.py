"""The console's part of the HTTP API: `/v1/jobs` and the paths below it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from fss_models.forms import Form
from fss_models.marks import Rle
from pipelines.base.storage import Store
from pipelines.console.answers import Decided, Job, JobList, LabelsPage
from pipelines.console.jobs import Jobs
from pipelines.console.records import JobRequest
from pipelines.labelling.decisions import Verdict
from pipelines.serving.routes import READS, WRITES, Route

MAX_DECISIONS = 256  # in one request
MAX_NUMBER = 10**12
PIECE = 1 << 20  # bytes of a file sent at a time


class DecisionRequest(Form):
    """A decision, as in a line of decisions.jsonl; the mask may also be a PNG as base64 or data URL."""

    image_id: int
    image: str
    class_name: str
    decision: Verdict
    mask: Rle | str | None = None
    instance: int | None = Field(None, description="number of the one instance that the decision is about")


class DecisionsRequest(Form):
    """The body of `POST /v1/jobs/{job_id}/decisions`."""

    decisions: list[DecisionRequest] = Field(min_length=1, max_length=MAX_DECISIONS)


class AgainRequest(Form):
    """The body of `POST /v1/jobs/{job_id}/again`."""

    below: float | None = Field(None, ge=0, le=1, description=(
        "labels less sure than this are made again; default: the job's review_below"))


class EmptyRequest(Form):
    """The body `{}` of a request that is described by its path alone."""


class ConsoleApi:
    """The handlers of the API, each in a thread. Requests that change jobs are handled one at a time."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self._one_at_a_time = threading.Lock()

    def routes(self) -> list[Route]:
        """The requests about jobs."""
        job = "/v1/jobs/{job_id}"
        return [
            Route("GET", "/v1/jobs", self.jobs.list, READS, JobList),
            Route("POST", "/v1/jobs", self.start, WRITES, Job, (404, 429)),
            Route("GET", job, self.jobs.show, READS, Job, (404, 422)),
            Route("POST", f"{job}/stop", self.stop, WRITES, Job, (404,)),
            Route("POST", f"{job}/resume", self.resume, WRITES, Job, (404, 429)),
            Route("POST", f"{job}/again", self.redo, WRITES, Job, (404, 429)),
            Route("GET", f"{job}/labels", self.labels, READS, LabelsPage, (404, 422)),
            Route("POST", f"{job}/decisions", self.decide, WRITES, Decided, (404,)),
            Route("GET", f"{job}/photos/{{image_id}}", self.photo, READS, errors=(404, 422), kind="image/jpeg"),
            Route("GET", f"{job}/labels.json", self.download, READS, errors=(404, 422), kind="application/json"),
        ]

    def start(self, body: JobRequest) -> Any:
        """Start a labelling job, or continue an equal one."""
        with self._one_at_a_time:
            return self.jobs.start(body)

    def stop(self, job_id: str, body: EmptyRequest) -> Any:
        """Stop a job after the chunks that are being labelled."""
        with self._one_at_a_time:
            return self.jobs.stop(job_id)

    def resume(self, job_id: str, body: EmptyRequest) -> Any:
        """Label the remaining photos of a job."""
        with self._one_at_a_time:
            return self.jobs.resume(job_id)

    def redo(self, job_id: str, body: AgainRequest) -> Any:
        """Label doubtful labels again, with corrections as supports."""
        with self._one_at_a_time:
            return self.jobs.redo(job_id, body.below)

    def labels(self, job_id: str, page: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
               show: Literal["all", "undecided"] = "all") -> Any:
        """A page of labels, the most doubtful first."""
        return self.jobs.labels(job_id, page, undecided=show == "undecided")

    def decide(self, job_id: str, body: DecisionsRequest) -> Any:
        """Accept, reject or correct labels."""
        decisions = [d.model_dump(exclude_none=True) for d in body.decisions]
        with self._one_at_a_time:
            return self.jobs.decide(job_id, decisions)

    def photo(self, job_id: str, image_id: Annotated[int, Path(ge=1, le=MAX_NUMBER)]) -> Response:
        """A photo, small and upright."""
        data = self.jobs.photo(job_id, image_id)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def download(self, job_id: str) -> Response:
        """COCO labels with the decisions applied."""
        with self._one_at_a_time:
            place = self.jobs.outputs(job_id)
        headers = {"Content-Disposition": f'attachment; filename="{job_id}.json"'}
        return StreamingResponse(_pieces(place), media_type="application/json", headers=headers)


def _pieces(place: str) -> Iterator[bytes]:
    """The content of a file of any size, in pieces."""
    with Store(place).fs.open(place, "rb") as file:
        while piece := file.read(PIECE):
            yield piece
