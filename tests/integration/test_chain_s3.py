"""The whole chain with shards, checkpoints, images and labels on a real S3 server.

Catches what no single stage's test can: a stage that writes locally what the next one looks for in the bucket, a
Ray worker without the credentials, a listing that is not yet consistent.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from fss_models.errors import FssError
from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from pipelines.base.tracking import tracking_uri
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import load_bundle
from pipelines.config.recipe import Recipe
from pipelines.data.shardset import Shards
from pipelines.evaluation.results import RunResult, read_counts
from pipelines.selection.choose import format_leaderboard, read_leaderboard
from pipelines.selection.promote import promote
from pipelines.sweeps.plan import collect_results

SETTINGS = [
    "data.source.images=90", "data.source.side=96", "data.images_per_part=30",
    'methods=[{"name": "prior", "preset": "debug"}, {"name": "sansa", "preset": "debug"}]', "sweep.folds=[0]",
    "train.steps=6", "train.batch=2", "train.checkpoint_every=3", "train.log_every=2", "train.pool_bytes=64000000",
    "train.selection=published", "train.select.points=2", "eval.episodes=8", "label.chunk=8", "label.batch=4",
]


def demo(out: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    sets = [part for s in SETTINGS for part in ("--set", s)]
    return subprocess.run([sys.executable, "-m", "jobs.cli", "demo", "--out", out, "--json", *sets], cwd=cwd,
                          capture_output=True, text=True, check=False, timeout=600, env=dict(os.environ))


Run = tuple[Store, dict[str, Any]]


@pytest.fixture(scope="module")
def chain(_s3_session: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The workspace in the bucket, and the JSON that the command printed. The cache is the command's meanwhile."""
    cwd = tmp_path_factory.mktemp("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**_s3_session.env, "FSS_CACHE": str(cwd / "cache")}.items():
            patch.setenv(name, value)
        done = demo(f"{_s3_session.url}/chain/out", cwd)
        assert done.returncode == 0, done.stderr[-3000:]
        left = [str(p.relative_to(cwd)) for p in cwd.rglob("*") if p.is_file()]
        assert not [p for p in left if not p.startswith("cache/")], "written outside the output URL and the cache"
        yield Store(f"{_s3_session.url}/chain/out"), json.loads(done.stdout)


@pytest.fixture
def recipe(s3_server: S3Server, chain: Run) -> Recipe:
    """The recipe that the demo left in its workspace."""
    return Recipe.model_validate(yaml.safe_load(chain[0].read_bytes("recipe.yaml")) | {"out": chain[0].url})


@pytest.fixture
def results(recipe: Recipe) -> list[RunResult]:
    """The results of prior and sansa."""
    found = collect_results(recipe)
    assert [r.error for r in found] == [""] * 2
    return found


def test_every_stage_left_its_files_in_the_bucket(s3_server: S3Server, chain: Run) -> None:
    store, printed = chain
    files = store.list()
    for pattern in (r"shards/shapes/manifest\.json", r"shards/shapes/images/part-\d+\.parquet",
                    r"shards/shapes/blocks/train/.*\.parquet", r"runs/shapes-sansa-.*/checkpoint_0000006/.*",
                    r"runs/shapes-sansa-.*/bundle/model\.safetensors", r"runs/shapes-prior-.*/result\.json",
                    r"leaderboard\.json", r"champion/bundle\.json", r"demo_images/.*\.jpg", r"labels/.*/labels\.json",
                    r"labels/.*/parts/chunk-000000\.parquet", r"report\.html", r"recipe\.yaml"):
        assert any(re.fullmatch(pattern, f) for f in files), pattern
    assert printed["report"] == store.path("report.html")
    assert [s["name"] for s in printed["stages"]][1] == "build shards"


def test_every_photo_is_labelled_once(s3_server: S3Server, chain: Run) -> None:
    store, _ = chain
    fs, root = store.pyarrow()
    parts = [f"{root}/{n}" for n in store.list("labels", suffix=".parquet") if "/parts/" in n]
    tables = [pq.read_table(p, filesystem=fs, columns=["file_name"]) for p in parts]
    names = [name for table in tables for name in table["file_name"].to_pylist()]
    photos = [n.removeprefix("demo_images/") for n in store.list("demo_images")]
    assert sorted(names) == sorted(photos)
    assert len(parts) > 1
    labels = store.read_json(next(n for n in store.list("labels", suffix="labels.json")))
    assert len(labels["images"]) == len(photos)


def test_the_page_shows_this_run(s3_server: S3Server, chain: Run) -> None:
    store, _ = chain
    board, page = store.read_json("leaderboard.json"), store.read_bytes("report.html").decode()
    assert board["reason"] in page
    assert page.count("data:image/jpeg") > 10
    assert "draws another episode list" not in page


def test_results_agree_with_their_episodes(recipe: Recipe, results: list[RunResult]) -> None:
    """Would catch a broken checkpoint hand-over between Ray Train and the loop, and figures of other episodes."""
    test_photos = {r["sha256"][:16] for r in Shards(results[0].spec.shards).images("test")}
    for r in results:
        counts = read_counts(Workspace(recipe.out).run(r.run), r)
        assert len(counts) == r.episodes == 8
        assert 0 <= r.interval[0] <= r.interval[1] <= 1
        assert r.miou == pytest.approx(sum(r.per_class.values()) / len(r.per_class))
        assert r.untrained == (r.spec.method.name == "prior")
        info = load_bundle(r.bundle)[1]
        assert not test_photos & set(info.trained_on)
        assert bool(info.trained_on) == (r.spec.method.name == "sansa")
    assert results[0].list_hash == results[1].list_hash


def test_steps_chosen_on_test_episodes_are_told(recipe: Recipe, results: list[RunResult]) -> None:
    """Fails if a table hides that the published way of choosing was used, or if files of the choice are left."""
    board = read_leaderboard(recipe)
    assert "test episodes themselves" in board.selection
    assert board.selection in format_leaderboard(board)
    for r in results[1:]:
        chosen = r.details["selection"]
        assert set(chosen["grid"]) == {"3", "6"}
        assert chosen["steps"] == r.steps == Store(r.bundle).read_json("bundle.json")["provenance"]["steps"]
        left = Store(Workspace(recipe.out).run(r.run)).list()
        assert not [n for n in left if n.startswith(("selection/", "grid/"))]


def test_the_winner_is_promoted_with_its_figures(recipe: Recipe, results: list[RunResult]) -> None:
    board = read_leaderboard(recipe)
    assert board.winner == "sansa", "the prior is untrained here and cannot win"
    assert all(r.seconds > 0 for r in board.rows)
    model, info = load_bundle(Workspace(recipe.out).champion)
    assert model.method == "sansa"
    assert info.metrics["cross_validated"]["miou"] == pytest.approx(board.rows[0].miou)
    assert len(info.classes) == len(Shards(results[0].spec.shards).manifest.classes)
    with pytest.raises(FssError, match="has other methods than the recipe"):
        promote(recipe.model_copy(update={"methods": recipe.methods[:1]}))
    with pytest.raises(FssError, match="made with other settings than the recipe's"):
        promote(recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": 3})}))


def test_everything_is_tracked(recipe: Recipe, results: list[RunResult]) -> None:
    import mlflow
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri(recipe.out, recipe.tracking))
    experiment = client.get_experiment_by_name(recipe.project_name)
    runs = {r.data.tags["fss.run"]: r for r in client.search_runs([experiment.experiment_id])}
    for r in results:
        run = runs[r.run]
        assert run.data.tags["mlflow.parentRunId"] in {x.info.run_id for k, x in runs.items() if k.startswith("sweep-")}
        assert run.data.metrics["miou"] == pytest.approx(r.miou)
        assert run.data.tags["fss.list"] == r.list_hash
        assert run.data.tags["fss.data"] == r.spec.data_hash
        assert run.info.status == "FINISHED"
        for name, value in r.per_class.items():
            assert run.data.metrics[f"iou/{name}"] == pytest.approx(value)
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [m.step for m in history] == ([2, 3, 4, 6] if r.spec.trains else [])
    version = client.get_model_version_by_alias(f"fss-{recipe.project_name}", "champion")
    assert version.source == Workspace(recipe.out).champion
    assert version.tags["fss.bundle"] == load_bundle(version.source)[1].bundle_id
    twin = client.get_model_version_by_alias(f"fss-{recipe.project_name}-pyfunc", "champion")
    assert twin.tags == version.tags
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert (model.source_run_id, model.status, model.artifact_location) == (version.run_id, "READY", twin.source)
    loaded = mlflow.pyfunc.load_model(twin.source)
    assert loaded._model_impl.predictor.info.bundle_id == version.tags["fss.bundle"]


@pytest.mark.slow
def test_run_again_it_finds_everything_done(s3_server: S3Server, chain: Run, tmp_path: Path) -> None:
    store, first = chain
    kept = re.compile(r"(shards|labels)/.*|.*\.safetensors")
    before = {n: s for n, s in store.sizes().items() if kept.fullmatch(n)}
    done = demo(store.url, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "everything is labelled already" in done.stderr
    assert "runs are already finished" in done.stderr
    assert {n: s for n, s in store.sizes().items() if n in before} == before
    times = {s["name"]: s["seconds"] for s in json.loads(done.stdout)["stages"]}
    assert times["train and compare"] == next(s["seconds"] for s in first["stages"] if s["name"] == "train and compare")
