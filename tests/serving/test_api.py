"""A running service over HTTP: requests of people and of jobs, and which requests are refused with which status."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from jobs.cli import main
from pipelines.base.storage import Store
from pipelines.config.label import ServeConfig
from pipelines.config.recipe import Recipe
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.support_files import read_support_file, support_request
from pipelines.serving.client import Client, reach_service
from pipelines.serving.requests import RefusedError, token_hash
from pipelines.serving.spec import ModelSpec, ServiceSpec
from tests.serving.helpers import Running, ball, encoded, running_service, supports_file


@pytest.fixture(scope="module")
def support(service: Running, tmp_path_factory: pytest.TempPathFactory) -> str:
    client = Client(service.url)
    return client.add_support(read_support_file(str(supports_file(tmp_path_factory.mktemp("supports")))))


def post(service: Running, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **headers}
    return httpx.post(service.url + path, content=content, headers=sent, timeout=180)


def test_health_says_what_runs(service: Running, bundle: str) -> None:
    health = httpx.get(service.url + "/v1/health").json()
    assert (health["method"], health["preset"], health["device"]) == ("prior", "nano", "cpu")
    assert health["metrics"]["cross_validated"]["miou"] == 0.41
    record = Store(str(service.workspace)).read_json("serve.json")
    assert record == {"url": service.url, "pid": service.process.pid, "bundle_id": health["bundle_id"]}


def test_page_loads_nothing_from_elsewhere(service: Running) -> None:
    answer = httpx.get(service.url + "/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert "/* page.js */" not in answer.text


def test_labels_are_those_of_the_labeler(service: Running, support: str, bundle: str) -> None:
    """Both deployments, also with concurrent requests, give the results of a labeler alone."""
    photos = [encoded(ball(s)[0]) for s in range(5)]
    labeler = Labeler(bundle, supports_url=str(service.workspace / "supports"))
    wanted = labeler.label([*photos, b"no photo"], support)
    client = Client(service.url)
    assert client.segment([*photos, b"no photo"], support, 0.5, bulk=True) == wanted
    with ThreadPoolExecutor(5) as pool:
        alone = list(pool.map(lambda p: client.segment([p], support, 0.5)[0], photos))
    for one, other in zip(alone, wanted, strict=False):
        assert not isinstance(one, PhotoFailure)
        assert not isinstance(other, PhotoFailure)
        assert abs(one.area - other.area) <= 2
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_support_set_is_kept_in_storage(service: Running, support: str) -> None:
    record = Store(str(service.workspace)).read_json(f"supports/{support}/support.json")
    assert record["class_name"] == "ball"


PHOTO = base64.b64encode(encoded(ball(1)[0])).decode()
REFUSED: list[tuple[str, Any, int, str]] = [
    ("segment", b"{", 400, "not valid JSON"),
    ("segment", {"images": [PHOTO]}, 422, "support_id is missing"),
    ("segment", {"support_id": "0" * 16, "images": [PHOTO]}, 404, "unknown support_id"),
    ("segment", {"support_id": "0" * 16, "images": [PHOTO], "bulk": True}, 404, "unknown support_id"),
    ("segment", {"support_id": "0" * 16, "images": []}, 422, "images: list should have at least 1 item, not 0"),
    ("segment", {"support_id": "0" * 16, "images": ["@"]}, 422, "images[0]: the text is neither base64 nor a data URL"),
    ("segment", {"support_id": "0" * 16, "images": [PHOTO], "treshold": 1}, 422, "did you mean 'threshold'?"),
    ("segment", {"support_id": "0" * 16, "images": [PHOTO], "threshold": 1.5}, 422,
     "threshold: is 1.5, but should be less than 1"),
    ("segment", {"support_id": "0" * 16, "images": [PHOTO], "threshold": float("nan")}, 422, "is nan, not a number"),
    ("segment", {"support_ids": ["0" * 16] * 2, "images": [PHOTO]}, 422, "each once"),
    ("segment", {"support_id": 7, "images": [PHOTO]}, 422, "support_id: is 7, not a text"),
    ("segment", b"[" * 5000, 400, "not valid JSON"),
    ("segment", b"null", 422, "is None, not a JSON object"),
    ("segment", [], 422, "is not a JSON object"),
    ("segment", b" " * 2_000_001, 413, "larger than 2000000 bytes"),
    ("supports", {"class_name": "x", "supports": [{"image": PHOTO, "box": [0, 0, 9, 9]}]}, 422, "reads no box marks"),
    ("supports", {"class_name": "x", "supports": [{"image": "QUJD", "box": [0, 0, 9, 9]}]}, 422, "not an image"),
    ("supports", {"class_name": "\ud800", "supports": [{"image": PHOTO, "box": [0, 0, 9, 9]}]}, 422, "cannot be shown"),
    ("supports", {"class_name": "x", "supports": [{"image": PHOTO, "box": [0, 0, 9]}]}, 422,
     "supports[0].box: a box is [x0, y0, x1, y1]"),
    ("supports", {"class_name": "x", "supports": [{"image": PHOTO}]}, 422, "supports[0]: needs exactly one of mask"),
    ("jobs", {"images": "/x", "support_ids": ["0" * 16], "limit": -1}, 422, "limit: is -1, but should be greater than"),
    ("jobs/x/decisions", {"decisions": [{"image_id": 1, "image": "a", "class_name": "b", "decision": "maybe"}]}, 422,
     "decisions[0].decision: is 'maybe', but should be 'accept', 'reject', 'correct' or 'undo'"),
    ("nothing", {}, 404, "there is no '/v1/nothing'"),
]


@pytest.mark.parametrize(("path", "body", "status", "line"), REFUSED, ids=[r[3][:28] for r in REFUSED])
def test_refusals_are_one_line(service: Running, path: str, body: Any, status: int, line: str) -> None:
    answer = post(service, f"/v1/{path}", body)
    assert answer.status_code == status, answer.text
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_other_content_types_are_refused(service: Running) -> None:
    """Would let any web page a person visits post to the service on their machine."""
    answer = post(service, "/v1/segment", {"support_id": "0" * 16}, **{"content-type": "text/plain"})
    assert answer.status_code == 415


def test_refused_support_set_is_not_stored(service: Running) -> None:
    before = Store(str(service.workspace)).list("supports")
    body = {"class_name": "x", "supports": [{"image": PHOTO, "box": [0, 0, 9, 9]}]}
    assert post(service, "/v1/supports", body).status_code == 422
    assert Store(str(service.workspace)).list("supports") == before


@pytest.mark.parametrize(("arguments", "line"), [
    (["--port", "PORT"], "cannot listen on 127.0.0.1:PORT"),
    (["--port", "0", "--host", "0.0.0.0"], "set FSS_TOKEN"),
    (["--port", "0", "--bundle", ""], "champion: there is no bundle here"),
])
def test_what_fss_serve_refuses(service: Running, bundle: str, tmp_path: Path, arguments: list[str], line: str,
                                monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    port = service.url.rsplit(":", 1)[1]
    given = [a.replace("PORT", port) for a in arguments]
    monkeypatch.setattr("sys.argv", ["fss", "serve", "--bundle", bundle, "--out", str(tmp_path), *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert line.replace("PORT", port) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("host", "token", "roots", "refused"), [
    ("127.0.0.1", "", None, True), ("127.0.0.1", "", ("/photos",), True), ("127.0.0.1", "secret", ("/photos",), False),
    ("0.0.0.0", "", ("/photos",), False),
])
def test_other_names_do_not_lead_to_a_service_for_this_machine(host: str, token: str, roots: tuple[str, ...] | None,
                                                               refused: bool) -> None:
    """Would let a web page whose host name resolves to 127.0.0.1 read the service's answers."""
    from pipelines.serving.guards import with_token

    async def answer(_: Request) -> Response:
        return Response("ok")

    bundle = BundleInfo(method="prior", preset="nano", preprocessing="plain", tensors_sha256="")
    spec = ServiceSpec(model=ModelSpec(bundle_url="", supports_url=""), bundle=bundle, max_request_bytes=1,
                       workspace="", recipe=Recipe(serve=ServeConfig(host=host)), token=token_hash(token), roots=roots)
    service: Any = SimpleNamespace(spec=spec)
    headers = [(b"host", b"pages.example:8000"), (b"authorization", b"Bearer " + token.encode())]
    request = Request({"type": "http", "headers": headers})
    with pytest.raises(RefusedError, match="only on this machine") if refused else nullcontext():
        assert asyncio.run(with_token(service, answer)(request)).body == b"ok"


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"status": "ok"}'])
def test_another_server_is_one_line(answer: str) -> None:
    client = Client("http://elsewhere")
    client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(
        lambda _: httpx.Response(200, text=answer)))
    with pytest.raises(FssError, match="http://elsewhere: the server there is not `fss serve`"):
        client.health()


@pytest.mark.parametrize(("url", "token", "line"), [
    ("http://localhost:80a0", "", "http://localhost:80a0: is not the address of a service: Invalid port: '80a0'"),
    ("http://[::1", "", r"http://\[::1: is not the address of a service"),
    ("http://localhost:9", "p\xe4ss", "FSS_TOKEN has other characters than letters, digits and signs of ASCII"),
    ("http://localhost:9", "a\nb", "FSS_TOKEN has other characters"),
])
def test_mistakes_of_a_client_are_one_line(url: str, token: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_TOKEN", token)
    with pytest.raises(FssError, match=line) as error:
        reach_service(url)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_too_many_requests_are_turned_away(service: Running, support: str) -> None:
    """Would catch a service that queues without bound: every request gets an answer, some get 503."""
    body = {"support_id": support, "images": [PHOTO] * 8}
    with ThreadPoolExecutor(80) as pool:
        answers = list(pool.map(lambda _: post(service, "/v1/segment", body), range(80)))
    assert {a.status_code for a in answers} == {200, 503}
    refused = next(a for a in answers if a.status_code == 503)
    assert "the queue is full" in refused.json()["error"]
    assert refused.headers["retry-after"]


@pytest.mark.slow
def test_token_and_restart(bundle: str, tmp_path: Path) -> None:
    """With FSS_TOKEN no request succeeds without the token; a support set stays valid after a restart."""
    given = support_request(read_support_file(str(supports_file(tmp_path))))
    with running_service(bundle, tmp_path / "ws", FSS_TOKEN="secret") as first:
        assert post(first, "/v1/supports", given).status_code == 401
        assert post(first, "/v1/supports", given, authorization="Bearer wrong").status_code == 401
        answer = post(first, "/v1/supports", given, authorization="Bearer secret")
        assert answer.status_code == 200
    with running_service(bundle, tmp_path / "ws") as second:
        found = Client(second.url).segment([encoded(ball(1)[0])], answer.json()["support_id"], 0.5)
        assert not isinstance(found[0], PhotoFailure)


def test_request_form_is_what_people_write(service: Running, tmp_path: Path, support: str) -> None:
    """A hand-written request (mask as PNG in base64) gives the id of the same support set in a file."""
    given = read_support_file(str(supports_file(tmp_path)))
    mask = "data:image/png;base64," + base64.b64encode((tmp_path / "mask.png").read_bytes()).decode()
    body = support_request(given)
    body["supports"][0]["mask"] = mask
    assert post(service, "/v1/supports", body).json()["support_id"] == support
