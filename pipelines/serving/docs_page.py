"""`/docs`: the OpenAPI document as a page for people, made here: it has no script and loads nothing."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jinja2

from pipelines.report.page import style_sheet
from pipelines.serving.openapi import openapi


def docs_html() -> str:
    """The page."""
    document = openapi()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("pipelines.serving").joinpath("docs.html").read_text(encoding="utf-8"))
    calls = [{"verb": verb.upper(), "path": path, **call, "body": _body(call)}
             for path, verbs in document["paths"].items() for verb, call in verbs.items()]
    schemas = {name: json.dumps(schema, indent=1) for name, schema in document["components"]["schemas"].items()}
    return template.render(style=style_sheet(), document=document, calls=calls, schemas=schemas, name=_name)


def _body(call: dict[str, Any]) -> str:
    content = call.get("requestBody", {}).get("content", {})
    return _name(content["application/json"]["schema"]) if content else ""


def _name(schema: dict[str, Any]) -> str:
    """Of a schema that is named; empty for one that is not."""
    return str(schema.get("$ref", "")).rpartition("/")[2]
