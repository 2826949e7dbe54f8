"""The tracking spool: order, identity of runs, replay after a dead writer and after a server that was away."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.base.tracking import Tracker, spool_folder, tracking_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One migrated SQLite store for the module: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def client(uri: str) -> object:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def runs(uri: str, experiment: str) -> dict[str, object]:
    found = client(uri)
    known = found.get_experiment_by_name(experiment)
    return {r.data.tags["fss.run"]: r for r in found.search_runs([known.experiment_id])}


def test_parent_child_params_metrics(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "tree", str(tmp_path))
    tracker.run("sweep", params={"train": {"lr": 0.1}})
    tracker.run("run-0", parent="sweep", tags={"data": "abc"})
    for step in (10, 20):
        tracker.metrics("run-0", {"loss": 1 / step, "iou/hot dog (a)": 0.5}, step)
    tracker.end("run-0")
    assert tracker.close(60) == ""
    found = runs(uri, "tree")
    assert found["run-0"].data.tags["mlflow.parentRunId"] == found["sweep"].info.run_id
    assert found["sweep"].data.params == {"train.lr": "0.1"}
    assert found["run-0"].data.metrics == {"loss": 0.05, "iou/hot dog _a_": 0.5}
    assert found["run-0"].info.status == "FINISHED"


def test_resumed_run_keeps_its_id_and_no_step_twice(uri: str, tmp_path: Path) -> None:
    for steps in ((1, 2, 3), (2, 3, 4)):  # killed after 3, resumed from the checkpoint of step 1
        tracker = Tracker(uri, "resume", str(tmp_path))
        tracker.run("r", params={"seed": 0})
        for step in steps:
            tracker.metrics("r", {"loss": float(step)}, step)
        assert tracker.close(60) == ""
    found = runs(uri, "resume")
    assert list(found) == ["r"]
    history = client(uri).get_metric_history(found["r"].info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_refused_entry_does_not_block_the_rest(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "refused", str(tmp_path))
    tracker.run("r")
    tracker.tags("r", {"k" * 300: "a key longer than MLflow takes"})
    tracker.metrics("r", {"loss": 1.0}, 1)
    assert tracker.close(60) == ""
    assert runs(uri, "refused")["r"].data.metrics == {"loss": 1.0}


def test_registered_version_is_the_same_on_a_repeat(uri: str, tmp_path: Path) -> None:
    for _ in range(2):
        tracker = Tracker(uri, "registry", str(tmp_path))
        tracker.run("promote")
        tracker.register("fss-x", source="s3://b/champion", key="promote", alias="champion", tags={"bundle": "1"})
        assert tracker.close(60) == ""
    versions = client(uri).search_model_versions("name = 'fss-x'")
    assert len(versions) == 1
    assert client(uri).get_model_version_by_alias("fss-x", "champion").source == "s3://b/champion"


def test_spool_of_a_killed_writer_is_sent_by_the_next(uri: str, tmp_path: Path) -> None:
    """The writer dies with entries in its spool (its server was away) and a torn last line."""
    code = (
        "import os, sys; from pipelines.base.tracking import Tracker\n"
        "t = Tracker('http://127.0.0.1:9', 'killed', sys.argv[1]); t.run('r'); t.metrics('r', {'loss': 3.0}, 7)\n"
        "t._file.write(b'{\"op\": \"met'); t._file.flush(); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60).returncode == 9
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    tracker = Tracker(uri, "killed", str(tmp_path))
    assert tracker.close(60) == ""
    assert runs(uri, "killed")["r"].data.metrics == {"loss": 3.0}
    assert list(tmp_path.glob("*.jsonl")) == [tracker.path]


def test_runs_of_a_killed_writer_do_not_stay_open(uri: str, tmp_path: Path) -> None:
    """One run was ended, one is continued by the next command, and one by none: that one is ended as KILLED."""
    code = (
        "import os, sys; from pipelines.base.tracking import Tracker\n"
        "t = Tracker('http://127.0.0.1:9', 'open', sys.argv[1])\n"
        "[t.run(r) for r in ('ended', 'continued', 'left')]; t.end('ended'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60).returncode == 9
    tracker = Tracker(uri, "open", str(tmp_path))
    tracker.run("continued")
    assert tracker.close(60) == ""
    assert {key: run.info.status for key, run in runs(uri, "open").items()} == {  # type: ignore[attr-defined]
        "ended": "FINISHED", "continued": "RUNNING", "left": "KILLED"}


def test_default_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local, remote = str(tmp_path / "out"), "s3://bucket/ws"
    assert tracking_uri(local) == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert tracking_uri(remote).startswith(f"sqlite:///{tmp_path}/cache/mlflow/")
    assert str(spool_folder(remote)).startswith(str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://cluster:5000")
    assert tracking_uri(local) == "http://cluster:5000"
    assert tracking_uri(local, "http://host:5000") == "http://host:5000"


def test_files_go_beside_the_database_and_not_where_the_command_runs(tmp_path: Path) -> None:
    """Two deliveries leave one artifact; a file that is gone by then holds nothing up."""
    place = tmp_path / "out"
    (place / "run").mkdir(parents=True)
    (place / "run" / "overlays.png").write_bytes(b"png")
    where = f"sqlite:///{place / 'mlflow.db'}"
    for _ in range(2):
        tracker = Tracker(where, "files", str(place / "spool"))
        tracker.run("r")
        tracker.artifact("r", str(place / "run" / "overlays.png"))
        tracker.artifact("r", str(place / "gone" / "overlays.png"))
        tracker.metrics("r", {"miou": 0.5, "loss": 1.0}, 3)
        assert tracker.progress() == {"r": {"miou": 0.5, "loss": 1.0}}
        assert tracker.close(120) == ""
    run = runs(where, "files")["r"]
    assert [a.path for a in client(where).list_artifacts(run.info.run_id)] == ["overlays.png"]
    assert len(list((place / "mlartifacts").rglob("overlays.png"))) == 1
    assert not Path("mlruns").exists()


def test_progress_begins_anew_with_each_stage(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "stages", str(tmp_path))
    for stage, step in (("selecting", 4), ("selecting", 2), ("training", 1)):
        tracker.at_step("r", step, stage)
    assert tracker.progress()["r"] == {"stage": "training", "step": 1}
    tracker.close(60)


@pytest.fixture
def port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def late_server(port: int, tmp_path: Path) -> Iterator[object]:
    """A function that starts a real MLflow server, always on the same file; it returns its process."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        args = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
                "--artifacts-destination", str(tmp_path / "artifacts")]
        with (tmp_path / "server.log").open("wb") as log:
            command = [str(Path(sys.executable).parent / "mlflow"), *args]
            started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.mark.slow
def test_server_that_is_away_costs_nothing_and_gets_everything(port: int, tmp_path: Path, late_server: object) -> None:
    uri = f"http://127.0.0.1:{port}"
    tracker = Tracker(uri, "late", str(tmp_path / "spool"))
    began = time.monotonic()
    tracker.run("r", params={"a": 1})
    for step in range(1, 6):
        tracker.metrics("r", {"loss": float(step)}, step)
    assert time.monotonic() - began < 1.0, "logging waited for the server"
    assert "does not accept entries" in tracker.close(1.0)
    late_server()
    second = Tracker(uri, "late", str(tmp_path / "spool"))
    assert second.close(90) == ""
    history = client(uri).get_metric_history(runs(uri, "late")["r"].info.run_id, "loss")
    assert [m.step for m in history] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_server_killed_for_a_minute_gets_everything_in_order(port: int, tmp_path: Path, late_server: object) -> None:
    """SIGKILL of the server and its workers between two entries, a minute of entries, the same server again."""
    uri = f"http://127.0.0.1:{port}"
    server = late_server()  # type: ignore[operator]
    tracker = Tracker(uri, "outage", str(tmp_path / "spool"))
    tracker.run("r", params={"a": 1})
    tracker.metrics("r", {"loss": 1.0}, 1)
    _wait_for(lambda: "r" in runs(uri, "outage"), 120)
    os.killpg(server.pid, 9)
    server.wait()
    slowest, began = 0.0, time.monotonic()
    for step in range(2, 62):
        before = time.monotonic()
        tracker.metrics("r", {"loss": float(step), "iou/cat": step / 100}, step)
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(max(0.0, began + step - 1 - time.monotonic()))
    tracker.end("r")
    assert slowest < 1.0, "logging waited for the server"
    late_server()  # type: ignore[operator]
    assert tracker.close(180) == ""
    run = runs(uri, "outage")["r"]
    history = client(uri).get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in history] == list(range(1, 62))
    assert [m.timestamp for m in history] == sorted(m.timestamp for m in history)
    assert history[-1].timestamp - history[1].timestamp > 50_000, "entries carry the time of the event"
    assert run.info.status == "FINISHED"


def _wait_for(true: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # the server is on its way
            if true():  # type: ignore[operator]
                return
        time.sleep(0.5)
    raise AssertionError("not in time")
