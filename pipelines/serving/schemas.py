"""JSON schemas of the service's answers and of the parts that requests and answers share."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A reference to the schema `name` of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Schema], optional: tuple[str, ...] = (), *, closed: bool = True) -> Schema:
    return {"type": "object", "properties": properties, "required": [k for k in properties if k not in optional],
            "additionalProperties": not closed}


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
YES: Schema = {"type": "boolean"}
CHANCE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
MAYBE: Schema = {"anyOf": [CHANCE, {"type": "null"}]}

SCHEMAS: dict[str, Schema] = {
    "Error": _object({"error": {"type": "string", "description": "one line: what is wrong, and how to correct it"}}),
    "Photo": {"type": "string", "description": "a photo file (JPEG, PNG, WebP, BMP, TIFF) as base64 or data URL"},
    "Point": {"type": "array", "minItems": 2, "maxItems": 2, "items": NUMBER,
              "description": "[x, y] in pixels of the upright photo"},
    "Rle": _object({
        "size": {"type": "array", "minItems": 2, "maxItems": 2, "items": WHOLE, "description": "[height, width]"},
        "counts": {"anyOf": [TEXT, {"type": "array", "items": WHOLE}], "description": "COCO's run lengths"}}),
    "Health": _object({"status": TEXT, "bundle_id": TEXT, "method": TEXT, "preset": TEXT, "device": TEXT,
                       "max_request_bytes": WHOLE, "batch": WHOLE, "token": YES, "uptime_s": NUMBER, "waiting": WHOLE,
                       "roots": {"anyOf": [{"type": "array", "items": TEXT}, {"type": "null"}], "description": (
                           "folders and buckets that jobs may read; null: all")}}, closed=False),
    "SupportAnswer": _object({"support_id": TEXT, "class_name": TEXT, "supports": WHOLE}),
    "Label": _object({
        "segmentation": _object({"size": {"type": "array", "items": WHOLE}, "counts": TEXT}),
        "score": NUMBER, "bbox": {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4}, "area": WHOLE,
        "presence": MAYBE, "quality": MAYBE,
        "status": {"enum": ["accepted", "review", "empty", "uncalibrated"]}}, ("presence", "quality", "status")),
    "Failure": _object({"error": TEXT, "stage": TEXT}),
    "SegmentAnswer": _object({
        "support_id": TEXT, "support_ids": {"type": "array", "items": TEXT}, "bundle_id": TEXT,
        "results": {"type": "array", "items": {"anyOf": [
            ref("Label"), ref("Failure"), _object({"labels": {"type": "array", "items": ref("Label")}})]}}},
        ("support_id", "support_ids")),
    "Job": _object({
        "job_id": TEXT, "state": {"enum": ["running", "done", "stopped", "failed", "interrupted"]}, "title": TEXT,
        "classes": {"type": "array", "items": TEXT}, "images": TEXT, "out": TEXT, "photos": WHOLE, "done": WHOLE,
        "failed": {**WHOLE, "description": "photos that could not be read"},
        "rate": {"type": "number", "description": "photos per second"},
        "left_s": {"anyOf": [NUMBER, {"type": "null"}]}, "error": TEXT, "stopping": YES, "started": NUMBER,
        "origin": {"type": "string", "description": "the job whose doubtful labels this one redoes"},
        "command": {"type": "string", "description": "the same job from the command line"}}),
    "Jobs": _object({"jobs": {"type": "array", "items": ref("Job")}}),
    "LabelRow": _object({
        "image_id": WHOLE, "image": TEXT, "class_name": TEXT, "height": WHOLE, "width": WHOLE,
        "sure": {"type": "number", "description": "probability that the label is right, or the uncalibrated score"},
        "calibrated": YES, "empty": YES, "counts": TEXT, "decision": {"enum": ["", "accept", "reject", "correct"]}}),
    "LabelsPage": _object({
        "labels": {"type": "array", "items": ref("LabelRow")}, "page": WHOLE, "pages": WHOLE, "shown": WHOLE,
        "total": WHOLE, "decided": WHOLE, "review_below": CHANCE}),
}
