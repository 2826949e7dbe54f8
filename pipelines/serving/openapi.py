"""The requests and answers of the service as an OpenAPI document: `/openapi.json`. Tests compare the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from fss_models.marks import MAX_POINTS
from pipelines.config.mask_request import EMPTY_BELOW, MAX_CLASSES, PREVALENCE, REVIEW_BELOW
from pipelines.serving.requests import MAX_IMAGES, MAX_PAIRS
from pipelines.serving.schemas import SCHEMAS, ref

Schema = dict[str, Any]
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
READ = (401, 403, 503)  # errors of every guarded request
WRITE = (*READ, 400, 413, 415, 422)


def openapi(paths: Mapping[str, Schema] | None = None, requests: Sequence[type[BaseModel]] = ()) -> Schema:
    """The OpenAPI document. `paths` and `requests` (models of bodies) are added to those that every service has."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "fss: few-shot segmentation", "version": version("fss"), "description": (
            "Mark an object in one or a few photos, and get its masks in other photos. Photos are sent as base64. "
            'An error is one line: {"error": "..."}.')},
        "security": [{}, {"token": []}],
        "paths": {**_paths(), **(paths or {}), "/metrics": {
            "get": call("Metrics for Prometheus", None, kind="text/plain", errors=(401, 403))}},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": (
            "The service's FSS_TOKEN. It is needed if token in /v1/health is true.")}},
            "schemas": {**SCHEMAS, **_requests(requests)}},
    }


def _paths() -> dict[str, Schema]:
    return {
        "/v1/health": {"get": call("The model that is running", ref("Health"))},
        "/v1/supports": {"post": call("Store a support set; its id outlives a restart", ref("SupportAnswer"),
                                      body="SupportRequest", errors=WRITE)},
        "/v1/segment": {"post": call("Masks of photos: a result or an error for each, in order", ref("SegmentAnswer"),
                                     body="SegmentRequest", errors=(*WRITE, 404))},
    }


def call(summary: str, answer: Schema | None, parameters: list[Schema] | None = None, *, body: str = "",
         kind: str = "application/json", errors: tuple[int, ...] = ()) -> Schema:
    """One operation: the schema of its answer (None: not JSON), parameters, schema name of its body, and errors."""
    found: Schema = {"summary": summary, "responses": {
        "200": {"description": "done", "content": {kind: {"schema": answer or {}}}},
        **{str(status): {"description": ERRORS[status], "content": {"application/json": {"schema": ref("Error")}}}
           for status in sorted(errors)}}}
    if parameters:
        found["parameters"] = parameters
    if body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref(body)}}}
    return found


def _requests(models: Sequence[type[BaseModel]]) -> dict[str, Schema]:
    found: dict[str, Schema] = {"SupportRequest": _support_request(), "SegmentRequest": _segment_request()}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        found.update(schema.pop("$defs", {}))
        found[model.__name__] = schema
    return found


def _support_request() -> Schema:
    points = {"type": "array", "minItems": 1, "maxItems": MAX_POINTS, "items": ref("Point")}
    labels = {"type": "array", "items": {"enum": [0, 1]}, "description": "1: on the object, 0: off it; default: all 1"}
    support = {"type": "object", "required": ["image"], "additionalProperties": False,
               "oneOf": [{"required": [kind]} for kind in ("mask", "box", "points", "scribble")],
               "properties": {
                   "image": ref("Photo"),
                   "mask": {"anyOf": [ref("Rle"), {"type": "string", "description": "a PNG as base64 or data URL"}]},
                   "box": {"type": "array", "minItems": 4, "maxItems": 4, "items": {"type": "number"},
                           "description": "[left, top, right, bottom] in pixels of the upright photo"},
                   "points": points, "scribble": points, "labels": labels}}
    return {"type": "object", "required": ["class_name", "supports"], "additionalProperties": False, "properties": {
        "class_name": {"type": "string", "minLength": 1, "description": "only the first 200 characters are used"},
        "supports": {"type": "array", "minItems": 1, "items": support}}}


def _segment_request() -> Schema:
    chance = {"type": "number", "minimum": 0, "maximum": 1}
    inside = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    return {"type": "object", "required": ["images"], "additionalProperties": False,
            "oneOf": [{"required": ["support_id"]}, {"required": ["support_ids"]}],
            "properties": {
                "support_id": {"type": "string", "minLength": 1},
                "support_ids": {"type": "array", "minItems": 1, "maxItems": MAX_CLASSES, "uniqueItems": True,
                                "items": {"type": "string", "minLength": 1}},
                "images": {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": ref("Photo")},
                "threshold": {**inside, "default": 0.5, "description": (
                    "pixels above this probability belong to the object")},
                "overlaps": {"enum": ["keep", "resolve"], "default": "keep", "description": (
                    "resolve: a pixel belongs to one class at most")},
                "pairs": {"type": "integer", "minimum": 0, "maximum": MAX_PAIRS, "default": 0, "description": (
                    "(class, photo) pairs in a call of the model; 0: one class a call")},
                "prevalence": {**inside, "default": PREVALENCE, "description": "share of the photos that show a class"},
                "empty_below": {**chance, "default": EMPTY_BELOW, "description": (
                    "a class less probable than this gets an empty label")},
                "review_below": {**chance, "default": REVIEW_BELOW, "description": (
                    "a mask less probably good than this gets the status review")},
                "bulk": {"type": "boolean", "default": False, "description": "true: use the replicas for jobs"}}}
