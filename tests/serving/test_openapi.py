"""The OpenAPI document describes the service, and no request that is made from it gets status 500."""

from __future__ import annotations

import base64
import copy
import json
from collections import Counter
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from pipelines.inference.support_files import read_support_file
from pipelines.serving.client import Client
from pipelines.serving.docs_page import docs_html
from pipelines.serving.metrics import merge_metrics
from tests.serving.helpers import Running, ball, encoded, photo_folder, supports_file, wait_for

REQUESTS = 120  # of each mode
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def document() -> dict[str, Any]:
    """The document of the service."""
    from pipelines.console.service import api_document

    return api_document()


def test_document_is_valid_and_its_page_loads_nothing() -> None:
    found = document()
    for name, schema in found["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert json.dumps(schema).count("$ref") == json.dumps(schema).count("#/components/schemas/"), name
    page = docs_html(found)
    assert "<script" not in page
    assert "https://" not in page
    assert all(f"<code>{path}</code>" in page for path in found["paths"])


def test_every_error_is_described_as_our_own() -> None:
    """Would catch FastAPI's own form of errors in the document, and an operation without a word about it."""
    found = document()
    assert "HTTPValidationError" not in found["components"]["schemas"]
    for path, verbs in found["paths"].items():
        for call in verbs.values():
            assert call["description"], path
            for status, answer in call["responses"].items():
                schema = answer["content"].get("application/json", {}).get("schema", {})
                assert status == "200" or schema == {"$ref": "#/components/schemas/Error"}, (path, status)


def test_metrics_of_several_nodes_are_one_page() -> None:
    one = ('# HELP ray_fss_x x\n# TYPE ray_fss_x gauge\nray_fss_x{n="1"} 1\n# HELP other o\nother 1\n'
           '# HELP ray_fss_y_total y\n# TYPE ray_fss_y_total counter\nray_fss_y_total{n="1"} 3.0\n')
    two = '# HELP ray_fss_x x\n# TYPE ray_fss_x gauge\nray_fss_x{n="2"} 2\n'
    merged = ('# HELP ray_fss_x x\n# TYPE ray_fss_x gauge\nray_fss_x{n="1"} 1.0\nray_fss_x{n="2"} 2.0\n'
              '# HELP ray_fss_y_total y\n# TYPE ray_fss_y_total counter\nray_fss_y_total{n="1"} 3.0\n')
    assert merge_metrics([one, two, "# node 10.0.0.1:1 does not answer: ConnectError\n"]) == merged


@pytest.fixture(scope="module")
def known(service: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Fields and parameters with values that exist: a support set, photos and a finished job."""
    place = tmp_path_factory.mktemp("fuzz")
    support = Client(service.url).add_support(read_support_file(str(supports_file(place))))
    folder = str(photo_folder(place / "photos", 3))
    job = httpx.post(service.url + "/v1/jobs", timeout=120, json={"images": folder, "support_ids": [support]}).json()
    where = f"{service.url}/v1/jobs/{job['job_id']}"
    wait_for(lambda: httpx.get(where).json()["state"] == "done")
    row = httpx.get(where + "/labels").json()["labels"][0]
    photo, mask = ball(1, 100, 120)
    picture = base64.b64encode(encoded(mask.astype("uint8") * 255, "PNG")).decode()
    return {"job_id": [job["job_id"], "nothing"], "support_id": [support, "0" * 16], "support_ids": [support, "0" * 16],
            "image": [base64.b64encode(encoded(photo)).decode(), row["image"], "AAAA"], "images": [folder],
            "image_id": [row["image_id"], 99], "class_name": ["ball", " "], "mask": [picture, None]}


def narrowed(document: dict[str, Any], known: dict[str, list[Any]]) -> dict[str, Any]:
    """The document with `known` values in its requests, so that many pass the first check."""
    found = copy.deepcopy(document)
    schemas = found["components"]["schemas"]
    for name in [n for n in schemas if n.endswith(("Request", "Support"))]:
        for field, schema in schemas[name]["properties"].items():
            if field == "images" and schema["type"] == "array":
                schema.update(items={"enum": known["image"]}, maxItems=2)
            elif field == "support_ids":
                schemas[name]["properties"][field] = {"type": "array", "items": {"enum": known[field]}, "minItems": 1,
                                                      "maxItems": 2, "uniqueItems": True}
            elif field in known:
                schemas[name]["properties"][field] = {"enum": known[field]}
    for parameter in [p for verbs in found["paths"].values() for c in verbs.values() for p in c.get("parameters", [])]:
        if parameter["name"] in known:
            parameter["schema"] = {"enum": known[parameter["name"]]}
    return found


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_ends_in_a_500(service: Running, known: dict[str, list[Any]], mode: GenerationMode) -> None:
    """Every answer also has a status and a schema that the document names, and every mistake is one line."""
    load_all_checks()
    told = httpx.get(service.url + "/openapi.json").json()
    valid = mode is GenerationMode.POSITIVE
    schema = schemathesis.openapi.from_dict(narrowed(told, known) if valid else told)
    calls = [found.ok() for found in schema.exclude(path="/metrics").get_all_operations()]
    calls = [c for c in calls if valid or c.body or c.path_parameters or c.query]
    seen: Counter[str] = Counter()

    @settings(max_examples=REQUESTS, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))
    @given(case=st.one_of([c.as_strategy(generation_mode=mode) for c in calls]))
    def ask(case: Case) -> None:
        answer = case.call(base_url=service.url, timeout=120)
        seen[f"{answer.status_code} {case.method} {case.path}"] += 1
        if answer.status_code == 404 and "there is no '/" in answer.text:
            return  # a slash in a parameter: another path
        case.validate_response(answer, checks=CHECKS if valid else [*CHECKS, negative_data_rejection])
        assert answer.status_code < 400 or "\n" not in answer.json()["error"]

    ask()
    statuses = Counter(key.split(" ")[0] for key in seen.elements())
    print(json.dumps(seen, indent=1), statuses)
    assert {"200", "404", "422"} <= statuses.keys() if valid else statuses["422"] > REQUESTS / 4, statuses
    assert len(seen) > len(calls), seen


@pytest.mark.slow
def test_metrics_count_requests(service: Running) -> None:
    """The metrics appear in Ray's exporter after a few seconds."""
    for _ in range(3):
        httpx.post(service.url + "/v1/segment", json={"images": ["x"]})

    def counted() -> bool:
        text = httpx.get(service.url + "/metrics").text
        return any(line.startswith("ray_fss_requests_total") and 'path="/v1/segment"' in line and 'status="422"' in line
                   and float(line.rsplit(" ", 1)[1]) >= 3 for line in text.splitlines())

    wait_for(counted, 60)
    text = httpx.get(service.url + "/metrics").text
    assert "ray_fss_request_seconds_bucket" in text
    assert "ray_serve_" in text
