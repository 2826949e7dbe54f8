"""The OpenAPI document describes the service, and no request that is made from it gets status 500."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path

import httpx
import jsonschema
import pytest

from pipelines.console.openapi import console_document
from pipelines.inference.support_files import read_support_file
from pipelines.labelling.decisions import VERDICTS
from pipelines.serving.client import Client
from pipelines.serving.docs_page import docs_html
from pipelines.serving.metrics import merge_metrics
from tests.serving.fuzz import Fuzzer
from tests.serving.helpers import Running, ball, encoded, photo_folder, supports_file, wait_for

REQUESTS = 500


def test_document_is_valid_and_its_page_loads_nothing() -> None:
    document = console_document()
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert json.dumps(schema).count("$ref") == json.dumps(schema).count("#/components/schemas/"), name
    page = docs_html(console_document())
    assert "<script" not in page
    assert "https://" not in page
    assert all(f"<code>{path}</code>" in page for path in document["paths"])


def test_every_route_is_described() -> None:
    from pipelines.console.api import ConsoleApi
    from pipelines.console.service import ConsoleService
    from pipelines.serving.app import build_api

    bare = ConsoleService.__new__(ConsoleService)
    bare.console = ConsoleApi.__new__(ConsoleApi)
    routes = {(verb, r.path) for r in build_api(bare).routes for verb in r.methods}  # type: ignore[attr-defined]
    told = {(verb.upper(), path) for path, verbs in console_document()["paths"].items() for verb in verbs}
    assert routes - told == {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")}
    assert told <= routes


def test_metrics_of_several_nodes_are_one_page() -> None:
    one = '# HELP ray_fss_x x\n# TYPE ray_fss_x gauge\nray_fss_x{n="1"} 1\n# HELP other o\nother 1\n'
    two = '# HELP ray_fss_x x\n# TYPE ray_fss_x gauge\nray_fss_x{n="2"} 2\n'
    merged = '# HELP ray_fss_x x\n# TYPE ray_fss_x gauge\nray_fss_x{n="1"} 1\nray_fss_x{n="2"} 2\n'
    assert merge_metrics([one, two]) == merged


@pytest.fixture(scope="module")
def fuzzer(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    """Requests that name an existing support set, photos and a finished job, so that many pass the first check."""
    place = tmp_path_factory.mktemp("fuzz")
    client = Client(service.url)
    support = client.add_support(read_support_file(str(supports_file(place))))
    folder = photo_folder(place / "photos", 3)
    asked = {"images": str(folder), "support_ids": [support]}
    job = httpx.post(service.url + "/v1/jobs", timeout=120, json=asked).json()
    wait_for(lambda: httpx.get(f"{service.url}/v1/jobs/{job['job_id']}").json()["state"] == "done")
    rows = httpx.get(f"{service.url}/v1/jobs/{job['job_id']}/labels").json()["labels"]
    document = httpx.get(service.url + "/openapi.json").json()
    photos = [base64.b64encode(encoded(ball(s, 100, 120)[0])).decode() for s in (1, 2)]
    picture = base64.b64encode(encoded(ball(1, 100, 120)[1].astype("uint8") * 255, "PNG")).decode()
    row = rows[0]
    known = {"job_id": [job["job_id"]], "support_id": [support], "support_ids": [support], "images": [str(folder)],
             "photo": photos, "image": [row["image"]], "image_id": [row["image_id"]],
             "class_name": ["ball"], "mask": [picture],
             "decision": list(VERDICTS)}
    fuzzer = Fuzzer(document, 7, known)
    fuzzer.calls = [c for c in fuzzer.calls if not c[1].startswith(("/metrics",))]
    return fuzzer


@pytest.mark.slow
def test_no_request_ends_in_a_500(service: Running, fuzzer: Fuzzer, tmp_path: Path) -> None:
    """Every answer also has a status and a schema that the document names."""
    seen: Counter[str] = Counter()
    with httpx.Client(base_url=service.url, timeout=180) as http:
        for number in range(REQUESTS):
            call = fuzzer.draw()
            headers = {"content-type": "application/json"} if call.body is not None else {}
            answer = http.request(call.verb, call.path, params=call.query, content=call.body, headers=headers)
            seen[f"{call.verb} {call.template} {answer.status_code}"] += 1
            told = fuzzer.document["paths"][call.template][call.verb.lower()]["responses"]
            what = f"request {number}: {call.verb} {call.path} {call.query} {call.body!r:.600} -> {answer.text:.300}"
            lost = answer.status_code == 404 and "there is no '/" in answer.text  # a slash in a parameter: another path
            assert lost or str(answer.status_code) in told, what
            if answer.headers["content-type"] == "application/json" and not lost:
                schema = told[str(answer.status_code)]["content"]["application/json"]["schema"]
                jsonschema.validate(answer.json(), {**schema, "components": fuzzer.document["components"]})
    (tmp_path / "seen.json").write_text(json.dumps(seen, indent=1))
    statuses = Counter(key.rsplit(" ", 1)[1] for key in seen.elements())
    assert {"200", "404", "422"} <= statuses.keys(), statuses
    assert statuses["200"] > REQUESTS / 10, statuses
    print(statuses)


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
