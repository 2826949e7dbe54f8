"""What the training tests share: a recipe at the debug preset and an in-process run of the loop."""

from __future__ import annotations

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
from pipelines.config.train import TrainConfig
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.training.loop import Place, fit
from pipelines.training.state import History


@pytest.fixture
def spec(shapes_shards: str) -> RunSpec:
    """Ten steps of SANSA at debug, a checkpoint every three."""
    torch.set_num_threads(1)
    train = TrainConfig(steps=10, batch=2, checkpoint_every=3, log_every=2, warmup=2, pool_bytes=64_000_000)
    data_hash = Shards(shapes_shards).manifest.content_hash
    return RunSpec(dataset="shapes", shards=shapes_shards, data_hash=data_hash, fold=0,
                   method=MethodConfig(name="sansa", preset="debug"), train=train)


class KilledError(Exception):
    """Raised in place of a kill."""


Outcome = tuple[dict[str, torch.Tensor], History]


@pytest.fixture
def run_loop(tmp_path: Path) -> Callable[..., Outcome]:
    """Run the loop in this process; `die_at` stops it right after that step's row was logged."""

    def run(spec: RunSpec, folder: str, *, die_at: int = 0, resume: bool = False) -> Outcome:
        root = tmp_path / folder
        kept = sorted(root.glob("checkpoint-*")) if resume else []
        model = registry.build(spec.method.name, spec.method.preset, spec.method.config)
        data = FoldData.open(spec.shards, spec.fold)

        def save(step: int, write: Callable[[Path], None]) -> None:
            target = root / f"checkpoint-{step:04d}"
            target.mkdir(parents=True)
            write(target)

        def log_row(step: int, row: dict[str, float]) -> None:
            if step == die_at:
                raise KilledError

        open_stream: Any = lambda position: data.stream(spec, position=position, rank=0, world=1)  # noqa: E731
        history = fit(spec, model, place=Place(), open_stream=open_stream, resume=kept[-1] if kept else None, save=save,
                      log_row=log_row)
        return model.trainable_state(), history

    return run


@pytest.fixture
def debug_recipe(shapes_shards: str, shapes_config: DataConfig, tmp_path: Path) -> Recipe:
    """prior and sansa at debug on two folds, on the session's shards."""
    out = tmp_path / "out"
    target = Path(Workspace(str(out)).shards(shapes_config.name))
    target.parent.mkdir(parents=True)
    target.symlink_to(shapes_shards)
    return Recipe(
        name="test", out=str(out), data=shapes_config,
        methods=[MethodConfig(name="prior", preset="debug"), MethodConfig(name="sansa", preset="debug")],
        train=TrainConfig(steps=4, batch=2, checkpoint_every=2, log_every=2, pool_bytes=64_000_000),
        eval=EvalConfig(episodes=10), sweep=SweepConfig(folds=[0, 1], cpus_per_run=0.9, parallel=2))
