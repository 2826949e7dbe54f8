"""`/docs`: the OpenAPI document as a page for people. The page has no script and loads nothing."""

from __future__ import annotations

import json
from typing import Any

from pipelines.pages.template import page_template


def docs_html(document: dict[str, Any]) -> str:
    """The HTML page of an OpenAPI document."""
    template = page_template("pipelines.serving", "docs.html")
    calls = [{"verb": verb.upper(), "path": path, **call, "body": _body(call)}
             for path, verbs in document["paths"].items() for verb, call in verbs.items()]
    schemas = {name: json.dumps(schema, indent=1) for name, schema in document["components"]["schemas"].items()}
    return template.render(document=document, calls=calls, schemas=schemas, name=_name)


def _body(call: dict[str, Any]) -> str:
    content = call.get("requestBody", {}).get("content", {})
    return _name(content["application/json"]["schema"]) if content else ""


def _name(schema: dict[str, Any]) -> str:
    """The name of the schema that `schema` refers to, "" for a schema without a name."""
    return str(schema.get("$ref", "")).rpartition("/")[2]
