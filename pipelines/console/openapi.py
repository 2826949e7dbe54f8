"""The console's part of the OpenAPI document: labelling jobs, their labels, and decisions about them."""

from __future__ import annotations

from pipelines.console.api import AgainRequest, DecisionsRequest, EmptyRequest
from pipelines.console.records import JobRequest
from pipelines.serving.openapi import READ, WRITE, Schema, call, openapi
from pipelines.serving.schemas import ref

JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}


def console_document() -> Schema:
    """The OpenAPI document of the service with the console."""
    return openapi(_paths(), (JobRequest, DecisionsRequest, AgainRequest, EmptyRequest))


def _paths() -> dict[str, Schema]:
    job, one = "/v1/jobs/{job_id}", [JOB_ID]
    page = [*one, _query("page", {"type": "integer", "minimum": 0, "default": 0}),
            _query("show", {"enum": ["all", "undecided"], "default": "all"})]
    image = {"name": "image_id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
    return {"/v1/jobs": {"get": call("All labelling jobs, the newest first", ref("Jobs"), errors=READ),
                         "post": call("Start a labelling job, or continue an equal one", ref("Job"),
                                      body="JobRequest", errors=(*WRITE, 404, 429))},
            job: {"get": call("A job and its progress", ref("Job"), one, errors=(*READ, 404))},
            f"{job}/stop": {"post": call("Stop after the chunks being labelled", ref("Job"), one, body="EmptyRequest",
                                         errors=(*WRITE, 404))},
            f"{job}/resume": {"post": call("Label the remaining photos", ref("Job"), one, body="EmptyRequest",
                                           errors=(*WRITE, 404, 429))},
            f"{job}/again": {"post": call("Label doubtful labels again, with corrections as supports", ref("Job"),
                                          one, body="AgainRequest", errors=(*WRITE, 404, 429))},
            f"{job}/labels": {"get": call("Labels, the most doubtful first", ref("LabelsPage"), page,
                                          errors=(*READ, 404, 422))},
            f"{job}/decisions": {"post": call("Accept, reject or correct labels",
                                              {"type": "object", "properties": {"decided": {"type": "integer"}},
                                               "required": ["decided"]}, one, body="DecisionsRequest",
                                              errors=(*WRITE, 404))},
            f"{job}/photos/{{image_id}}": {"get": call("A photo, small and upright", None, [*one, image],
                                                       kind="image/jpeg", errors=(*READ, 404, 422))},
            f"{job}/labels.json": {"get": call("COCO labels with the decisions applied", {"type": "object"}, one,
                                               errors=(*READ, 404, 422))}}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema}
