"""What the analyses' tests share: a recipe at debug on the session's shards, and bundles of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fss_models import registry
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import save_bundle
from pipelines.config.choose import ChooseConfig
from pipelines.config.data import DataConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.config.train import TrainConfig
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.training.context import RunContext
from pipelines.training.loop import fit
from pipelines.training.task import WorkerRank
from pipelines.training.worker import write_bundle


@pytest.fixture(scope="session")
def recipe(shapes_shards: str, shapes_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe with twelve episodes a fold on the session's shards."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("analysis") / "out"
    (out / "shards").mkdir(parents=True)
    (out / "shards" / shapes_config.name).symlink_to(shapes_shards)
    return Recipe(name="tested", out=str(out), data=shapes_config, eval=EvalConfig(episodes=12, batch=6),
                  choose=ChooseConfig(resamples=50), methods=[MethodConfig(name="sansa", preset="debug")])


@pytest.fixture(scope="session")
def shards(recipe: Recipe) -> Shards:
    """The recipe's shards."""
    return Shards(Workspace(recipe.out).shards(recipe.data.name))


@pytest.fixture(scope="session")
def bundle(recipe: Recipe, shards: Shards) -> str:
    """A bundle of SANSA, trained for a few steps with fold 0 held out."""
    train = TrainConfig(steps=6, batch=2, log_every=6, checkpoint_every=6, pool_bytes=64_000_000, lr=0.01)
    spec = RunSpec(dataset=recipe.data.name, shards=shards.url, data_hash=shards.manifest.content_hash, fold=0,
                   method=recipe.methods[0], train=train)
    run, data = RunContext(spec=spec, runs=Workspace(recipe.out).runs), FoldData.open(shards.url, 0)
    model = registry.build("sansa", "debug")
    open_stream: Callable[..., Any] = lambda position: data.stream(spec, position=position, rank=0, world=1)  # noqa: E731
    history = fit(spec, model, worker=WorkerRank(), open_stream=open_stream, resume=None, save=lambda step, write: None,
                  log_row=lambda step, row: None)
    write_bundle(run, model, data, train_s=history.seconds)
    return run.bundle


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., str]:
    """A function that saves a bundle of an untrained method; `about` is the record of its training."""

    def make(method: str, name: str = "bundle", **about: Any) -> str:
        save_bundle(str(tmp_path / name), registry.build(method, "debug"), **about)
        return str(tmp_path / name)

    return make
