"""FCP and VRP-SAM at debug on the session's shards, with features kept beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fss_models import registry
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.config.sweep import SweepConfig
from pipelines.config.train import FeaturesConfig, TrainConfig
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.features.build import ensure_features, features_url
from pipelines.features.reader import FeatureReader
from pipelines.sweeps.matrix import sweep_specs
from pipelines.training.loop import fit
from pipelines.training.task import WorkerRank

PART = 500_000  # bytes: several parts
METHODS = ("fcp", "vrp_sam")
Rows = list[dict[str, float]]
MakeRecipe = Callable[..., Recipe]


def recipe_at(out: str, config: DataConfig, *methods: str, **train: object) -> Recipe:
    """A recipe of these methods at debug, on fold 0."""
    steps = {"steps": 6, "batch": 2, "checkpoint_every": 6, "log_every": 1, "pool_bytes": 64_000_000}
    return Recipe(
        name="kept", out=out, data=config, methods=[MethodConfig(name=m, preset="debug") for m in methods],
        train=TrainConfig.model_validate({**steps, "features": "float32", **train}), eval=EvalConfig(episodes=4),
        features=FeaturesConfig(part_bytes=PART), sweep=SweepConfig(folds=[0], cpus_per_run=0.9))


def with_shards(out: Path, config: DataConfig, shards: str) -> None:
    """Put the session's shards where a workspace has its own."""
    target = Path(Workspace(str(out)).shards(config.name))
    target.parent.mkdir(parents=True)
    target.symlink_to(shards)


@pytest.fixture(scope="session")
def kept(ray_cluster: Any, shapes_shards: str, shapes_config: DataConfig,
         tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of fold 0's float32 features, which both methods share. Read only."""
    out = tmp_path_factory.mktemp("kept")
    with_shards(out, shapes_config, shapes_shards)
    recipe = recipe_at(str(out), shapes_config, *METHODS)
    (facts,) = ensure_features(recipe, specs_of(recipe, shapes_shards), ray_cluster)
    return facts


@pytest.fixture
def make_recipe(shapes_shards: str, shapes_config: DataConfig, tmp_path: Path) -> MakeRecipe:
    """`recipe_at` in a workspace of the test's own that has the session's shards."""
    with_shards(tmp_path / "out", shapes_config, shapes_shards)
    return lambda *methods, **train: recipe_at(str(tmp_path / "out"), shapes_config, *methods, **train)


def copied(kept: dict[str, Any], recipe: Recipe) -> Path:
    """The kept features in the recipe's own workspace: the folder."""
    target = Path(features_url(recipe)) / Path(kept["features"]).name
    shutil.copytree(kept["features"], target)
    return target


def specs_of(recipe: Recipe, shards: str, fold: int = 0) -> list[RunSpec]:
    """The recipe's runs on one fold."""
    return sweep_specs(recipe, shards=shards, data_hash=Shards(shards).manifest.content_hash,
                       trains={fold: recipe.train})


def losses_of(spec: RunSpec, base: str = "") -> Rows:
    """The history of a run in this process, from the features below `base` where the spec says so."""
    torch.set_num_threads(1)
    model = registry.build(spec.method.name, spec.method.preset, spec.method.config, seed=spec.seed)
    reader = None
    if spec.train.features != "off":
        reader = FeatureReader.open(base, model, spec.train.features, pool_bytes=1_000_000)
    data = FoldData.open(spec.shards, spec.fold)
    history = fit(spec, model, worker=WorkerRank(), resume=None, save=lambda step, write: None,
                  log_row=lambda step, row: None, features=reader,
                  open_stream=lambda position: data.stream(spec, position=position, rank=0, world=1))
    return history.rows
