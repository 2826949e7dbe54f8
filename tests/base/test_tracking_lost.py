"""What MLflow does not take is told and holds nothing up: deleted experiments and runs, odd names, many metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.base.mlflow_sender import metric_names
from pipelines.base.tracking import Tracker
from tests.base.test_tracking import client, runs


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def sent(uri: str, experiment: str, spool: Path, *keys: str) -> list[str]:
    tracker = Tracker(uri, experiment, str(spool))
    for key in keys:
        tracker.run(key, params={"a": 1})
        tracker.metrics(key, {"loss": 1.0}, 1)
    assert tracker.close(60) == ""
    return tracker.notes()


def test_a_deleted_experiment_is_followed_by_the_next_of_its_name(uri: str, tmp_path: Path) -> None:
    assert sent(uri, "gone", tmp_path, "one") == []
    client(uri).delete_experiment(client(uri).get_experiment_by_name("gone").experiment_id)
    (note,) = sent(uri, "gone", tmp_path, "two")
    assert note == "the experiment 'gone' was deleted in MLflow; runs are in 'gone-2'"
    sent(uri, "gone", tmp_path, "three")
    assert {k: r.data.metrics for k, r in runs(uri, "gone-2").items()} == {"two": {"loss": 1.0}, "three": {"loss": 1.0}}


def test_an_experiment_or_a_run_that_is_deleted_meanwhile(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "meanwhile", str(tmp_path))
    tracker.run("r", params={"a": 1})
    tracker.metrics("r", {"loss": 1.0}, 1)
    wait(tracker)
    client(uri).delete_run(runs(uri, "meanwhile")["r"].info.run_id)
    tracker.metrics("r", {"loss": 2.0}, 2)
    wait(tracker)
    assert runs(uri, "meanwhile")["r"].data.metrics == {"loss": 2.0}
    client(uri).delete_experiment(client(uri).get_experiment_by_name("meanwhile").experiment_id)
    tracker.metrics("r", {"loss": 3.0}, 3)
    tracker.end("r")
    assert tracker.close(60) == ""
    run = runs(uri, "meanwhile-2")["r"]
    assert (run.data.metrics, run.info.status) == ({"loss": 3.0}, "FINISHED")
    assert len(tracker.notes()) == 2


def wait(tracker: Tracker) -> None:
    import time

    deadline = time.monotonic() + 60
    while tracker._waiting():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_names_with_quotes_are_found_again(uri: str, tmp_path: Path) -> None:
    for key in ("driver's cap", 'a "b" c', "a 'b' \"c\"", "driver_s cap"):
        sent(uri, "quotes", tmp_path, key)
        sent(uri, "quotes", tmp_path, key)
    assert len(runs(uri, "quotes")) == 4
    tracker = Tracker(uri, "quotes", str(tmp_path))
    for _ in range(2):
        tracker.register("fss-driver's", source="s3://b/c", key="driver's cap", alias="champion", tags={"bundle": "1"})
    assert tracker.close(60) == ""
    assert tracker.notes() == []
    found = client(uri).search_registered_models()
    assert [len(m.latest_versions) for m in found if m.name == "fss-driver's"] == [1]


def test_metrics_of_classes_with_any_name(uri: str, tmp_path: Path) -> None:
    names = ["iou/driver's", "iou/driver_s", "iou/driver\"s",
             "iou/and/or/", "iou//x", "iou/../y", "iou/" + "long " * 80,
             "iou/杯", "iou/a,b%"]
    tracker = Tracker(uri, "names", str(tmp_path))
    tracker.run("r", params={"class's": {"x|y": 1}, **{f"p{n}": n for n in range(150)}})
    tracker.metrics("r", {name: float(n) for n, name in enumerate(names)}, 1)
    tracker.metrics("r", {f"iou/{n}": 0.5 for n in range(1203)}, 1)
    assert tracker.close(60) == ""
    assert tracker.notes() == []
    run = runs(uri, "names")["r"]
    assert len(run.data.metrics) == len(names) + 1203
    assert run.data.metrics["iou/driver_s"] == 0.0
    assert len(run.data.params) == 151


def test_names_that_mlflow_takes_stay(tmp_path: Path) -> None:
    known = ["loss", "select/loss", "iou/hot dog", "iou/a.b-c:d", "miou"]
    assert metric_names(known) == known


def test_lost_entries_are_counted_with_the_first_reason(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "lost", str(tmp_path))
    tracker.run("r")
    tracker.tags("r", {"k" * 300: "a key longer than MLflow takes"})
    tracker.metrics("r", {"loss": "no number"}, 1)  # type: ignore[dict-item]
    tracker.metrics("r", {"loss": 1.0}, 2)
    assert tracker.close(60) == ""
    (note,) = tracker.notes()
    assert note.startswith("MLflow did not take 2 entries, the first: tags of r: ")
    assert runs(uri, "lost")["r"].data.metrics == {"loss": 1.0}
