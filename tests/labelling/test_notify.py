"""What a labelling job tells its receiver: each end once, whatever happens on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fss_models.errors import FssError
from pipelines.config.label import LabelConfig
from pipelines.config.recipe import Recipe
from pipelines.inference.labeler import Labeler
from pipelines.labelling.outputs import SUMMARY
from pipelines.labelling.run import LabelRequest, run_label_job
from pipelines.labelling.watch import run_watch
from pipelines.serving.spec import ModelSpec
from tests.fixtures.receiver import Receiver
from tests.labelling.helpers import DirectEngine
from tests.serving.helpers import photo_folder, supports_file, wait_for

SECRET = "0123456789abcdef"
DOCS = Path(__file__).parents[2] / "docs" / "howto" / "webhooks.md"


class Job:
    """A labelling job of three photos, whose engine raises `error` if there is one."""

    def __init__(self, place: Path, bundle: str, receiver: Receiver) -> None:
        self.photos, self.out, self.bundle = photo_folder(place / "photos", 3), place / "gear", bundle
        self.supports, self.receiver = supports_file(place), receiver
        self.error: BaseException | None = None

    def request(self, **label: Any) -> LabelRequest:
        recipe = Recipe.model_validate({"out": str(self.out) + "-workspace", "label": {
            "chunk": 2, "batch": 2, "notify": self.receiver.url, **label}})
        return LabelRequest(recipe=recipe, images=str(self.photos), supports=str(self.supports), out=str(self.out),
                            bundle=self.bundle)

    def run(self, **label: Any) -> dict[str, Any]:
        return run_label_job(self.request(**label))

    @contextmanager
    def engine(self, spec: ModelSpec) -> Iterator[DirectEngine]:
        if self.error:
            raise self.error
        yield DirectEngine(Labeler(spec.bundle_url, supports_url=spec.supports_url))

    def events(self) -> list[dict[str, Any]]:
        return [one.event for one in self.receiver.got]


@pytest.fixture
def job(tmp_path: Path, bundle: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Job:
    found = Job(tmp_path, bundle, receiver)
    monkeypatch.setattr("pipelines.labelling.run.local_engine", found.engine)
    monkeypatch.setenv("FSS_WEBHOOK_SECRET", SECRET)
    return found


def test_each_end_of_a_job(job: Job) -> None:
    job.error = FssError("no memory is left", where="GPU 0")
    with pytest.raises(FssError):
        job.run()
    job.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        job.run()
    job.error = None
    job.run()
    about = {"job": "gear", "out": str(job.out), "classes": ["ball"]}
    assert [one["data"] for one in job.events()] == [
        {**about, "state": "failed", "images": 3, "labelled": 0, "error": "GPU 0: no memory is left"},
        {**about, "state": "stopped", "images": 3, "labelled": 0, "error": ""},
        {**about, "state": "done", "images": 3, "with_object": 3, "without_object": 0, "failed": 0,
         "labels": str(job.out / "labels.json")}]
    assert [one["type"] for one in job.events()] == ["label.failed", "label.stopped", "label.done"]
    job.run()
    assert len(job.events()) == 3, "a job that was done is told once"
    assert SECRET not in (job.out / "events.json").read_text()


def test_a_job_that_was_killed_before_it_could_tell(job: Job) -> None:
    job.run(notify="")
    assert (job.out / SUMMARY).exists()
    assert job.events() == []
    job.run()
    assert [one["type"] for one in job.events()] == ["label.done"]


def test_a_dead_receiver_fails_no_job(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    job.receiver.answers = [404]
    assert job.run()["with_object"] == 3
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["warning: 127.0.0.1 was not told: HTTP 404; events that wait in events.json: 1"]
    job.run()
    first, second = job.events()
    assert first == second, "the next command tells it"


def test_without_a_secret_nothing_begins(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSS_WEBHOOK_SECRET")
    with pytest.raises(FssError, match=r"there is no FSS_WEBHOOK_SECRET to sign events with \(set it to"):
        job.run()
    assert not job.out.exists()


@pytest.mark.parametrize("url", ["ftp://a/b", "a.b", "http://", "file:///etc/passwd", "http://a b"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="notify is no http:// or https:// URL"):
        LabelConfig(notify=url)


def test_a_watch_tells_of_each_batch(job: Job) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=run_watch, args=(job.request(),), kwargs={"every": 0.1, "stop": stop})
    thread.start()
    try:
        wait_for(lambda: len(job.events()) == 1, 30)
        (job.photos / "0001.jpg").rename(job.photos / "new.jpg")
        wait_for(lambda: len(job.events()) == 2, 30)
    finally:
        stop.set()
        thread.join(30)
    assert [(one["data"]["state"], one["data"]["images"]) for one in job.events()] == [
        ("done", 3), ("done", 4), ("stopped", 4)]


def test_the_receiver_of_the_documentation(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes what a job sent, and refuses what was changed, what is old, and what another secret signed."""
    job.run()
    (sent,) = job.receiver.got
    code = DOCS.read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    read = names["read_event"]
    assert read(sent.headers, sent.body)["data"]["with_object"] == 3
    late = str(int(sent.headers["webhook-timestamp"]) - 3600)
    for headers, body in ((sent.headers, sent.body.replace(b'"images": 3', b'"images": 4')),
                          ({**sent.headers, "webhook-timestamp": late}, sent.body),
                          ({**sent.headers, "webhook-id": "another"}, sent.body)):
        with pytest.raises(ValueError, match="not signed"):
            read(headers, body)
    monkeypatch.setenv("FSS_WEBHOOK_SECRET", "another secret")
    with pytest.raises(ValueError, match="not signed"):
        read(sent.headers, sent.body)
    assert json.loads(sent.body)["type"] == "label.done"
