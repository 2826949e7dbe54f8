"""FCP and VRP-SAM at debug on the session's shards, with features kept beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fss_models import registry
from pipelines.config import DataConfig, EvalConfig, FeaturesConfig, MethodConfig, Recipe, SweepConfig, TrainConfig
from pipelines.data.shardset import Shards
from pipelines.features.reader import FeatureReader
from pipelines.training.data import FoldData
from pipelines.training.loop import Place, fit
from pipelines.training.run import RunSpec, sweep_specs
from pipelines.workspace import Workspace

PART = 2_000_000  # bytes: several parts
Rows = list[dict[str, float]]


def recipe_at(out: str, config: DataConfig, *methods: str, **train: object) -> Recipe:
    """A recipe of these methods at debug, on fold 0."""
    steps = {"steps": 6, "batch": 2, "checkpoint_every": 6, "log_every": 1, "pool_bytes": 64_000_000}
    return Recipe(
        name="kept", out=out, data=config, methods=[MethodConfig(name=m, preset="debug") for m in methods],
        train=TrainConfig.model_validate({**steps, "features": "float32", **train}), eval=EvalConfig(episodes=4),
        features=FeaturesConfig(part_bytes=PART), sweep=SweepConfig(folds=[0], cpus_per_run=0.9))


@pytest.fixture
def kept_recipe(shapes_shards: str, shapes_config: DataConfig, tmp_path: Path) -> Callable[..., Recipe]:
    """`recipe_at` in a workspace of the test's own that has the session's shards."""
    out = tmp_path / "out"
    target = Path(Workspace(str(out)).shards(shapes_config.name))
    target.parent.mkdir(parents=True)
    target.symlink_to(shapes_shards)
    return lambda *methods, **train: recipe_at(str(out), shapes_config, *methods, **train)


def specs_of(recipe: Recipe, shards: str) -> list[RunSpec]:
    """The recipe's runs on fold 0."""
    return sweep_specs(recipe, shards=shards, data_hash=Shards(shards).manifest.content_hash, trains={0: recipe.train})


def losses_of(spec: RunSpec, base: str = "") -> Rows:
    """The history of a run in this process, from the features below `base` where the spec says so."""
    torch.set_num_threads(1)
    model = registry.build(spec.method.name, spec.method.preset, spec.method.config, seed=spec.seed)
    kept = None
    if spec.train.features != "off":
        kept = FeatureReader.open(base, model, spec.train.features, pool_bytes=1_000_000)
    data = FoldData.open(spec.shards, spec.fold)
    history = fit(spec, model, place=Place(), resume=None, save=lambda step, write: None,
                  log_row=lambda step, row: None, kept=kept,
                  open_stream=lambda position: data.stream(spec, position=position, rank=0, world=1))
    return history.rows
