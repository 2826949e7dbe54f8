"""Kills, several workers and object storage: slow, each on real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from fss_models.errors import FssError
from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from pipelines.base.tracking import tracking_uri
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_info
from pipelines.config.recipe import Recipe
from pipelines.sweeps.owner import cancel
from pipelines.sweeps.sweep import run_one, run_sweep
from pipelines.sweeps.watch import read_state
from tests.sweeps.faults import plant, struck

pytestmark = pytest.mark.slow
FSS = str(Path(sys.executable).parent / "fss")


def longer(recipe: Recipe, **train: object) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def test_killed_training_goes_on_and_ends_with_the_same_numbers(
    debug_recipe: Recipe, ray_cluster: object, tmp_path: Path
) -> None:
    """`kill -9` of a real `fss train` between two checkpoints, then the same command: bit-equal to one left alone."""
    recipe = longer(debug_recipe, steps=60, checkpoint_every=5, log_every=5)
    undisturbed = run_one(recipe, method="sansa", fold=0, seed=0)
    assert undisturbed.error == ""
    other = tmp_path / "killed"
    (other / "shards").mkdir(parents=True)
    (other / "shards" / "shapes").symlink_to(Path(Workspace(recipe.out).shards("shapes")).resolve())
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_copy(update={"out": str(other)}).model_dump(mode="json")))
    command = [FSS, "train", "--recipe", str(file), "--method", "sansa", "--json"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = other / "runs" / undisturbed.run
    before = _wait_for_checkpoint(folder, process)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not (folder / "result.json").exists(), "it finished before it was killed; raise train.steps"
    time.sleep(5)  # the orphaned cluster notices and ends

    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr[-2000:]
    result = json.loads(again.stdout)
    rows = json.loads((folder / "history.json").read_text())
    assert rows[:len(before)] == before, "times differ: it began anew instead of going on"
    assert [r["step"] for r in rows] == list(range(5, 61, 5))
    assert result["bundle_id"] == undisturbed.bundle_id
    assert result["miou"] == undisturbed.miou


def test_a_cancelled_sweep_leaves_no_run_open_in_mlflow(debug_recipe: Recipe, ray_cluster: object) -> None:
    """The run under way, the runs that wait, and the sweep itself are ended as KILLED."""
    recipe = longer(debug_recipe, steps=5000, checkpoint_every=1000)

    def cancel_it() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            with suppress(FssError):
                if any(r.status == "running" for r in read_state(recipe.out).runs):
                    break
            time.sleep(0.2)
        cancel(recipe.out)

    thread = threading.Thread(target=cancel_it)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(recipe)
    thread.join()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri(recipe.out))
    runs = client.search_runs([client.get_experiment_by_name("shapes").experiment_id])
    found = {r.data.tags["fss.run"]: r.info.status for r in runs}
    assert len(found) == 5
    assert set(found.values()) <= {"FINISHED", "KILLED"}
    assert [status for run, status in found.items() if run.startswith("sweep-")] == ["KILLED"]


def _wait_for_checkpoint(folder: Path, process: subprocess.Popen[bytes]) -> list[dict[str, float]]:
    """The history in the first checkpoint that Ray Train has acknowledged."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before a checkpoint was written"
        if (folder / "checkpoint_manager_snapshot.json").exists():
            snapshot = (folder / "checkpoint_manager_snapshot.json").read_text()
            for kept in sorted(folder.glob("checkpoint_0*")):
                if kept.name in snapshot:
                    rows: list[dict[str, float]] = json.loads((kept / "history.json").read_text())
                    return rows
        time.sleep(0.05)
    raise AssertionError("no checkpoint in four minutes")


PLACES = {
    "forward": {"function": "pipelines.training.loop._step", "call": 7},
    "checkpoint upload": {"function": "ray.train.v2._internal.execution.storage._pyarrow_fs_copy_files", "call": 2,
                          "half": True},
    "evaluation": {"function": "pipelines.evaluation.evaluate._score_batch", "call": 2},
    "driver": {"function": "pipelines.evaluation.drive._train", "call": 1},
    "between folds": {},
}


@pytest.fixture(scope="module")
def quiet_sweep(shapes_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Results of an undisturbed sweep of two folds."""
    return _sweep(tmp_path_factory.mktemp("quiet"), shapes_shards)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_anywhere_changes_no_number(place: str, shapes_shards: str, quiet_sweep: dict[str, object],
                                           tmp_path: Path) -> None:
    """SIGKILL of the worker that trains or scores, of a run's driver (the same command goes on), or of the command."""
    if place == "between folds":
        found = _sweep(tmp_path, shapes_shards, kill_after_first=True)
    else:
        fault = plant(tmp_path / "fault", **PLACES[place])  # type: ignore[arg-type]
        found = _sweep(tmp_path, shapes_shards, env=fault)
        assert struck(tmp_path / "fault"), "the fault did not come about"
    assert found == quiet_sweep


def _sweep(folder: Path, shards: str, *, env: dict[str, str] | None = None, kill_after_first: bool = False
           ) -> dict[str, object]:
    """`fss sweep run` of one method on two folds, one after the other: run -> tensors, scores, losses."""
    out = folder / "out"
    (out / "shards").mkdir(parents=True)
    (out / "shards" / "shapes").symlink_to(shards)
    recipe = Recipe.model_validate({
        "name": "killed", "out": str(out), "data": json.loads((Path(shards) / "manifest.json").read_text())["source"],
        "methods": [{"name": "sansa", "preset": "debug"}], "eval": {"episodes": 20, "batch": 4},
        "train": {"steps": 10, "batch": 2, "checkpoint_every": 4, "log_every": 2, "pool_bytes": 64_000_000},
        "sweep": {"folds": [0, 1], "parallel": 1}})
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [FSS, "sweep", "run", "--recipe", str(file), "--json"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | (env or {})
    if kill_after_first:
        process = subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 400
        while not list(out.glob("runs/*/result.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        assert len(list(out.glob("runs/*/result.json"))) == 1
        time.sleep(5)  # the orphaned cluster notices and ends
        command = [FSS, "sweep", "resume", "--out", str(out), "--json"]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = json.loads(done.stdout)["runs"]
    return {r["run"]: (r["bundle_id"], r["miou"], r["per_class"], r["list_hash"],
                       [h["loss"] for h in json.loads((out / "runs" / r["run"] / "history.json").read_text())])
            for r in runs}


def test_two_workers_share_a_run(debug_recipe: Recipe, ray_cluster: object) -> None:
    """DDP over gloo: fails if ranks see the same clips' randomness wrongly or a checkpoint lacks a rank's part."""
    sweep = debug_recipe.sweep.model_copy(update={"cpus_per_run": 1.0})
    recipe = longer(debug_recipe, workers=2, batch=4).model_copy(update={"sweep": sweep})
    result = run_one(recipe, method="sansa", fold=0, seed=0)
    assert result.error == ""
    folder = Path(Workspace(recipe.out).run(result.run))
    last = max(folder.glob("checkpoint_0*"))
    assert {"rank-0.pt", "rank-1.pt", "optimiser.pt", "model.safetensors"} <= {p.name for p in last.iterdir()}


def test_sweep_and_promotion_in_object_storage(debug_recipe: Recipe, s3_server: S3Server, tmp_path: Path) -> None:
    """Shards, checkpoints, bundles and results in s3://; the tracking file is local, under the cache."""
    out = f"{s3_server.url}/training"
    sweep = debug_recipe.sweep.model_copy(update={"folds": [0]})
    file = tmp_path / "recipe.yaml"
    recipe = debug_recipe.model_copy(update={"out": out, "sweep": sweep})
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"FSS_CACHE": str(tmp_path / "cache")}

    def fss(*words: str) -> dict[str, object]:
        done = subprocess.run([FSS, *words, "--recipe", str(file), "--json"], env=env, capture_output=True, text=True,
                              timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        document: dict[str, object] = json.loads(done.stdout)
        return document

    runs = fss("sweep", "run")["runs"]
    assert [r["error"] for r in runs] == ["", ""]
    assert any("checkpoint_" in name for name in Store(Workspace(out).run(runs[1]["run"])).list())
    assert fss("leaderboard")["winner"] == "sansa"
    assert fss("promote")["tensors_sha256"] == read_bundle_info(Workspace(out).champion).tensors_sha256
    assert list((tmp_path / "cache" / "mlflow").glob("*/mlflow.db"))
    assert not Path(out).exists()
