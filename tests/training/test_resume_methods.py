"""A training that goes on from a checkpoint ends as one that never stopped: PFENet, SSP and CyCTR, without Ray."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fss_models import registry
from pipelines.config.train import TrainConfig
from pipelines.training.optimiser import make_optimiser, set_rates
from pipelines.training.state import History, load_state, save_state
from pipelines.training.task import TrainingTask
from tests.fss_models.test_contract import clip_for

IDENTITY = {"run": "r"}


def opened(method: str) -> tuple[Any, torch.optim.Optimizer]:
    model = registry.build(method, "debug", seed=3).train()
    task = TrainingTask(name="r", identity=IDENTITY, seed=0, train=TrainConfig(optimizer="sgd", lr=0.01), steps=9,
                        model=model, batches=lambda position, step: iter(()))  # type: ignore[arg-type, return-value]
    return model, make_optimiser(task)


def train(model: Any, optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
    clip = clip_for(model)
    for step in range(first, last):
        set_rates(optimiser, 0.01 / (1 + step))
        optimiser.zero_grad()
        torch.stack(list(model.losses(clip).values())).sum().backward()
        optimiser.step()


@pytest.mark.parametrize("method", ["pfenet", "ssp", "cyctr"])
def test_resumed_training_is_exact(method: str, tmp_path: Path) -> None:
    """Fails if the trunk's moved statistics, one of two optimisers, or the random draws of cells are lost."""
    torch.manual_seed(7)
    random.seed(7)
    whole, optimiser = opened(method)
    train(whole, optimiser, 0, 2)
    save_state(tmp_path, IDENTITY, whole, optimiser, step=2, position=None, history=History(), rank=0, world=1)
    train(whole, optimiser, 2, 4)
    resumed, again = opened(method)
    load_state(tmp_path, IDENTITY, resumed, again, rank=0, world=1)
    train(resumed, again, 2, 4)
    expected, found = whole.trainable_state(), resumed.trainable_state()
    assert all(torch.equal(v, found[k]) for k, v in expected.items())
    started = opened(method)[0].trainable_state()
    assert not all(torch.equal(v, started[k]) for k, v in expected.items())
