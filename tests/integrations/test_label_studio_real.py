"""The bridge and the real Label Studio: connected through its API, and looked at in a browser."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipelines.data import rle
from pipelines.data.sources.label_studio_regions import region_mask, regions
from pipelines.labelling.formats.outline import polygons
from tests.integrations.label_studio_server import (
    PASSWORD,
    TOKEN,
    USER,
    Studio,
    brushed,
    drawn,
    label_studio_command,
    running_studio,
)
from tests.serving.browser import NEEDS_BROWSER, browser, shot
from tests.serving.helpers import FSS, Running, ball, clean_env, run_fss, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with running_studio(label_studio_command(), tmp_path_factory.mktemp("studio")) as running:
        yield running


@contextlib.contextmanager
def backend(service: Running, studio: Studio, *arguments: str, **env: str) -> Iterator[str]:
    """`fss integrations label-studio` on a free port: its URL. It ends with status 0."""
    process = subprocess.Popen(
        [*FSS, "integrations", "label-studio", "--service", service.url, "--studio", studio.url, "--port", "0",
         "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=clean_env(LABEL_STUDIO_API_KEY=TOKEN, **env))
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
        print(said)  # shown where a test fails
        assert TOKEN not in said
    assert process.returncode == 0


def predict(service: Running, studio: Studio, project: int, *arguments: str,
            token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """`fss integrations label-studio-predict`."""
    return run_fss("integrations", "label-studio-predict", "--project", str(project), "--service", service.url,
                   "--studio", studio.url, *arguments, LABEL_STUDIO_API_KEY=token)


def agreement(prediction: dict[str, Any], mask: np.ndarray) -> float:
    """The IoU of a prediction's regions and a mask [H, W]."""
    found = [region_mask(kind, value, *mask.shape) for _, kind, value, _ in regions(prediction["result"])]
    union = rle.union(found, *mask.shape)
    return float((union & mask).sum() / (union | mask).sum())


def test_a_project_is_predicted_in_label_studio(service: Running, studio: Studio) -> None:
    """Connect, predict from one brush mask, and again after a polygon: what Label Studio's own buttons do."""
    balls = [ball(seed) for seed in range(8)]
    project = studio.project()
    tasks = studio.upload(project, [photo for photo, _ in balls])
    studio.annotate(tasks[0], brushed(balls[0][1]))
    with backend(service, studio) as url:
        made = studio.call("POST", "/api/ml/", json={"project": project, "url": url, "title": "fss"})
        assert studio.call("GET", f"/api/ml/{made['id']}")["state"] == "CO"
        studio.call("POST", "/api/webhooks/", json={
            "project": project, "url": f"{url}/webhook", "send_payload": True, "send_for_all_actions": False,
            "actions": ["ANNOTATION_CREATED", "ANNOTATION_UPDATED"]})
        retrieve(studio, project)
        first = {one["task"]: one for one in studio.predictions(project)}
        assert set(first) == set(tasks)
        assert len({one["model_version"] for one in first.values()}) == 1
        shares = [agreement(first[task], mask) for task, (_, mask) in zip(tasks, balls, strict=True)]
        print("IoU of brush predictions:", [round(s, 3) for s in shares])
        assert min(shares) > 0.4
        assert all(0 < one["score"] <= 1 for one in first.values())

        (outline,) = polygons(balls[1][1])
        size = balls[1][1].shape
        studio.annotate(tasks[1], drawn("polygonlabels", "outline", size, closed=True,
                                        points=(outline * 100 / size[::-1]).tolist()))
        old = next(iter(first.values()))["model_version"]
        wait_for(lambda: studio.call("PATCH", f"/api/ml/{made['id']}", json={"project": project, "url": url})
                 and studio.call("GET", f"/api/ml/{made['id']}")["model_version"] != old, 60)
        retrieve(studio, project)
        versions = Counter(one["model_version"] for one in studio.predictions(project))
        assert sorted(versions.values()) == [len(tasks)] * 2
    # The job for a whole project gives the same model version, so nothing is left for it.
    summary = json.loads(predict(service, studio, project, "--json", "--out", str(service.workspace)).stdout)
    assert summary["predictions"] == 0
    assert summary["model_version"] in versions


def retrieve(studio: Studio, project: int) -> None:
    """Label Studio's button "Retrieve predictions" for all tasks."""
    studio.call("POST", "/api/dm/actions", params={"id": "retrieve_tasks_predictions", "project": project},
                json={"selectedItems": {"all": True, "excluded": []}, "project": project})


def test_a_job_for_a_whole_project_is_killed_and_run_again(service: Running, studio: Studio) -> None:
    """Would catch predictions that are stored twice, and tasks that are left out."""
    balls = [ball(seed) for seed in range(200, 330)]
    project = studio.project()
    tasks = studio.upload(project, [photo for photo, _ in balls])
    studio.annotate(tasks[0], brushed(balls[0][1]))
    arguments = ["integrations", "label-studio-predict", "--project", str(project), "--service", service.url,
                 "--studio", studio.url, "--shape", "polygon", "--out", str(service.workspace)]
    process = subprocess.Popen([*FSS, *arguments], stderr=subprocess.DEVNULL,
                               env=clean_env(LABEL_STUDIO_API_KEY=TOKEN))
    wait_for(lambda: bool(studio.call("GET", f"/api/projects/{project}")["total_predictions_number"]), 120)
    process.kill()
    process.wait()
    before = studio.predictions(project)
    print("stored before the kill:", len(before))
    assert 0 < len(before) < len(tasks)
    studio.annotate(tasks[5], brushed(balls[5][1]))  # meanwhile; the job goes on with what it began with
    done = run_fss(*arguments, "--json", LABEL_STUDIO_API_KEY=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "going on with the unfinished job" in done.stderr
    assert json.loads(done.stdout)["predictions"] == len(tasks) - len(before)
    found = studio.predictions(project)
    assert sorted(one["task"] for one in found) == sorted(tasks)
    assert len({one["model_version"] for one in found}) == 1
    masks = dict(zip(tasks, (mask for _, mask in balls), strict=True))
    shares = [agreement(one, masks[one["task"]]) for one in found]
    print(f"IoU of polygon predictions: mean {np.mean(shares):.3f}, lowest {min(shares):.3f}")
    assert np.mean(shares) > 0.55
    assert {region["type"] for one in found for region in one["result"]} == {"polygonlabels"}


def test_a_personal_access_token(service: Running, studio: Studio) -> None:
    """The tokens that new servers give out are exchanged for short-lived ones."""
    project = studio.project()
    (task,) = studio.upload(project, [ball(7)[0]])
    studio.annotate(task, brushed(ball(7)[1]))
    token = studio.call("POST", "/api/token/")["token"]
    done = predict(service, studio, project, "--json", "--out", str(service.workspace), token=token)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"] == 1
    assert token not in done.stdout + done.stderr
    wrong = predict(service, studio, project, token=token[:-4] + "AAAA")
    assert wrong.returncode == 2
    assert "refuses the token" in wrong.stderr


def test_mistakes_are_one_line(service: Running, studio: Studio) -> None:
    empty = studio.project()
    studio.upload(empty, [ball(1)[0]])
    text = studio.project('<View><Text name="t" value="$text"/><Labels name="l" toName="t"><Label value="a"/>'
                          "</Labels></View>")
    boxes = studio.project('<View><Image name="photo" value="$picture"/><RectangleLabels name="box" toName="photo">'
                           '<Label value="ball"/></RectangleLabels></View>')
    for project, token, line in ((empty, TOKEN, f"no task of project {empty} is annotated yet"),
                                 (text, TOKEN, "the project has no image to label"),
                                 (boxes, TOKEN, "no tag of the project draws masks"),
                                 (9999, TOKEN, "there is no project 9999"),
                                 (empty, "f" * 40, "Label Studio refuses the token")):
        done = predict(service, studio, project, token=token)
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


@NEEDS_BROWSER
def test_predictions_in_the_editor(service: Running, studio: Studio) -> None:
    """A person opens a task: the prediction's regions are drawn, with their scores."""
    balls = [ball(seed, 240, 320) for seed in range(40, 44)]
    project = studio.project(title="Red balls")
    tasks = studio.upload(project, [photo for photo, _ in balls])
    studio.annotate(tasks[0], brushed(balls[0][1]))
    done = predict(service, studio, project, "--out", str(service.workspace))
    assert done.returncode == 0, done.stderr
    shown = next(one for one in studio.predictions(project) if one["task"] == tasks[1])
    studio.call("PATCH", f"/api/projects/{project}", json={"model_version": shown["model_version"],
                                                           "show_collab_predictions": True})
    with browser(f"{studio.url}/user/login/", ours=False) as page:
        page.fill("input[name=email]", USER)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.goto(f"{studio.url}/projects/{project}/data?task={tasks[1]}")
        page.wait_for_selector(f"text={shown['score']:.2f}", timeout=60_000)  # of the region in the outliner
        time.sleep(3)  # until the masks are drawn
        shot(page, "label_studio_task")
        page.goto(f"{studio.url}/projects/{project}/data")
        page.wait_for_selector("text=picture", timeout=60_000)
        time.sleep(2)
        shot(page, "label_studio_tasks")
