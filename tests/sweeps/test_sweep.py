"""One real cluster: sweeps, what fails in them, and evaluation, at the debug preset."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fss_models.errors import FssError
from fss_models.shipped.files import TrainingData
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.config.train import SelectConfig
from pipelines.data.ensure import ensure_shards
from pipelines.data.shardset import Shards
from pipelines.evaluation.drive import failed_result, scoring_config
from pipelines.evaluation.score import score_bundle
from pipelines.report.collect import collect
from pipelines.selection.choose import format_leaderboard, make_leaderboard
from pipelines.selection.promote import _refit_spec, promote
from pipelines.sweeps.plan import collect_results, plan_sweep
from pipelines.sweeps.sweep import run_one, run_sweep
from pipelines.training import worker
from pipelines.training.context import RunContext
from tests.fixtures.command import Fss
from tests.fixtures.receiver import Receiver
from tests.fss_models.shipped_case import ship_random


def test_selection_and_a_failed_run_are_told(debug_recipe: Recipe, ray_cluster: object) -> None:
    """Would catch: a driver that holds the CPU its workers wait for, a phase that finds the other's checkpoints, a
    table that hides how it was done, a failed run that stops the others.

    The trunk of debug has no stage 7, which shows only when the worker builds the model.
    """
    broken = MethodConfig(name="sansa", preset="debug", config={"stages": [7]})
    select = SelectConfig(points=2, episodes=6)
    recipe = debug_recipe.model_copy(update={
        "sweep": debug_recipe.sweep.model_copy(update={"folds": [0], "retries": 0}),
        "methods": [debug_recipe.methods[1], broken],
        "train": debug_recipe.train.model_copy(update={"selection": "base-holdout", "select": select})})
    good, bad = run_sweep(recipe)
    assert (good.error, bad.error) == ("", "the trunk has no stage 7 (stages are 0 to 3)")
    assert [r.error for r in collect_results(recipe)] == ["", bad.error]
    board = make_leaderboard(recipe, [good, bad])
    assert board.rows[1].failed == {bad.run: bad.error}
    assert board.winner == board.rows[0].label, "a method with a failed run cannot win"

    chosen = good.details["selection"]
    assert set(chosen["grid"]) == {"2", "4"}
    assert chosen["steps"] == good.steps == Store(good.bundle).read_json("bundle.json")["provenance"]["steps"]
    assert "3 held-out base classes" in board.selection
    assert board.selection in format_leaderboard(board)
    assert board.rows[0].steps == good.steps
    left = Store(Workspace(recipe.out).run(good.run)).list()
    assert not [n for n in left if n.startswith(("selection/", "grid/"))]
    assert _refit_spec(recipe, board, board.rows[0]).steps == good.steps


def test_a_finished_sweep_computes_nothing_new(debug_recipe: Recipe, ray_cluster: object, receiver: Receiver,
                                               monkeypatch: pytest.MonkeyPatch,
                                               capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does it tell its receiver again."""
    monkeypatch.setenv("FSS_WEBHOOK_SECRET", "a secret")
    recipe = debug_recipe.model_copy(update={
        "methods": debug_recipe.methods[:1],
        "sweep": debug_recipe.sweep.model_copy(update={"notify": receiver.url})})
    results = run_sweep(recipe)
    assert [r.error for r in results] == [""] * 2
    assert results[0].list_hash != results[1].list_hash
    capfd.readouterr()
    assert run_sweep(recipe) == results
    assert "2 of 2 runs are already finished" in capfd.readouterr().err
    (sent,) = receiver.got
    assert sent.event["type"] == "sweep.done"
    assert sent.event["data"] == {"sweep": Store(recipe.out).name, "state": "done", "out": Store(recipe.out).url,
                                  "runs": 2, "failed": 0}
    assert collect_results(recipe) == results


def test_runs_on_all_classes_end_with_their_bundles(debug_recipe: Recipe, ray_cluster: object, fss: Fss,
                                                    tmp_path: Path) -> None:
    """They have no held-out classes, so no leaderboard: that is said, and is no failure of the sweep."""
    recipe = debug_recipe.model_copy(update={
        "methods": debug_recipe.methods[:1], "sweep": debug_recipe.sweep.model_copy(update={"folds": [-1]})})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    done = fss("sweep", "run", "--recipe", str(tmp_path / "recipe.yaml"))
    (result,) = collect_results(recipe)
    assert done.returncode == 0, done.stderr
    assert Store(result.bundle).exists("bundle.json")
    assert f"bundles: {result.bundle}; no leaderboard: the runs are of all classes" in done.stdout
    for ask in (lambda: make_leaderboard(recipe, [result]), lambda: promote(recipe), lambda: collect(recipe)):
        with pytest.raises(FssError, match="a leaderboard needs held-out folds"):
            ask()


@pytest.mark.parametrize("world", [1, 2])
def test_a_mistake_on_any_worker_ends_all_with_its_line(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train hands back the first worker's value alone: returned by another, the first waits for ever."""
    from ray.train import WorkerGroupError

    def train(*_: object) -> None:
        raise FssError("is not there", where="weights.pt")

    context = SimpleNamespace(get_world_rank=lambda: world - 1, get_world_size=lambda: world)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: "cpu")
    monkeypatch.setattr(worker, "_train", train)
    method = MethodConfig(name="sansa", preset="debug")
    run = RunContext(spec=RunSpec(dataset="shapes", shards="x", data_hash="d", fold=0, method=method), runs="runs")
    config = {"run": run, "open_task": worker.open_run}
    if world == 1:
        with pytest.raises(FssError, match=r"^weights.pt: is not there$"):
            worker.train_worker(config).result()
        return
    with pytest.raises(FssError) as mistake:
        worker.train_worker(config)
    lost = RuntimeError("[gloo] Connection closed by peer")
    result = failed_result(run, scoring_config(Recipe()), WorkerGroupError("several", {0: lost, 1: mistake.value}))
    assert result.error == "weights.pt: is not there"
    assert not result.retryable


def test_bundle_trained_on_a_test_photo_is_refused(debug_recipe: Recipe, ray_cluster: object) -> None:
    result = run_one(debug_recipe, method="prior", fold=0, seed=0)
    again, _ = score_bundle(debug_recipe, ensure_shards(debug_recipe), bundle=result.bundle, fold=0)
    assert again.miou == pytest.approx(result.miou)
    store = Store(result.bundle)
    info = store.read_json("bundle.json")
    shards = Shards(result.spec.shards)
    from pipelines.data.folds import FoldData

    episode = next(iter(FoldData.open(shards.url, 0).episodes(debug_recipe.eval)))
    store.write_json("bundle.json", info | {"trained_on": [shards.rows[episode.query]["sha256"][:16]]})
    with pytest.raises(FssError, match=r"was trained on 1 of the .* test photos"):
        score_bundle(debug_recipe, ensure_shards(debug_recipe), bundle=result.bundle, fold=0)


def test_shipped_weights_that_saw_test_photos_are_refused_before_training(
        debug_recipe: Recipe, ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(Workspace(debug_recipe.out).shards(debug_recipe.data.name))
    row = next(r for r in shards.rows.values() if r["split"] == "test")
    seen = TrainingData(name="shapes", licence="ours", photos=(row["sha256"][:16],))
    ship_random(tmp_path / "shipped", data=(seen,))
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "shipped"))

    def planned(**method: str) -> int:
        return len(plan_sweep(debug_recipe.model_copy(update={"methods": [MethodConfig(**method)]})))

    with pytest.raises(FssError, match=f"ship for nano were trained on 1 of .* test photos .first: {row['file_name']}"):
        planned(name="sansa")
    for other in ({"name": "sansa", "weights": "random"}, {"name": "sansa", "preset": "debug"}, {"name": "prior"}):
        assert planned(**other) == 2


def test_mistakes_are_named(debug_recipe: Recipe, ray_cluster: object, tmp_path: Path) -> None:
    with pytest.raises(FssError, match="there is no fold 9"):
        run_one(debug_recipe, method="sansa", fold=9, seed=0)
    with pytest.raises(FssError, match="no method 'sanza'"):
        run_one(debug_recipe, method="sanza", fold=0, seed=0)
    greedy = debug_recipe.sweep.model_copy(update={"cpus_per_run": 64.0})
    with pytest.raises(FssError, match="needs 64 CPU, but the cluster has"):
        run_one(debug_recipe.model_copy(update={"sweep": greedy}), method="prior", fold=0, seed=0)
    with pytest.raises(FssError, match="there is no bundle here"):
        score_bundle(debug_recipe, ensure_shards(debug_recipe), bundle=str(tmp_path), fold=0)
    for wrong, message in ((MethodConfig(name="sansa", preset="debug", config={"factr": 1}), "unknown setting 'factr'"),
                           (MethodConfig(name="sansa", preset="debgu"), "unknown preset 'debgu'"),
                           (MethodConfig(name="sanza"), "unknown method 'sanza'"),
                           (MethodConfig(name="sansa", weights=str(tmp_path / "sam2.pt")), "no such weight file")):
        with pytest.raises(FssError, match=message):
            run_sweep(debug_recipe.model_copy(update={"methods": [wrong]}))
