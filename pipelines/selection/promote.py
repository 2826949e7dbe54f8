"""`promote`: the winner's method and configuration is refitted on all classes, checked, bundled and registered.

Cross-validation chooses a method and its configuration, not the weights of a fold. The refit is trained on the train
photos of all classes, for `promote.steps` steps if given, else for the number of steps of the runs (the median, where
it was chosen fold by fold).

The gate: the refit is scored on an episode list over all classes, drawn from test photos, which no training opens. It
was trained on these classes, so it should score no worse than the cross-validated figure, which is of novel classes.
The gate is closed if the 95 % interval of the refit's mIoU lies wholly below that of the cross-validated mIoU. The
bundle states the cross-validated figure as its quality, and beside it the gate's figure as "held_out_images".
"""

from __future__ import annotations

import json
from typing import Any

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from pipelines.base.cluster import cluster
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.base.version import code_version
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_info, replace_bundle
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec, shipped_sha
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.data.ensure import ensure_mixture, ensure_shards, mixture_shares
from pipelines.data.folds import resolve_base_learner, resolve_steps
from pipelines.evaluation.results import RunResult
from pipelines.inference.mlflow_model import mlflow_model
from pipelines.selection.calibrate import calibrate_refit
from pipelines.selection.choose import Leaderboard, LeaderboardRow, read_leaderboard
from pipelines.sweeps.execute import tracking
from pipelines.sweeps.matrix import only_cell
from pipelines.sweeps.plan import plan_sweep
from pipelines.sweeps.sweep import run_specs

ALIAS = "champion"


def registered_model(recipe: Recipe) -> str:
    """Name of the recipe's model in MLflow's registry."""
    return f"fss-{recipe.project_name}"


def registered_pyfunc(recipe: Recipe) -> str:
    """Name of its twin there that MLflow itself can load and serve."""
    return f"{registered_model(recipe)}-pyfunc"


def promote(recipe: Recipe) -> BundleInfo:
    """Refit, check and publish the winner; returns the champion's bundle. A killed promotion resumes when run again.

    Raises `FssError` without a leaderboard or a winner, for a leaderboard of other methods, settings or data, if the
    refit fails, and if the gate is closed. The earlier champion then stays in place.
    """
    recipe = only_cell(recipe)
    board = read_leaderboard(recipe)
    if {r.method.key for r in board.rows} != {m.key for m in recipe.methods}:
        raise FssError("the leaderboard has other methods than the recipe", where=Workspace(recipe.out).leaderboard,
                       hint="run `fss sweep run` with the same recipe and settings, then promote")
    row = next((r for r in board.rows if r.label == board.winner), None)
    if row is None:
        raise FssError("the leaderboard has no winner", where=Workspace(recipe.out).leaderboard, hint=board.reason)
    spec = _refit_spec(recipe, board, row)
    with cluster() as ray:
        say(f"refitting {row.label} on all classes")
        result = run_specs(recipe, [spec], ray)[0]
        if result.error:
            raise FssError(f"the refit failed: {result.error}", where=spec.name)
        check_gate(row, result)
        calibrate_refit(recipe, result.bundle, spec.shards, ray)
        info = _publish(recipe, board, row, result)
        with tracking(recipe, ray) as tracker:
            tags = {"fss.bundle": info.bundle_id, "fss.method": row.method.name, "fss.preset": row.method.preset,
                    "fss.data": board.data_hash, "fss.cv_miou": f"{row.miou:.4f}",
                    "fss.gate_miou": f"{result.miou:.4f}", "fss.gate": "passed"}
            place = Workspace(recipe.out).champion
            tracker.register.remote(registered_model(recipe), source=place, key=result.run, alias=ALIAS, tags=tags)
            tracker.model.remote(registered_pyfunc(recipe), key=result.run, alias=ALIAS, tags=tags,
                                 **mlflow_model(info.bundle_id, [place, result.bundle]))
    return info


def _refit_spec(recipe: Recipe, board: Leaderboard, row: LeaderboardRow) -> RunSpec:
    shards, place = ensure_shards(recipe), Workspace(recipe.out).leaderboard
    manifest = shards.manifest
    if manifest.content_hash != board.data_hash:
        raise FssError("the leaderboard is of other shards than the recipe's", where=place,
                       hint="run `fss sweep run` again")
    if not set(row.runs) <= {s.name for s in plan_sweep(recipe)}:
        raise FssError("the leaderboard was made with other settings than the recipe's", where=place,
                       hint="run `fss sweep run` with the same recipe and settings, then promote")
    train = _refit_training(recipe, row, resolve_steps(recipe.train, shards, None))
    return RunSpec(
        dataset=recipe.data.name, shards=Workspace(recipe.out).shards(recipe.data.name),
        data_hash=manifest.content_hash, fold=None, method=row.method, seed=recipe.sweep.seeds[0],
        train=train, mixture=mixture_shares(recipe, ensure_mixture(recipe)),
        shipped=shipped_sha(row.method), base_learner=resolve_base_learner(recipe, row.method, shards, None))


def _refit_training(recipe: Recipe, row: LeaderboardRow, train: TrainConfig) -> TrainConfig:
    """The training section of the refit. Its steps are fixed beforehand: the recipe's, or the folds' chosen median."""
    fixed = {"selection": "none", "select": SelectConfig()}
    if recipe.promote.steps:
        return train.model_copy(update={**fixed, "steps": recipe.promote.steps, "stop": 0})
    if train.selection == "none":
        return train
    return train.model_copy(update={**fixed, "stop": min(row.steps, train.steps)})


def check_gate(row: LeaderboardRow, result: RunResult) -> None:
    """Raise `FssError` if the refit scores significantly less on held-out photos than in cross-validation."""
    low = _interval(row)[0]
    if result.interval[1] < low:
        raise FssError(
            f"the refit scores {result.miou * 100:.1f} (at most {result.interval[1] * 100:.1f}) on held-out photos, "
            f"significantly less than the cross-validated {row.miou * 100:.1f} (at least {low * 100:.1f})",
            where=result.run, hint="raise promote.steps, or look at the run's history.json; the champion is unchanged")


def _interval(row: LeaderboardRow) -> list[float]:
    """95 % interval of the mIoU. Old leaderboards have only the interval of the recipe's metric."""
    return row.miou_interval or row.interval


def champion_metrics(board: Leaderboard, row: LeaderboardRow, result: RunResult) -> dict[str, Any]:
    """The metrics that bundle.json of the champion states."""
    return {
        "cross_validated": {"miou": row.miou, "fb_iou": row.fb_iou, "interval": _interval(row), "folds": row.folds,
                            "what": f"mean over folds on classes not trained on; {board.selection}"},
        "held_out_images": {"miou": result.miou, "fb_iou": result.fb_iou, "interval": result.interval,
                            "per_class": result.per_class, "list_hash": result.list_hash,
                            "what": "the refit on photos not trained on, of classes it was trained on"},
        "seconds_per_query": row.seconds, "leaderboard": {r.label: r.miou for r in board.rows}, "reason": board.reason,
    }


def _publish(recipe: Recipe, board: Leaderboard, row: LeaderboardRow, result: RunResult) -> BundleInfo:
    """Copy the refit's bundle to the champion's folder. bundle.json is written last and marks it as complete."""
    target = Store(Workspace(recipe.out).champion)
    old = read_bundle_info(result.bundle)
    provenance = {**old.provenance, "promoted_from": result.run, "promoted_by": code_version()}
    info = old.model_copy(update={"metrics": champion_metrics(board, row, result), "provenance": provenance})
    if target.exists("bundle.json") and target.read_json("bundle.json") == json.loads(info.model_dump_json()):
        return info
    replace_bundle(result.bundle, target.url, info)
    return info
