"""The backend and the job for whole projects, with the running service and a stand-in for Label Studio."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from fss_models.errors import FssError
from pipelines.data import rle
from pipelines.data.sources.brush_rle import encode_brush
from pipelines.data.sources.label_studio_regions import region_mask, regions
from pipelines.inference.masks import PhotoFailure
from pipelines.integrations.label_studio.api import LabelStudio
from pipelines.integrations.label_studio.app import make_app
from pipelines.integrations.label_studio.backend import Backend, BridgeOptions
from pipelines.integrations.label_studio.whole_project import WholeProject, predict_project
from pipelines.labelling.formats.outline import polygons
from pipelines.serving.client import Client
from tests.fixtures.command import Fss
from tests.integrations.studio_stand_in import TOKEN, StandIn, running
from tests.serving.helpers import Running, ball

BALLS = [ball(seed) for seed in range(20)]


def brushed(mask: np.ndarray, label: str = "ball") -> dict[str, Any]:
    return {"id": "a", "type": "brushlabels", "from_name": "brush", "to_name": "photo", "original_height": len(mask),
            "original_width": mask.shape[1], "image_rotation": 0,
            "value": {"format": "rle", "rle": list(encode_brush(mask)), "brushlabels": [label]}}


def box(number: int) -> dict[str, Any]:
    """A box on the photo of a task."""
    return {**brushed(BALLS[number - 1][1]), "type": "rectanglelabels", "value": {
        "x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["ball"]}}


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Three tasks, the first one annotated with the brush."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    content = StandIn()
    content.add(BALLS[0][0], brushed(BALLS[0][1]))
    for photo, _ in BALLS[1:3]:
        content.add(photo)
    with running(content) as ready:
        yield ready


@pytest.fixture
def connect(service: Running, studio: StandIn) -> Iterator[Callable[..., TestClient]]:
    """Make the backend, with `BridgeOptions`, and a client of it as Label Studio is one."""
    made: list[Backend] = []

    def make(token: str = "", **options: Any) -> TestClient:
        made.append(Backend(LabelStudio(studio.url), Client(service.url), BridgeOptions(**options)))
        return TestClient(make_app(made[-1], token), base_url="http://127.0.0.1")

    yield make
    for one in made:
        one.close()


def asked(studio: StandIn, *numbers: int, **context: Any) -> dict[str, Any]:
    """The body of a request for predictions, as Label Studio sends it."""
    return {"project": "1.1796042531", "label_config": "<View/>", "tasks": [studio.tasks[n] for n in numbers],
            "params": {"login": None, "password": None, "context": context or None}}


def agreement(prediction: dict[str, Any], mask: np.ndarray) -> float:
    found = [region_mask(kind, value, *mask.shape) for _, kind, value, _ in regions(prediction["result"])]
    union = rle.union(found, *mask.shape)
    return float((union & mask).sum() / (union | mask).sum())


def test_a_project_is_set_up_and_predicted(connect: Callable[..., TestClient], studio: StandIn) -> None:
    backend = connect()
    assert backend.get("/health").json()["status"] == "UP"
    answer = backend.post("/setup", json={"project": "1.1796042531", "schema": "<View/>", "access_token": "x"})
    assert answer.status_code == 200, answer.text
    found = backend.post("/predict", json=asked(studio, 2, 3)).json()
    assert len(found["results"]) == 2
    for number, one in zip((1, 2), found["results"], strict=True):
        assert agreement(one, BALLS[number][1]) > 0.5
        assert one["model_version"] == found["model_version"]
        assert 0 < one["score"] <= 1
    again = backend.post("/setup", json={"project": "1.1796042531"}).json()
    assert again["model_version"] == found["model_version"], "Label Studio asks for tasks without this version"


def test_new_annotations_refine_the_supports(connect: Callable[..., TestClient], studio: StandIn) -> None:
    """Would catch a backend that keeps its first supports, and one that learns in the webhook's second."""
    backend = connect()
    first = backend.post("/predict", json=asked(studio, 3)).json()["model_version"]
    (outline,) = polygons(BALLS[1][1])
    studio.annotate(2, {**brushed(BALLS[1][1]), "type": "polygonlabels", "value": {
        "points": (outline * 100 / BALLS[1][1].shape[::-1]).tolist(), "polygonlabels": ["ball"]}}, box(2))
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "annotation": {"id": 7}}
    assert backend.post("/webhook", json=event).status_code == 201
    end = time.monotonic() + 30
    while (answer := backend.post("/predict", json=asked(studio, 3)).json())["model_version"] == first:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert agreement(answer["results"][0], BALLS[2][1]) > 0.5
    assert backend.post("/webhook", json={**event, "action": "TASKS_CREATED"}).json() == {"status": "ignored"}


def test_what_is_drawn_in_the_editor_is_the_prompt(connect: Callable[..., TestClient], studio: StandIn) -> None:
    """Also before anything is annotated; `prior` reads masks alone, and says so."""
    studio.tasks[1]["annotations"] = []
    backend = connect()
    (one,) = backend.post("/predict", json=asked(studio, 3, result=[brushed(BALLS[2][1])])).json()["results"]
    assert agreement(one, BALLS[2][1]) > 0.5
    answer = backend.post("/predict", json=asked(studio, 3, result=[box(3)]))
    assert answer.status_code == 422
    assert "method 'prior' reads no box marks" in answer.json()["error"]


def test_kinds_that_the_method_does_not_read_are_left_out(connect: Callable[..., TestClient], studio: StandIn,
                                                          capfd: pytest.CaptureFixture[str]) -> None:
    studio.annotate(2, box(2))
    backend = connect()
    assert len(backend.post("/predict", json=asked(studio, 3)).json()["results"]) == 1
    assert "some annotations are no supports: method 'prior' reads no box marks" in capfd.readouterr().err
    studio.tasks[1]["annotations"] = []
    assert "reads no box marks" in connect().post("/predict", json=asked(studio, 3)).json()["error"]


def test_a_photo_that_is_gone_has_no_prediction_but_the_others_do(connect: Callable[..., TestClient],
                                                                  studio: StandIn) -> None:
    del studio.photos["2.png"]
    gone, there = connect(shape="polygon").post("/predict", json=asked(studio, 2, 3)).json()["results"]
    assert gone == []
    assert {r["type"] for r in there["result"]} == {"polygonlabels"}


def test_mistakes_are_answers_of_one_line(connect: Callable[..., TestClient], studio: StandIn) -> None:
    backend = connect()
    studio.tasks[1]["annotations"] = []
    for path, body, status, line in (
            ("/predict", asked(studio, 2), 422, "no task of project 1 is annotated yet"),
            ("/predict", {**asked(studio, 2), "project": "x.1"}, 422, "'x.1' names no project"),
            ("/predict", {"project": "1.1"}, 422, "tasks: Field required"),
            ("/setup", {"project": "7.1"}, 422, "there is no project 7")):
        answer = backend.post(path, json=body)
        assert (answer.status_code, answer.json()["error"].count("\n")) == (status, 0)
        assert line in answer.json()["error"]
    studio.image = "Text"
    assert "no image to label" in backend.post("/setup", json={"project": "1.1"}).json()["error"]
    assert backend.post("/setup", content="{}").status_code == 415


def test_who_may_ask(connect: Callable[..., TestClient]) -> None:
    """Label Studio sends HTTP's basic scheme; without a token, web pages of other hosts are kept out."""
    backend, body = connect("secret-word"), {"project": "1.1"}
    basic = base64.b64encode(b"label-studio:secret-word").decode()
    for header, status in (("", 401), ("Basic !!", 401), ("Bearer other", 401), (f"Basic {basic}", 200),
                           ("Bearer secret-word", 200)):
        assert backend.post("/setup", json=body, headers={"Authorization": header}).status_code == status
    assert connect().post("/setup", json=body, headers={"Host": "evil.example"}).status_code == 403


@pytest.fixture
def job(service: Running, studio: StandIn, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the job for the whole project in a workspace of the test's own."""
    def run(**changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"service": service.url, "studio": studio.url, "project": 1,
                                 "workspace": str(tmp_path / "ws"), "options": BridgeOptions(), **changes}
        return predict_project(WholeProject(**given))

    return run


def test_every_task_is_predicted_once(job: Callable[..., dict[str, Any]], studio: StandIn,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the requests that store predictions, the answers to two are lost; a job goes on after a limit."""
    monkeypatch.setattr("pipelines.integrations.label_studio.whole_project.CHUNK", 8)
    for photo, _ in BALLS[3:]:
        studio.add(photo)
    del studio.photos["9.png"]
    studio.lost_answers = 2
    first = job(limit=5)
    assert first["predictions"] == 5
    studio.annotate(2, brushed(BALLS[1][1]))  # does not change the job that is not finished
    second = job()
    assert (second["predictions"], second["failed"]) == (14, 1)
    assert second["model_version"] == first["model_version"]
    assert second["reasons"] == ["1 x Label Studio answers 404"]
    assert sorted(p["task"] for p in studio.predictions) == [n for n in range(1, 21) if n != 9]
    assert np.mean([agreement(p, BALLS[p["task"] - 1][1]) for p in studio.predictions]) > 0.5
    third = job()  # a new job with both annotations
    assert third["model_version"] != second["model_version"]
    assert third["predictions"] == 19


def test_an_unfinished_job_of_other_settings_is_not_mixed(job: Callable[..., dict[str, Any]]) -> None:
    job(limit=1)
    with pytest.raises(FssError, match=r"has threshold 0.5, not 0.7.*--restart"):
        job(options=BridgeOptions(threshold=0.7))
    assert job(options=BridgeOptions(threshold=0.7), restart=True)["predictions"] == 3


def test_photos_come_from_where_they_may(studio: StandIn, tmp_path: Path) -> None:
    """Would catch a task that makes the backend read this machine's files, or send the token elsewhere."""
    (tmp_path / "a.png").write_bytes(b"secret")
    server = LabelStudio(studio.url)
    assert isinstance(server.photo("/data/upload/1/1.png"), bytes)
    assert isinstance(server.photo(f"{studio.url}/data/upload/1/1.png"), bytes)
    for reference in (f"file://{tmp_path}/a.png", f"ftp://{tmp_path}/a.png", f"//127.0.0.1:1{tmp_path}/a.png",
                      str(tmp_path / "a.png"), "data:,x"):
        assert isinstance(server.photo(reference), PhotoFailure), reference
    elsewhere = StandIn()  # answers only to those who have the token
    elsewhere.add(BALLS[0][0])
    with running(elsewhere) as other:
        found = server.photo(f"{other.url}/data/upload/1/1.png")
    assert found == PhotoFailure(reason="HTTP 401", stage="read")
    server.close()


@pytest.mark.parametrize(("arguments", "token", "line"), [
    (["--service", "http://127.0.0.1:9"], TOKEN, "no service answers"),
    ([], "wrong", "Label Studio refuses the token"), ([], "", "LABEL_STUDIO_API_KEY is not set"),
    (["--studio", "http://127.0.0.1:9"], TOKEN, "Label Studio does not answer"),
    (["--threshold", "1.5"], TOKEN, "is no probability"),
])
def test_the_command_says_what_is_wrong(arguments: list[str], token: str, line: str, fss: Fss, service: Running,
                                        studio: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    for command in (["label-studio", "--port", "0"], ["label-studio-predict", "--project", "1"]):
        done = fss("integrations", *command, "--service", service.url, "--studio", studio.url, *arguments)
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not token or token not in done.stderr
