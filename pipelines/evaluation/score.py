"""Scoring any bundle on a recipe's data, in this process."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from fss_models.settings import InstanceSource
from pipelines.base.progress import Bar
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_info
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.evaluation.drive import evaluate_bundle, scoring_config
from pipelines.evaluation.results import RunResult
from pipelines.training.context import RunContext


def score_bundle_instances(recipe: Recipe, shards: Shards, *, bundle: str, fold: int | None,
                           source: InstanceSource) -> dict[str, Any]:
    """Score a bundle's instances on the episodes of `score_bundle`, in this process: see `score_instances`."""
    from pipelines.bundles.bundle import load_bundle
    from pipelines.evaluation.instances import score_instances

    model, _ = load_bundle(bundle, "cuda" if recipe.sweep.gpus_per_run else "cpu")
    episodes = FoldData.open(shards.url, fold).episodes(recipe.eval)
    with Bar("instances", len(episodes), unit="episodes") as bar:
        return score_instances(model, shards, episodes, recipe.eval, source, on_progress=bar.to)


def score_bundle(recipe: Recipe, shards: Shards, *, bundle: str, fold: int | None) -> tuple[RunResult, pa.Table]:
    """Score a bundle on existing shards, in this process; returns the result and its `EPISODE_SCORES`.

    Raises `FssError` if there is no bundle or training opened a photo of the test list.
    """
    info = read_bundle_info(bundle)
    method = MethodConfig(name=info.method, preset=info.preset, config=info.config, weights=info.weights,
                          sha256=info.sha256)
    spec = RunSpec(dataset=recipe.data.name, shards=shards.url, data_hash=shards.manifest.content_hash, fold=fold,
                   method=method)
    run = RunContext(spec=spec, runs=Workspace(recipe.out).runs, gpus=recipe.sweep.gpus_per_run)
    data = FoldData.open(shards.url, fold)
    with Bar("scoring", len(data.episodes(recipe.eval)), unit="episodes") as bar:
        return evaluate_bundle(run, scoring_config(recipe), data, bundle, on_progress=bar.to)
